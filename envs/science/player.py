"""The player of six task types of the `science` laboratory.

habit    unaware player                                  experience that mends it
kind     takes the air for the thing that is asked for   look for an animal outside. /
                                                         take the picture in the hallway.
focus    never focuses on what it is told to             focus on it first. / focus on the
                                                         thermometer and then on the substance.
box      puts the thing down in the right room           move it to the {color} box.
span     takes the first animal that is listed           the {animal} lives longest. / shortest.
measure  guesses the box                                 use the thermometer on it first.
open     gives up on what is not in sight                open the (large) cupboard.
mix      pours the colors together and no more           mix the jug.
"""

from __future__ import annotations

import dataclasses
import random

from envs.base import EnvDataError
from envs.player import Player
from envs.science.environment import ScienceState
from envs.science.expert import Expert
from envs.science.lab import Lab
from envs.science.world import AGENT, PAINTS, ROOMS, World
from envs.science.worlds import AGES, BOXES, CUPS, LIFE_SPANS, THINGS

GIVE_UP = "inventory"
_COLORS = {*BOXES, *(paint.removesuffix(" paint") for mixed in PAINTS for paint in mixed)}
_COLORS |= {paint.removesuffix(" paint") for paint in PAINTS.values()}
_NAMES = {*ROOMS, *CUPS, *LIFE_SPANS, *_COLORS, *AGES, *THINGS, "jug", "picture", "book"}
_NAMES |= {f"unknown substance {letter}" for letter in "ABCDEFGHabcdefgh"}
Decision = tuple[str, str | None]


@dataclasses.dataclass
class _Memory:
    """What the player has read.

    Attributes:
      looked: rooms whose listing was read after the last time something was opened there.
      measured: the temperature has been measured.
    """

    looked: set[int] = dataclasses.field(default_factory=set)
    measured: bool = False


class SciencePlayer(Player):
    """The player of `science`; see the module docstring.

    Raises:
      EnvDataError: on first use, if the task is not of one of the six types.
    """

    units = rf" ?\b(?:{'|'.join(sorted(_NAMES, key=lambda n: (-len(n), n)))})\b"
    habits = ("kind", "focus", "box", "span", "measure", "open", "mix")

    def start(self, task_id: str, observation: str) -> _Memory:
        state, _ = self.env.reset(task_id)
        lab = self.env.lab(state)
        _plan_of(lab.world)
        return _Memory({lab.here})

    def update(self, memory: _Memory, action: str, state: ScienceState, observation: str) -> None:
        here = state.things[AGENT].place
        if action == "look around":
            memory.looked.add(here)
        elif action.startswith("open "):
            memory.looked.discard(here)
        elif "measures a temperature" in observation:
            memory.measured = True

    def decide(
        self, state: ScienceState, memory: _Memory, aware: frozenset[str]
    ) -> tuple[str, str | None]:
        if state.pending:
            return "0", None
        lab = self.env.lab(state)
        situation = _Situation(Expert(lab, state.reached, state.optional), memory, aware)
        return _plan_of(lab.world)(situation)

    def advice(self, habit: str, task_id: str) -> str:
        state, _ = self.env.reset(task_id)
        lab = self.env.lab(state)
        required, family = lab.world.required, lab.world.family
        if habit == "kind":
            living = family == "find-living-thing"
            return "look for an animal outside." if living else "take the picture in the hallway."
        if habit == "focus":
            if family == "use-thermometer":
                return "focus on the thermometer and then on the substance."
            return "focus on it first."
        if habit == "box":
            return f"move it to the {required[-1][-1]}."
        if habit == "span":
            animal = str(required[0][1]).partition(" ")[2]
            return f"the {animal} lives {family.split('-')[1]}."
        return {
            "measure": "use the thermometer on it first.",
            "open": f"open the {'large ' if family == 'mix-paint' else ''}cupboard.",
            "mix": "mix the jug.",
        }[habit]

    def slip(self, state: ScienceState, rng: random.Random) -> str | None:
        if state.pending:
            return None
        here = state.things[AGENT].place
        return rng.choice([f"teleport to {room}" for n, room in enumerate(ROOMS, 1) if n != here])


@dataclasses.dataclass
class _Situation:
    """What a plan is based on. Methods return an action, or None if nothing is left to do."""

    expert: Expert
    memory: _Memory
    aware: frozenset[str]

    @property
    def lab(self) -> Lab:
        return self.expert.lab

    def room(self, name: str) -> int:
        return 1 + ROOMS.index(name)

    def enter(self, room: int) -> str | None:
        """The next action to go to a room and read its listing."""
        if self.lab.here != room:
            return f"teleport to {self.lab.things[room].name}"
        return None if room in self.memory.looked else "look around"

    def known(self, index: int) -> bool:
        """True if a thing is visible and its name has been read."""
        held = self.lab.things[index].place == AGENT
        return held or (index in self.expert.seen and self.lab.here in self.memory.looked)

    def unless_unaware(self, action: str, habit: str, instead: str) -> Decision:
        """`action`, or `instead` if the player has the habit."""
        return (action if habit in self.aware else instead), habit


