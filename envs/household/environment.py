"""`household`: ALFWorld's six task types, commands and feedback strings, as immutable values.

The rules follow alfworld/data/alfred.pddl: one object in hand; take and move need an open
receptacle; heat, clean and cool need the held object and the right appliance within reach. The wording
follows alfworld/data/alfred.twl2. A seeded generator makes the rooms, so nothing is downloaded. The
hash of a room's content decides its split, so no held-out room is also a training room.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Sequence

from envs.base import EnvDataError, Environment, State, StepResult, Task, stable_seed

FAMILIES = ("pick", "look", "clean", "heat", "cool", "two")
SPLITS = ("train", "valid", "test", "bootstrap")
NOTHING = "Nothing happens."

# Receptacle and object classes with ALFRED's properties (alfworld gen/constants.py).
OPENABLE = frozenset({"fridge", "cabinet", "microwave", "drawer", "safe"})
HEATABLE = ("apple", "bread", "cup", "egg", "mug", "plate", "potato", "tomato")
COOLABLE = ("apple", "bowl", "bread", "cup", "egg", "lettuce", "mug", "pan", "plate", "potato",
            "tomato")  # fmt: skip
CLEANABLE = ("apple", "bowl", "cup", "egg", "fork", "knife", "lettuce", "mug", "pan", "plate",
             "potato", "spoon", "tomato")  # fmt: skip
SLICEABLE = frozenset({"apple", "bread", "egg", "lettuce", "potato", "tomato"})
KITCHEN_OBJECTS = tuple(sorted(set(HEATABLE + COOLABLE + CLEANABLE)))
STUDY_OBJECTS = ("alarmclock", "book", "cd", "cellphone", "creditcard", "keychain", "pen",
                 "pencil", "vase", "watch")  # fmt: skip
APPLIANCE = {"clean": "sinkbasin 1", "heat": "microwave 1", "cool": "fridge 1"}
_COLD_FOOD = frozenset(COOLABLE) - {"pan"}
_SMALL_THINGS = frozenset(KITCHEN_OBJECTS + STUDY_OBJECTS) - {"pan", "vase", "laptop"}
_CONTAINS = {"fridge": _COLD_FOOD, "microwave": frozenset(HEATABLE), "drawer": _SMALL_THINGS}

_KITCHEN_FIXED = ("fridge 1", "microwave 1", "sinkbasin 1", "countertop 1")
_KITCHEN_MORE = ("cabinet 1", "cabinet 2", "drawer 1", "diningtable 1", "shelf 1", "stoveburner 1")
_STUDY_FIXED = ("desk 1", "sidetable 1")
_STUDY_MORE = ("drawer 1", "drawer 2", "dresser 1", "shelf 1", "bed 1", "safe 1", "cabinet 1")
_ROOM_SIZE = 7
RECEPTACLES = tuple(dict.fromkeys((*_KITCHEN_FIXED, *_KITCHEN_MORE, *_STUDY_FIXED, *_STUDY_MORE)))
OBJECTS = (*KITCHEN_OBJECTS, *STUDY_OBJECTS, "desklamp")
_TASKS_PER_FAMILY = {"train": 64, "valid": 16, "test": 16, "bootstrap": 4096}


@dataclasses.dataclass(frozen=True)
class Room:
    """What is fixed during an episode.

    Attributes:
      family: one of FAMILIES.
      goal: the sentence after "Your task is to: ".
      object_class: class of the object(s) to move, e.g. "mug".
      target_class: receptacle class to put them in, "" for `look`.
      receptacles: names in the order in which the room lists them.
      contents: objects in each receptacle at the start, aligned with `receptacles`.
    """

    family: str
    goal: str
    object_class: str
    target_class: str
    receptacles: tuple[str, ...]
    contents: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class HouseholdState(State):
    """Everything that changes.

    Attributes:
      location: receptacle where the agent is, "" in the middle of the room.
      holding: object in hand, or "".
      contents: objects per receptacle, aligned with Room.receptacles.
      opened, cleaned, hot, cool, sliced, toggled: names in that condition.
    """

    location: str = ""
    holding: str = ""
    contents: tuple[tuple[str, ...], ...] = ()
    opened: frozenset[str] = frozenset()
    cleaned: frozenset[str] = frozenset()
    hot: frozenset[str] = frozenset()
    cool: frozenset[str] = frozenset()
    sliced: frozenset[str] = frozenset()
    toggled: frozenset[str] = frozenset()


def class_of(name: str) -> str:
    """`mug 2` -> `mug`."""
    return name.rpartition(" ")[0] or name


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _listing(names: Sequence[str]) -> str:
    """A list in TextWorld's style: `a`, `a, and b`, `a, b, and c`; `nothing` if empty."""
    if not names:
        return "nothing"
    words = [_with_article(n) for n in names]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + ", and " + words[-1]


