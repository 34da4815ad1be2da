"""Generates ALFWorld games of the six task types in the official file format.

It is for users without the official data. Rooms, objects and placements are our own, drawn from seeds.
Domain and grammar are ALFWorld's files, so text, rules and goals are the benchmark's. Sources: goal
conditions and sentences, alfworld/gen/goal_library.py; object properties and what contains what,
similar to gen/constants.py. `valid_seen` has the layouts of `train`; `valid_unseen` has layouts of
its own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from envs.base import stable_seed

FAMILIES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
# Games of "bootstrap" are for scripted corpora only.
GAMES_PER_FAMILY = {"train": 64, "valid_seen": 16, "valid_unseen": 16, "bootstrap": 512}
_SENTENCES = {
    "pick_and_place_simple": ("put a {obj} in {recep}", "put some {obj} on {recep}"),
    "look_at_obj_in_light": (
        "look at {obj} under the {toggle}", "examine the {obj} with the {toggle}"),
    "pick_clean_then_place_in_recep": (
        "put a clean {obj} in {recep}", "clean some {obj} and put it in {recep}"),
    "pick_heat_then_place_in_recep": (
        "put a hot {obj} in {recep}", "heat some {obj} and put it in {recep}"),
    "pick_cool_then_place_in_recep": (
        "put a cool {obj} in {recep}", "cool some {obj} and put it in {recep}"),
    "pick_two_obj_and_place": ("put two {obj} in {recep}", "find two {obj} and put them in {recep}"),
}  # fmt: skip
_CONDITIONS = {
    "pick_clean_then_place_in_recep": ("cleanable", "isClean", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("heatable", "isHot", "Microwave"),
    "pick_cool_then_place_in_recep": ("coolable", "isCool", "Fridge"),
}
LAMP = "DeskLamp"

# -- what there is ---------------------------------------------------------------------------------
OPENABLE = frozenset({"Fridge", "Cabinet", "Microwave", "Drawer", "Safe"})
_PROPERTIES: Mapping[str, frozenset[str]] = {
    name: frozenset(classes.split())
    for name, classes in {
        "heatable": "Apple Bread Cup Egg Mug Plate Potato Tomato",
        "coolable": "Apple Bowl Bread Cup Egg Lettuce Mug Pan Plate Pot Potato Tomato WineBottle",
        "cleanable": "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce"
        " Mug Pan Plate Pot Potato SoapBar Spatula Spoon Tomato",
        "sliceable": "Apple Bread Egg Lettuce Potato Tomato",
        "toggleable": LAMP,
        "isReceptacleObject": "Bowl Cup Mug Pan Plate Pot",
    }.items()
}
_FOOD = "Apple Bread Egg Lettuce Potato Tomato"
_DISHES = "Bowl Cup Mug Plate"
_CUTLERY = "ButterKnife Fork Knife Ladle Spatula Spoon"
_SMALL = "CD CellPhone CreditCard KeyChain Pen Pencil Watch"
_BATH = "Candle Cloth SoapBar SoapBottle SprayBottle ToiletPaper"
_ON_TABLE = (
    f"{_FOOD} {_DISHES} {_CUTLERY} {_SMALL} {_BATH} AlarmClock Book DeskLamp DishSponge Kettle"
)
_ON_TABLE += " Laptop Newspaper Pan PepperShaker Pot RemoteControl SaltShaker Statue TissueBox Vase"
_ON_TABLE += " WateringCan WineBottle"
CONTAINS: Mapping[str, frozenset[str]] = {
    name: frozenset(classes.split())
    for name, classes in {
        "ArmChair": "Book CellPhone CreditCard KeyChain Laptop Newspaper Pillow RemoteControl",
        "BathtubBasin": "Cloth DishSponge SoapBar",
        "Bed": "Book CellPhone CreditCard KeyChain Laptop Newspaper Pillow",
        "Cabinet": f"{_DISHES} {_BATH} Book CD DishSponge Kettle Ladle Newspaper Pan PepperShaker Pot"
        " SaltShaker Vase WateringCan WineBottle",
        "CoffeeMachine": "Mug",
        "CoffeeTable": _ON_TABLE,
        "CounterTop": _ON_TABLE,
        "Desk": _ON_TABLE,
        "DiningTable": _ON_TABLE,
        "Drawer": f"{_CUTLERY} {_SMALL} {_BATH} Book DishSponge Newspaper PepperShaker RemoteControl"
        " SaltShaker TissueBox",
        "Dresser": _ON_TABLE,
        "Fridge": f"{_FOOD} {_DISHES} Pan Pot WineBottle",
        "GarbageCan": f"{_FOOD} {_BATH} CD DishSponge Newspaper Pen Pencil TissueBox WineBottle",
        "LaundryHamper": "Cloth",
        "Microwave": "Apple Bowl Bread Cup Egg Mug Plate Potato Tomato",
        "Safe": "CD CellPhone CreditCard KeyChain Statue Vase Watch",
        "Shelf": f"{_DISHES} {_SMALL} {_BATH} AlarmClock Book DeskLamp DishSponge Kettle PepperShaker"
        " Pot RemoteControl SaltShaker Statue TissueBox Vase WateringCan WineBottle",
        "SideTable": _ON_TABLE,
        "SinkBasin": f"{_FOOD} {_DISHES} {_CUTLERY} Cloth DishSponge Kettle Pan Pot SoapBar",
        "Sofa": "Book CellPhone CreditCard KeyChain Laptop Newspaper Pillow RemoteControl",
        "StoveBurner": "Kettle Pan Pot",
        "Toilet": "Candle Cloth SoapBar SoapBottle SprayBottle ToiletPaper",
    }.items()
}


@dataclasses.dataclass(frozen=True)
class Room:
    """A kind of room.

    Attributes:
      first_scene: number of its first layout in ALFRED.
      receptacles: class -> (fewest, most).
      objects: object classes that the room may contain.
    """

    first_scene: int
    receptacles: Mapping[str, tuple[int, int]]
    objects: tuple[str, ...]


ROOMS = {
    "kitchen": Room(
        1,
        {"Cabinet": (3, 9), "CoffeeMachine": (1, 1), "CounterTop": (1, 3), "DiningTable": (0, 1),
         "Drawer": (2, 7), "Fridge": (1, 1), "GarbageCan": (1, 1), "Microwave": (1, 1),
         "Shelf": (0, 3), "SideTable": (0, 1), "SinkBasin": (1, 1), "StoveBurner": (2, 4)},
        tuple(f"{_FOOD} {_DISHES} {_CUTLERY} DishSponge Kettle Pan PepperShaker Pot SaltShaker"
              " SoapBottle Vase WineBottle".split()),
    ),
    "living room": Room(
        201,
        {"ArmChair": (1, 2), "Cabinet": (0, 4), "CoffeeTable": (1, 1), "DiningTable": (0, 1),
         "Drawer": (1, 5), "GarbageCan": (1, 1), "Safe": (0, 1), "Shelf": (0, 5),
         "SideTable": (1, 3), "Sofa": (1, 2)},
        tuple("Book CreditCard KeyChain Laptop Newspaper Pillow RemoteControl Statue TissueBox Vase"
              " Watch WateringCan".split()),
    ),
    "bedroom": Room(
        301,
        {"ArmChair": (0, 1), "Bed": (1, 1), "Desk": (1, 2), "Drawer": (2, 6), "Dresser": (0, 1),
         "GarbageCan": (1, 1), "LaundryHamper": (0, 1), "Safe": (0, 1), "Shelf": (1, 6),
         "SideTable": (0, 2)},
        tuple("AlarmClock Book Bowl CD CellPhone Cloth CreditCard KeyChain Laptop Mug Pen Pencil"
              " Pillow Watch".split()),
    ),
    "bathroom": Room(
        401,
        {"BathtubBasin": (0, 1), "Cabinet": (1, 4), "CounterTop": (1, 1), "Drawer": (0, 4),
         "GarbageCan": (1, 1), "Shelf": (0, 2), "SideTable": (0, 1), "SinkBasin": (1, 2),
         "Toilet": (1, 1)},
        tuple("Candle Cloth DishSponge SoapBar SoapBottle SprayBottle TissueBox ToiletPaper".split()),
    ),
}  # fmt: skip
CLASSES = frozenset(
    {LAMP, *(c for room in ROOMS.values() for c in (*room.receptacles, *room.objects))}
)
_LAYOUTS = 30  # per kind of room
_UNSEEN = 6  # the first ones are for valid_unseen, as in ALFRED
_FAMILY_ROOMS = {
    "look_at_obj_in_light": ("living room", "bedroom"),
    "pick_clean_then_place_in_recep": ("kitchen", "bathroom"),
    "pick_heat_then_place_in_recep": ("kitchen",),
    "pick_cool_then_place_in_recep": ("kitchen",),
}


@functools.cache
def layouts(kind: str) -> tuple[tuple[str, ...], ...]:
    """Receptacle classes of each layout of a kind of room; all layouts differ."""
    found: list[tuple[str, ...]] = []
    rng = random.Random(stable_seed("alfworld", "layouts", kind))
    while len(found) < _LAYOUTS:
        layout = tuple(
            name
            for name, (fewest, most) in ROOMS[kind].receptacles.items()
            for _ in range(rng.randint(fewest, most))
        )
        if layout not in found:
            found.append(layout)
    return tuple(found)


def fewest_receptacles() -> int:
    """The number of receptacles in the smallest layout."""
    return min(len(layout) for kind in ROOMS for layout in layouts(kind))


# -- one game --------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class GameSpec:
    """What is drawn for one game.

    Attributes:
      family: task type, one of FAMILIES.
      scene: layout number, as in ALFRED's floor plans.
      target: object class to handle.
      parent: receptacle class to put it in, "" for look_at_obj_in_light.
      sentence: what follows "Your task is to: ".
      receptacles: (class, location number, initially open) of each.
      objects: (class, index of its receptacle) of each.
    """

    family: str
    scene: int
    target: str
    parent: str
    sentence: str
    receptacles: tuple[tuple[str, int, bool], ...]
    objects: tuple[tuple[str, int], ...]

    @property
    def folder(self) -> str:
        """The official name of a task's folder."""
        toggle = LAMP if not self.parent else ""
        return f"{self.family}-{self.target}-None-{self.parent or toggle}-{self.scene}"