def _find(s: _Situation) -> Decision:
    lab, expert = s.lab, s.expert
    wanted = "animal" if lab.world.family == "find-living-thing" else "object"
    box = expert.find(expert.required[1][1])
    mine = [i for i, t in enumerate(lab.things) if t.kind == wanted and t.place in (AGENT, box)]
    mine += [i for i in (lab.focus,) if i >= 0 and lab.things[i].kind == wanted]
    seen = [i for i in expert.seen if lab.things[i].kind == wanted and s.known(i)]
    if not mine and not seen:
        action = s.enter(s.room("outside" if wanted == "animal" else "hallway"))
        return s.unless_unaware(action or "look around", "kind", "focus on air")
    thing = mine[0] if mine else min(seen, key=lab.shown)
    name = expert.name(thing)
    habit = None
    if expert.reached == 0:
        if "focus" in s.aware:
            return expert.focus(thing), "focus"
        habit = "focus"
        if lab.things[thing].place == box:
            return GIVE_UP, habit
    if lab.room_of(box) != lab.room_of(thing):
        action = expert.hold(thing) or f"teleport to {lab.things[lab.room_of(box)].name}"
        return action, habit
    if lab.here != lab.room_of(box):
        return f"teleport to {lab.things[lab.room_of(box)].name}", habit
    held = lab.things[thing].place == AGENT
    action, _ = s.unless_unaware(
        f"move {name} to {expert.name(box)}", "box", f"put down {name}" if held else GIVE_UP
    )
    return action, habit or "box"


def _lifespan(s: _Situation) -> Decision:
    lab, expert = s.lab, s.expert
    action = s.enter(s.room("outside"))
    if action:
        return action, None
    animals = sorted((i for i in expert.seen if lab.things[i].kind == "animal"), key=lab.shown)
    best = expert.find(expert.required[0][1])
    right = f"focus on {expert.name(best)}"
    if animals[0] == best:
        return right, None
    return s.unless_unaware(right, "span", f"focus on {expert.name(animals[0])}")


def _thermometer(s: _Situation) -> Decision:
    lab, expert = s.lab, s.expert
    thermometer, sample = expert.find("thermometer"), expert.find(expert.required[1][1])
    right = expert.find(expert.required[3][2])
    if lab.things[thermometer].place != AGENT and not s.known(thermometer):
        return _look_for(s, thermometer)
    if expert.reached == 0 and "focus" in s.aware:
        return expert.focus(thermometer), "focus"
    habit = "focus" if expert.reached == 0 else None
    if lab.things[thermometer].place != AGENT:
        return f"pick up {expert.name(thermometer)}", habit
    at_box = lab.things[sample].place == right
    if lab.things[sample].place != AGENT and not (at_box and expert.reached == 0):
        room = lab.room_of(sample)
        action = s.enter(room)
        if action:
            return action, habit
    if expert.reached == 1 and "focus" in s.aware:
        return expert.focus(sample), "focus"
    habit = habit or ("focus" if expert.reached == 1 else None)
    if not s.memory.measured or (expert.reached == 2 and habit is None):
        if "measure" in s.aware:
            return expert.measure(sample), habit or "measure"
        habit = habit or "measure"
    boxes = (expert.required[3][2], lab.world.fatal[0][2])
    guess = next(n for n in _named_order(lab.world.description, boxes))
    goal = right if s.memory.measured else expert.find(guess)
    if lab.things[sample].place == goal:
        return GIVE_UP, habit
    return expert.bring(sample, goal) or GIVE_UP, habit


def _named_order(text: str, names: tuple[str, ...]) -> list[str]:
    return sorted(names, key=text.index)


def _look_for(s: _Situation, thermometer: int) -> Decision:
    """Gets the thermometer: in the kitchen, perhaps in the cupboard, or on the living room's desk."""
    lab = s.lab
    kitchen, living_room = s.room("kitchen"), s.room("living room")
    cupboard = s.expert.find("cupboard")
    read = s.memory.looked
    if kitchen not in read or lab.here == kitchen:
        action = s.enter(kitchen)
        if action:
            return action, None
        if living_room in read and not lab.things[cupboard].flag:
            return s.unless_unaware("open cupboard", "open", GIVE_UP)
    if living_room not in read:
        return s.enter(living_room) or "look around", None
    return s.enter(kitchen) or "look around", None


def _paint(s: _Situation) -> Decision:
    lab, expert = s.lab, s.expert
    product = expert.required[1][1]
    action = s.enter(s.room("art studio"))
    if expert.reached:
        return expert.focus(expert.find(product)), None
    if action:
        return action, None
    parts = lab.world.optional[1][1:]
    jug = expert.find("jug")
    found = [expert.portable(name) for name in parts]
    if None in found:
        return GIVE_UP, None  # a color has been spilled
    cups = [lab.things[i].place for i in found]
    if not all(map(s.known, (jug, *cups))):
        return s.unless_unaware("open large cupboard", "open", GIVE_UP)
    for cup in cups:
        if cup != jug:
            return f"pour {expert.name(cup)} in {expert.name(jug)}", None
    return s.unless_unaware(f"mix {expert.name(jug)}", "mix", f"focus on {product}")


_PLANS = {
    "find-living-thing": _find,
    "find-non-living-thing": _find,
    "use-thermometer": _thermometer,
    "mix-paint": _paint,
    "lifespan-longest-lived": _lifespan,
    "lifespan-shortest-lived": _lifespan,
}
TASK_TYPES = tuple(_PLANS)


def _plan_of(world: World):
    if world.family not in _PLANS:
        raise EnvDataError(
            f"science task type {world.family!r}: the scripted player knows"
            f" {', '.join(TASK_TYPES)}; set env.options.task_types"
        )
    return _PLANS[world.family]