def can_contain(receptacle: str, object_class: str) -> bool:
    """ALFRED's canContain, reduced to the classes used here."""
    return object_class in _CONTAINS.get(class_of(receptacle), _CONTAINS_ANYTHING)


_CONTAINS_ANYTHING = frozenset(KITCHEN_OBJECTS + STUDY_OBJECTS)


# -- generator -------------------------------------------------------------------------------------
def _goal_text(family: str, obj: str, target: str) -> str:
    return {
        "pick": f"put {_with_article(obj)} in {target}",
        "two": f"put two {obj} in {target}",
        "clean": f"put a clean {obj} in {target}",
        "heat": f"put a hot {obj} in {target}",
        "cool": f"put a cool {obj} in {target}",
        "look": f"look at {obj} under the desklamp",
    }[family]


def _draw_room(family: str, hard: bool, rng: random.Random) -> Room | None:
    """One candidate room, or None if the draw cannot be completed."""
    kitchen = family in APPLIANCE or (family in ("pick", "two") and rng.random() < 0.5)
    fixed, more = (_KITCHEN_FIXED, _KITCHEN_MORE) if kitchen else (_STUDY_FIXED, _STUDY_MORE)
    receptacles = list(fixed) + rng.sample(more, _ROOM_SIZE - len(fixed))
    rng.shuffle(receptacles)
    classes = {
        "clean": CLEANABLE, "heat": HEATABLE, "cool": COOLABLE,
    }.get(family, KITCHEN_OBJECTS if kitchen else STUDY_OBJECTS)  # fmt: skip
    obj = rng.choice(classes)
    closed = [r for r in receptacles if class_of(r) in OPENABLE and can_contain(r, obj)]
    open_ = [r for r in receptacles if class_of(r) not in OPENABLE and class_of(r) != "sinkbasin"]
    device = APPLIANCE.get(family)

    target = ""
    if family != "look":
        # A hard `pick` room has a closed target, too: two independent things to get right.
        pool = closed if family == "pick" and hard else open_
        pool = [r for r in pool if r not in ("microwave 1", "fridge 1")]
        if not pool:
            return None
        target = rng.choice(pool)
    # The target class must be unambiguous, so that "in cabinet" means one place.
    if target and sum(class_of(r) == class_of(target) for r in receptacles) > 1:
        return None
    sources = [r for r in (closed if hard else open_) if r not in (target, device)]
    second_sources = [r for r in receptacles if r not in (target, device) and can_contain(r, obj)]
    if not sources or (family == "two" and len(second_sources) < 2):
        return None
    contents: dict[str, list[str]] = {r: [] for r in receptacles}
    contents[rng.choice(sources)].append(f"{obj} 1")
    if family == "two":
        contents[rng.choice([r for r in second_sources if not contents[r]])].append(f"{obj} 2")
    if not kitchen:
        contents[rng.choice(["desk 1", "sidetable 1"])].append("desklamp 1")
    others = [c for c in (KITCHEN_OBJECTS if kitchen else STUDY_OBJECTS) if c != obj]
    for other in rng.sample(others, rng.randrange(4, 7)):
        place = rng.choice([r for r in receptacles if can_contain(r, other)])
        if len(contents[place]) < 2:
            contents[place].append(f"{other} {rng.randrange(1, 4)}")
    for names in contents.values():
        names.sort()
    return Room(
        family,
        _goal_text(family, obj, class_of(target)),
        obj,
        class_of(target),
        tuple(receptacles),
        tuple(tuple(contents[r]) for r in receptacles),
    )