def draw(split: str, family: str, number: int) -> GameSpec:
    """The game `number` of a split, always the same."""
    for attempt in range(10_000):
        rng = random.Random(stable_seed("alfworld", split, family, number, attempt))
        kind = rng.choice(_FAMILY_ROOMS.get(family, tuple(ROOMS)))
        unseen = split == "valid_unseen"
        scene = rng.randrange(0 if unseen else _UNSEEN, _UNSEEN if unseen else _LAYOUTS)
        spec = _draw_spec(rng, family, kind, scene)
        if spec is None or not (unseen or _owner(spec) in (split, _OWNERS.get(split))):
            continue
        if split != "bootstrap" or _goal_of(spec) not in _stage_1(family):
            return spec
    raise AssertionError(f"no game for {split}/{family}/{number}")


_OWNERS = {"bootstrap": "train"}


@functools.cache
def _stage_1(family: str) -> frozenset[tuple]:
    """The goals of "train" in their layouts, which no bootstrap game has."""
    numbers = range(GAMES_PER_FAMILY["train"])
    return frozenset(_goal_of(draw("train", family, number)) for number in numbers)


def _goal_of(spec: GameSpec) -> tuple[int, str, str]:
    return spec.scene, spec.target, spec.parent


def _owner(spec: GameSpec) -> str:
    """Who may use a goal in a layout that train and valid_seen share: one of them only."""
    drawn = stable_seed("alfworld", "owner", spec.scene, spec.family, spec.target, spec.parent)
    return "valid_seen" if drawn % 4 == 0 else "train"