def room_split(room: Room) -> str:
    """The split of a room, by its content: 1/8 test, 1/8 valid, 3/8 train, 3/8 bootstrap."""
    bucket = stable_seed("household-split", repr(room)) % 8
    return ("test", "valid", "train", "train", "train", "bootstrap", "bootstrap", "bootstrap")[
        bucket
    ]


@functools.lru_cache(maxsize=65536)
def make_room(task_id: str) -> Room:
    """The room of a task id `split/family/number`; the same on every machine.

    All held-out rooms are hard, and half of the train and bootstrap rooms: the object is in
    something closed, in addition to what the family asks for.
    """
    split, family, number = task_id.split("/")
    rng = random.Random(stable_seed("household", task_id))
    hard = split in ("valid", "test") or int(number) % 2 == 1
    while True:
        room = _draw_room(family, hard, rng)
        if room is not None and room_split(room) == split:
            return room


class Household(Environment):
    """ALFWorld-like household tasks; see the module docstring."""

    name = "household"
    # ALFWorld: 50. The rooms here have seven receptacles; searching and solving take at most 18 steps.
    horizon = 20
    player = "envs.household.player:HouseholdPlayer"
    splits = SPLITS
    states_goal = True
    description = (
        "You act in a house through text commands: go to, open, close, take X from Y, move X to Y,"
        " heat, clean or cool X with Y, slice X with Y, use X, examine X, inventory, look."
    )

    def _list_tasks(self, split: str) -> Sequence[Task]:
        return [
            Task(f"{split}/{family}/{number:04d}", family, split)
            for number in range(_TASKS_PER_FAMILY[split])
            for family in FAMILIES
        ]

    def _room(self, task_id: str) -> Room:
        parts = task_id.split("/")
        if (
            len(parts) != 3
            or parts[0] not in SPLITS
            or parts[1] not in FAMILIES
            or not (parts[2].isascii() and parts[2].isdigit() and len(parts[2]) == 4)
            or int(parts[2]) >= _TASKS_PER_FAMILY[parts[0]]
        ):
            raise EnvDataError(
                f"household task {task_id!r}: must be split/family/number with split in"
                f" {SPLITS}, family in {FAMILIES}, number of four digits within the split"
            )
        return make_room(task_id)

    def _reset(self, task_id: str) -> tuple[State, str]:
        room = self._room(task_id)
        state = HouseholdState(task_id=task_id, contents=room.contents)
        intro = (
            "You are in the middle of a room. Looking quickly around you, you see"
            f" {_listing(room.receptacles)}.\nYour task is to: {room.goal}."
        )
        return state, intro

    # -- rules ---------------------------------------------------------------------------------
    def _step(self, state: HouseholdState, action: str) -> tuple[State, StepResult]:
        room = make_room(state.task_id)
        new_state, observation = apply(room, state, action)
        success = observation != NOTHING and reached_goal(room, new_state)
        return new_state, StepResult(
            observation, float(success), success, success, {"valid": observation != NOTHING}
        )

    def actions(self, state: HouseholdState) -> tuple[str, ...]:
        """ALFWorld's admissible commands: all that do not end in "Nothing happens."."""
        room = make_room(state.task_id)
        here, held = state.location, state.holding
        names = state.contents[room.receptacles.index(here)] if here else ()
        commands = [f"go to {place}" for place in room.receptacles]
        commands += [f"{verb} {here}" for verb in ("open", "close", "examine")]
        commands += [f"take {name} from {here}" for name in names]
        commands += [f"move {held} to {here}"]
        commands += [f"{verb} {held} with {here}" for verb in APPLIANCE]
        commands += [f"slice {name} with {held}" for name in names]
        commands += [f"{verb} {name}" for verb in ("use", "examine") for name in names]
        commands += [f"examine {held}", "inventory", "look"]
        return tuple(c for c in commands if apply(room, state, c)[1] != NOTHING)

    def solve(self, state: HouseholdState) -> list[str] | None:
        """Actions of a player who knows where everything is; None if too few steps are left."""
        plan, current = [], state
        room = make_room(state.task_id)
        while not current.done:
            action = _informed_action(room, current)
            current, _ = self.step(current, action)
            plan.append(action)
        return plan if current.success else None


def apply(room: Room, state: HouseholdState, action: str) -> tuple[HouseholdState, str]:
    """(state, feedback) after one command; "Nothing happens." if it is inadmissible."""
    replace = functools.partial(dataclasses.replace, state)
    here, held = state.location, state.holding
    verb, _, rest = action.partition(" ")
    index = room.receptacles.index(here) if here else -1
    at_hand = index >= 0 and (class_of(here) not in OPENABLE or here in state.opened)
    visible = state.contents[index] if at_hand else ()

    if action == "look":
        if not here:
            return state, _middle_of_room(room)
        return state, f"You are facing the {here}. Next to it, you see nothing."
    if action == "inventory":
        if held:
            return state, f"You are carrying: {_with_article(held)}."
        return state, "You are not carrying anything."
    if verb == "go" and rest.startswith("to "):
        place = rest[3:]
        if place not in room.receptacles or place == here:
            return state, NOTHING  # as in ALFWorld, also for the place where the agent is
        return replace(location=place), f"You arrive at {place}. {_examine(room, state, place)}"
    if verb == "open" and here and rest == here:
        if class_of(here) not in OPENABLE or here in state.opened:
            return state, NOTHING
        new = replace(opened=state.opened | {here})
        return new, f"You open the {here}. {_examine(room, new, here)}"
    if verb == "close" and here and rest == here and here in state.opened:
        return replace(opened=state.opened - {here}), f"You close the {here}."
    if verb == "take":
        obj, _, place = rest.partition(" from ")
        if held or place != here or obj not in visible or class_of(obj) == "desklamp":
            return state, NOTHING
        new = replace(holding=obj, contents=_moved(state, index, obj, add=False))
        return new, f"You pick up the {obj} from the {here}."
    if verb == "move":
        obj, _, place = rest.partition(" to ")
        if not held or obj != held or place != here or not at_hand:
            return state, NOTHING
        if not can_contain(here, class_of(obj)):
            return state, NOTHING
        new = replace(holding="", contents=_moved(state, index, obj, add=True))
        return new, f"You move the {obj} to the {here}."
    if verb in APPLIANCE:
        obj, _, place = rest.partition(" with ")
        classes = {"clean": CLEANABLE, "heat": HEATABLE, "cool": COOLABLE}[verb]
        if not held or obj != held or place != here or class_of(here) != class_of(APPLIANCE[verb]):
            return state, NOTHING
        if class_of(obj) not in classes:
            return state, NOTHING
        new = {
            "clean": lambda: replace(cleaned=state.cleaned | {obj}),
            "heat": lambda: replace(hot=state.hot | {obj}, cool=state.cool - {obj}),
            "cool": lambda: replace(cool=state.cool | {obj}, hot=state.hot - {obj}),
        }[verb]()
        return new, f"You {verb} the {obj} using the {here}."
    if verb == "use" and rest in visible and class_of(rest) == "desklamp":
        return replace(toggled=state.toggled | {rest}), f"You turn on the {rest}."
    if verb == "slice":
        obj, _, knife = rest.partition(" with ")
        if knife == held and class_of(knife) == "knife" and obj in visible:
            if class_of(obj) in SLICEABLE:
                new = replace(sliced=state.sliced | {obj})
                return new, f"You sliced the {obj} with the {knife}."
    if verb == "examine":
        if here and rest == here:
            return state, _examine(room, state, here)
        if rest and (rest == held or rest in visible):
            return state, _describe(state, rest)
    return state, NOTHING