def _draw_spec(rng: random.Random, family: str, kind: str, scene: int) -> GameSpec | None:
    room, layout = ROOMS[kind], layouts(kind)[scene]
    classes = [c for c in room.objects if _handled(family, c)]
    if not classes:
        return None
    target = rng.choice(classes)
    parents = sorted({r for r in layout if target in CONTAINS[r]} - {_device(family)})
    parent = "" if family == "look_at_obj_in_light" else rng.choice(parents)
    places = [i for i, r in enumerate(layout) if target in CONTAINS[r] and r != parent]
    if len(places) < 2:
        return None
    count = rng.randint(2, 3) if family == "pick_two_obj_and_place" else rng.randint(1, 2)
    objects = [(target, rng.choice(places)) for _ in range(count)]
    if family == "look_at_obj_in_light":
        lit = [i for i, r in enumerate(layout) if r in ("Desk", "SideTable", "Dresser", "Shelf")]
        objects.append((LAMP, rng.choice(lit)))
    for _ in range(rng.randint(8, 24)):
        other = rng.choice([c for c in room.objects if c != target])
        objects.append(
            (other, rng.choice([i for i, r in enumerate(layout) if other in CONTAINS[r]]))
        )
    sentence = rng.choice(_SENTENCES[family]).format(
        obj=target.lower(), recep=parent.lower(), toggle=LAMP.lower()
    )
    return GameSpec(family, room.first_scene + scene, target, parent, sentence,
                    _place(rng, layout), tuple(objects))  # fmt: skip