def _middle_of_room(room: Room) -> str:
    return (
        "You are in the middle of a room. Looking quickly around you, you see"
        f" {_listing(room.receptacles)}."
    )


def _moved(state: HouseholdState, index: int, obj: str, add: bool) -> tuple[tuple[str, ...], ...]:
    names = list(state.contents[index])
    if add:
        names.append(obj)
        names.sort()
    else:
        names.remove(obj)
    return state.contents[:index] + (tuple(names),) + state.contents[index + 1 :]


def _examine(room: Room, state: HouseholdState, place: str) -> str:
    names = state.contents[room.receptacles.index(place)]
    if class_of(place) not in OPENABLE:
        return f"On the {place}, you see {_listing(names)}."
    if place in state.opened:
        return f"The {place} is open. In it, you see {_listing(names)}."
    return f"The {place} is closed."


def _describe(state: HouseholdState, obj: str) -> str:
    if class_of(obj) == "desklamp":
        return f"This {obj} is {'on' if obj in state.toggled else 'off'}."
    sliced = "sliced " if obj in state.sliced else ""
    warmth = "hot" if obj in state.hot else "cool" if obj in state.cool else ""
    clean = "clean" if obj in state.cleaned else ""
    if warmth or clean:
        if warmth == "cool" and not clean and not sliced:
            warmth = "cold"  # alfred.twl2 says "cold" only in this case
        return f"This is a {' and '.join(w for w in (warmth, clean) if w)} {sliced}{obj}."
    if sliced:
        return f"This is a sliced {obj}."
    return f"There's nothing special about {obj}."


def reached_goal(room: Room, state: HouseholdState) -> bool:
    """The family's goal condition (alfworld gen/goal_library.py)."""
    if room.family == "look":
        return (
            class_of(state.holding) == room.object_class
            and bool(state.location)
            and "desklamp 1" in state.toggled
            and "desklamp 1" in state.contents[room.receptacles.index(state.location)]
        )
    placed = [
        name
        for place, names in zip(room.receptacles, state.contents, strict=True)
        if class_of(place) == room.target_class
        for name in names
        if class_of(name) == room.object_class
    ]
    condition = {"clean": state.cleaned, "heat": state.hot, "cool": state.cool}.get(room.family)
    if condition is not None:
        placed = [name for name in placed if name in condition]
    return len(placed) >= (2 if room.family == "two" else 1)


def _informed_action(room: Room, state: HouseholdState) -> str:
    """Next action of a player who knows the whole room; it proves that a task is solvable."""
    here, held = state.location, state.holding

    def at(place: str, action: str, needs_open: bool = True) -> str:
        if here != place:
            return f"go to {place}"
        if needs_open and class_of(place) in OPENABLE and place not in state.opened:
            return f"open {place}"
        return action

    if held and class_of(held) != room.object_class:
        return at(here or room.receptacles[0], f"move {held} to {here}")
    if held:
        condition = {"clean": state.cleaned, "heat": state.hot, "cool": state.cool}
        if room.family in condition and held not in condition[room.family]:
            device = APPLIANCE[room.family]
            return at(device, f"{room.family} {held} with {device}", needs_open=False)
        if room.family == "look":
            return at(_holder(room, state, "desklamp 1"), "use desklamp 1")
        target = next(r for r in room.receptacles if class_of(r) == room.target_class)
        return at(target, f"move {held} to {target}")
    for place, names in zip(room.receptacles, state.contents, strict=True):
        for name in names:
            if class_of(name) != room.object_class:
                continue
            done = {"clean": state.cleaned, "heat": state.hot, "cool": state.cool}.get(room.family)
            if class_of(place) == room.target_class and (done is None or name in done):
                continue
            return at(place, f"take {name} from {place}")
    return "look"


def _holder(room: Room, state: HouseholdState, name: str) -> str:
    return next(
        r for r, names in zip(room.receptacles, state.contents, strict=True) if name in names
    )