def _handled(family: str, name: str) -> bool:
    return family not in _CONDITIONS or name in _PROPERTIES[_CONDITIONS[family][0]]


def _device(family: str) -> str:
    return _CONDITIONS[family][2] if family in _CONDITIONS else ""


def _place(rng: random.Random, layout) -> tuple[tuple[str, int, bool], ...]:
    """Locations: now and then two neighbours of a class are reached from the same one."""
    placed: list[tuple[str, int, bool]] = []
    for name in layout:
        shared = placed and placed[-1][0] == name and rng.random() < 0.15
        location = placed[-1][1] if shared else len(placed) + 1
        placed.append((name, location, name in OPENABLE and rng.random() < 0.05))
    return tuple(placed)


# -- the files -------------------------------------------------------------------------------------
def problem(spec: GameSpec) -> str:
    """The PDDL problem, with ids in ALFRED's form."""
    rng = random.Random(stable_seed("alfworld", "ids", repr(spec)))
    receptacles = [_object_id(rng, name) for name, _, _ in spec.receptacles]
    objects = [_object_id(rng, name) for name, _ in spec.objects]
    spots = [_location_id(rng, n) for n in range(len(spec.receptacles) + 1)]
    types = sorted({name for name, _, _ in spec.receptacles})
    kinds = sorted({name for name, _ in spec.objects})
    facts = ["(= (total-cost) 0)", f"(atLocation agent1 {spots[0]})"]
    for found, (name, location, is_open) in zip(receptacles, spec.receptacles, strict=True):
        facts += [f"(receptacleType {found} {name}Type)",
                  f"(receptacleAtLocation {found} {spots[location]})"]  # fmt: skip
        facts += [f"(openable {found})"] * (name in OPENABLE) + [f"(opened {found})"] * is_open
    for found, (name, place) in zip(objects, spec.objects, strict=True):
        location = spots[spec.receptacles[place][1]]
        facts += [f"(objectType {found} {name}Type)", f"(inReceptacle {found} {receptacles[place]})",
                  f"(objectAtLocation {found} {location})"]  # fmt: skip
        facts += [f"(pickupable {found})"] * (name != LAMP)
        facts += [f"({p} {found})" for p, classes in _PROPERTIES.items() if name in classes]
    facts += [f"(canContain {r}Type {o}Type)" for r in types for o in kinds if o in CONTAINS[r]]
    used = sorted({spots[location] for _, location, _ in spec.receptacles} | {spots[0]})
    listed = (("agent1", "agent"), (" ".join(used), "location"),
              (" ".join(receptacles), "receptacle"), (" ".join(objects), "object"),
              (" ".join(f"{r}Type" for r in types), "rtype"),
              (" ".join(f"{o}Type" for o in kinds), "otype"))  # fmt: skip
    lines = "\n    ".join(f"{names} - {kind}" for names, kind in listed)
    return (
        f"(define (problem plan_{spec.scene})\n  (:domain alfred)\n  (:objects\n    {lines})\n"
        "  (:init\n    " + "\n    ".join(facts) + f")\n  (:goal {_goal(spec)})\n"
        "  (:metric minimize (total-cost)))\n"
    )


def _object_id(rng: random.Random, name: str) -> str:
    def coordinate() -> str:
        value = rng.randint(-999, 999)
        sign = "minus" if value < 0 else "plus"
        return f"_{sign}_{abs(value) // 100:02d}_dot_{abs(value) % 100:02d}"

    base = name.removesuffix("Basin")
    tail = f"_bar_{name}" if name != base else ""
    return f"{base}_bar_{coordinate()}_bar_{coordinate()}_bar_{coordinate()}{tail}"


def _location_id(rng: random.Random, number: int) -> str:
    turn, tilt = rng.randrange(4), rng.choice((0, 15, 30, 45, 60))
    return f"loc_bar__minus_{rng.randint(1, 9)}_bar_{number}_bar_{turn}_bar_{tilt}"


def _goal(spec: GameSpec) -> str:
    is_target = f"(objectType {{}} {spec.target}Type)"
    is_parent = f"(receptacleType ?r {spec.parent}Type)"
    if spec.family == "look_at_obj_in_light":
        return (
            "(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and"
            f" (objectType ?ot {LAMP}Type) (toggleable ?ot) (isToggled ?ot)"
            " (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))"
            f" (exists (?o - object ?a - agent) (and {is_target.format('?o')} (holds ?a ?o))))"
        )
    if spec.family == "pick_two_obj_and_place":
        return (
            f"(and (exists (?r - receptacle) (exists (?o1 - object) (and {is_target.format('?o1')}"
            f" {is_parent} (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2))"
            f" {is_target.format('?o2')} {is_parent} (inReceptacle ?o2 ?r)))))))"
        )
    able, done, _ = _CONDITIONS.get(spec.family, ("", "", ""))
    condition = f"({able} ?o) ({done} ?o) " if able else ""
    return (
        "(and (exists (?r - receptacle) (exists (?o - object) (and"
        f" {condition}{is_target.format('?o')} {is_parent} (inReceptacle ?o ?r)))))"
    )


@functools.cache
def _asset(name: str) -> str:
    return (resources.files("envs") / "assets" / "alfworld" / name).read_text(encoding="utf-8")


def game_data(spec: GameSpec) -> dict:
    """The JSON object of the game.tw-pddl file, without `solvable` and `walkthrough`."""
    return {
        "pddl_domain": _asset("alfred.pddl"),
        "grammar": _asset("alfred.twl2").replace("UNKNOWN GOAL", spec.sentence),
        "pddl_problem": problem(spec),
    }


def write_game(spec: GameSpec, folder: Path, walkthrough: list[str]) -> Path:
    """Writes game.tw-pddl and traj_data.json into `folder` as ALFWorld's loader expects them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "game.tw-pddl"
    data = {**game_data(spec), "solvable": True, "walkthrough": walkthrough}
    path.write_text(json.dumps(data), encoding="utf-8")
    trajectory = {
        "task_type": spec.family,
        "pddl_params": {
            "object_target": spec.target,
            "parent_target": spec.parent,
            "toggle_target": "" if spec.parent else LAMP,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "turk_annotations": {"anns": [{"task_desc": spec.sentence, "high_descs": []}]},
    }
    (folder / "traj_data.json").write_text(json.dumps(trajectory), encoding="utf-8")
    return path
