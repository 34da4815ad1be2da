"""How a world of each `science` task type is drawn: the house, its things, the goals of the task.

Goals are tuples, see envs/science/goals.py. `required` goals count in their order; reaching all of
them is success. An answer counts only after the experiment: ScienceWorld lets a player guess between
two boxes, but here a required goal asks for the measurement first.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from envs.science.world import (
    NOWHERE,
    PAINTS,
    RECIPES,
    ROOMS,
    SUBSTANCES,
    Thing,
    World,
    article,
)

BOXES = ("red", "green", "blue", "orange", "yellow", "purple")
_LIVING = ("animal", "tree", "seed", "plant")
_NOT_LIVING = ("object", "container", "thermometer", "wire", "battery", "bulb", "recipe")
# Typical life spans in years, so far apart that their order is undisputed.
LIFE_SPANS = {
    "butterfly": 0.1, "dragonfly": 0.5, "mouse": 2, "hamster": 3, "rabbit": 9, "wolf": 14,
    "brown bear": 25, "chimpanzee": 40, "elephant": 60, "giant tortoise": 120,
}  # fmt: skip
AGES = ("baby", "young", "adult")
THINGS = ("hammer", "candle", "brick", "umbrella", "key", "bottle")
_PLANTS = ("apple", "orange", "peach", "lemon", "cherry", "avocado", "banana", "pea", "tomato",
           "pepper")  # fmt: skip
_CONDUCTS = {
    "metal fork": 1, "copper coin": 1, "aluminum foil": 1, "steel spoon": 1, "iron nail": 1,
    "gold ring": 1, "plastic comb": 0, "glass marble": 0, "rubber ball": 0, "wooden ruler": 0,
    "paper sheet": 0, "ceramic tile": 0,
}  # fmt: skip
_TRAITS = (  # the trait, and its two values with the words that describe a plant
    ("plant height", "tall", "with a tall height", "short", "with a short height"),
    ("flower color", "purple", "with purple flowers", "white", "with white flowers"),
    ("seed shape", "round", "with round seeds", "wrinkly", "with wrinkly seeds"),
    ("seed color", "green", "with green seeds", "yellow", "with yellow seeds"),
)


# -- the house -------------------------------------------------------------------------------------
class House:
    """A list of things to add to; it begins with rooms and furniture."""

    def __init__(self, start: str):
        self.things = [Thing("agent", "agent", 1 + ROOMS.index(start))]
        self.things += [Thing(room, "room", -1) for room in ROOMS]
        for name, kind, place in (
            ("picture", "object", "hallway"), ("counter", "surface", "kitchen"),
            ("table", "surface", "kitchen"), ("cupboard", "cabinet", "kitchen"),
            ("fridge", "cabinet", "kitchen"), ("freezer", "cabinet", "kitchen"),
            ("stove", "stove", "kitchen"), ("sink", "basin", "kitchen"),
            ("workbench", "surface", "workshop"), ("sink", "basin", "greenhouse"),
            ("desk", "surface", "living room"), ("book", "object", "desk"),
            ("large cupboard", "cabinet", "art studio"), ("easel", "surface", "art studio"),
            ("fountain", "fountain", "outside"), ("water", "substance", "fountain"),
            ("oak tree", "tree", "outside"), ("metal pot", "container", "cupboard"),
        ):  # fmt: skip
            self.add(name, kind, place)

    def add(self, name: str, kind: str, place: str | int, **more: object) -> int:
        """Adds a thing, returns its index; `place` is an index, or a name (the last such thing)."""
        if isinstance(place, str):
            place = max(i for i, thing in enumerate(self.things) if thing.name == place)
        self.things.append(Thing(name, kind, place, **more))
        return len(self.things) - 1

    def filled(self, container: str, name: str, place: str, **more: object) -> None:
        """Adds a container with a substance in it."""
        self.add(name, "substance", self.add(container, "container", place), **more)


def _boxes(house: House, rng: random.Random, room: str) -> tuple[str, str]:
    first, second = _pick(rng, BOXES, 2)
    house.add(f"{first} box", "container", room)
    house.add(f"{second} box", "container", room)
    return f"{first} box", f"{second} box"


def _pick(rng: random.Random, values, count: int) -> list:
    """`count` different values; random.sample may differ between Python versions."""
    pool = list(values)
    return [pool.pop(rng.randrange(len(pool))) for _ in range(count)]


def _one(rng: random.Random, values):
    return values[rng.randrange(len(values))]


def _start(rng: random.Random) -> str:
    return _one(rng, ROOMS)


# -- drawing ---------------------------------------------------------------------------------------
CUPS = ("glass cup", "tin cup", "ceramic cup", "wood cup")
_SHELVES = ("table", "counter", "cupboard", "workbench", "desk")
_MELTABLE = ("water", "chocolate", "butter", "candle wax", "gallium", "caesium", "lead", "tin",
             "sulfur", "sugar", "coconut oil", "sodium", "glycerol")  # fmt: skip
_BOILABLE = ("water", "milk", "orange juice", "apple juice", "coffee", "lemonade", "tea",
             "tomato soup", "ethanol", "acetone", "bromine")  # fmt: skip
_FREEZABLE = ("water", "milk", "orange juice", "apple juice", "coffee", "lemonade", "tea",
              "vinegar", "tomato soup", "bromine")  # fmt: skip


def _draw_phase(family: str, rng: random.Random) -> World:
    house = House(_start(rng))
    verb, names, wanted, device, start = {
        "boil": ("boil", _BOILABLE, "gaseous", "stove", "liquid"),
        "melt": ("melt", _MELTABLE, "liquid", "stove", "solid"),
        "freeze": ("freeze", _FREEZABLE, "solid", "freezer", "liquid"),
    }[family]
    name = _one(rng, names)
    cup = _one(rng, CUPS)
    if name == "water" and start == "liquid":
        house.add(cup, "container", _one(rng, _SHELVES))
    elif name == "water":
        house.filled(cup, name, "freezer", temperature=-12.0)
    else:
        house.filled(cup, name, _one(rng, (*_SHELVES, "fridge")))
    house.add("thermometer", "thermometer", _one(rng, ("table", "counter")))
    shown = "ice" if family == "melt" and name == "water" else name
    return World(
        family,
        f"Your task is to {verb} {shown}. First, focus on the substance. Then, take actions that"
        " will cause it to change its state of matter.",
        tuple(house.things),
        (("focus", name), ("focus-phase", wanted)),
        (("at", "kitchen"), ("focus-near", device), ("running", device), ("measured-focus",)),
    )


def _draw_thermometer(family: str, rng: random.Random) -> World:
    house = House(_start(rng))
    name = f"unknown substance {_one(rng, 'ABCDEFGH')}"
    limit = _one(rng, (0, 50, 100, 200))
    warmer = rng.random() < 0.5
    temperature = limit + (1 if warmer else -1) * (5 + rng.randrange(60))
    room, answers = _pick(rng, ROOMS, 2)
    house.add(name, "sample", room)
    house.add("thermometer", "thermometer", _one(rng, ("table", "counter", "cupboard", "desk")))
    above, below = _boxes(house, rng, answers)
    right, wrong = (above, below) if warmer else (below, above)
    return World(
        family,
        f"Your task is to measure the temperature of {name}, which is located around the {room}."
        f" First, focus on the thermometer. Next, focus on the {name}. If the {name} temperature is"
        f" above {limit:.1f} degrees celsius, place it in the {above}. If the {name} temperature is"
        f" below {limit:.1f} degrees celsius, place it in the {below}. The boxes are located around"
        f" the {answers}.",
        tuple(house.things),
        (("focus", "thermometer"), ("focus", name), ("measured", name), ("in", name, right)),
        (("held", "thermometer"), ("held", name), ("at", answers)),
        (("in", name, wrong),),
        samples={name: temperature},
    )


def _draw_melting_point(family: str, rng: random.Random) -> World:
    house = House(_start(rng))
    name = f"unknown substance {_one(rng, 'ABCDEFGH')}"
    limit = _one(rng, (80, 100, 150, 200))
    higher = rng.random() < 0.5
    melting = limit + (1 if higher else -1) * (15 + rng.randrange(45))
    house.filled(_one(rng, CUPS), name, _one(rng, ("table", "counter", "cupboard", "fridge")))
    house.add("thermometer", "thermometer", _one(rng, ("table", "counter", "cupboard")))
    above, below = _boxes(house, rng, "kitchen")
    return World(
        family,
        f"Your task is to measure the melting point of {name}, which is located around the kitchen."
        f" First, focus on the thermometer. Next, focus on the {name}. If the melting point of"
        f" {name} is above {limit:.1f} degrees celsius, focus on the {above}. If the melting point of"
        f" {name} is below {limit:.1f} degrees celsius, focus on the {below}. The boxes are located"
        " around the kitchen.",
        tuple(house.things),
        (
            ("focus", "thermometer"), ("focus", name), ("phase", name, "liquid"),
            ("measured", name), ("focus", above if higher else below),
        ),
        (("held", "thermometer"), ("near", name, "stove"), ("running", "stove")),
        melting={name: melting},
    )  # fmt: skip


def _draw_conductivity(family: str, rng: random.Random) -> World:
    house = House(_start(rng))
    if rng.random() < 0.5:
        name = _one(rng, sorted(_CONDUCTS))
        conducts = _CONDUCTS[name]
    else:
        name = f"unknown substance {_one(rng, 'ABCDEFGH')}"
        conducts = rng.randrange(2)
    room = _one(rng, ("workshop", "workshop", "living room", "art studio"))
    house.add(name, "sample", room)
    house.add("battery", "battery", "workbench")
    for color in _pick(rng, ("black", "blue", "orange", "red", "yellow"), 3):
        house.add(f"{color} wire", "wire", "workbench")
    house.add(f"{_one(rng, BOXES)} light bulb", "bulb", "workbench")
    yes, no = _boxes(house, rng, "workshop")
    right, wrong = (yes, no) if conducts else (no, yes)
    return World(
        family,
        f"Your task is to determine if {name} is electrically conductive. The {name} is located"
        f" around the {room}. First, focus on the {name}. If it is electrically conductive, place it"
        f" in the {yes}. If it is electrically nonconductive, place it in the {no}. The boxes are"
        " located around the workshop.",
        tuple(house.things),
        (("focus", name), ("tested", name), ("in", name, right)),
        (("at", "workshop"), ("linked", "battery"), ("linked", name), ("lit-loop", name)),
        (("in", name, wrong),),
        samples={name: conducts},
    )


def _draw_find(family: str, rng: random.Random) -> World:
    house = House(_start(rng))
    for animal in _pick(rng, sorted(LIFE_SPANS), 3):
        house.add(f"{_one(rng, AGES)} {animal}", "animal", "outside")
    for thing in _pick(rng, THINGS, 3):
        house.add(thing, "object", _one(rng, ("living room", "workshop", "outside", "desk")))
    room = _one(rng, tuple(r for r in ROOMS if r != "outside"))
    box = f"{_one(rng, BOXES)} box"
    house.add(box, "container", room)
    living = family == "find-living-thing"
    return World(
        family,
        f"Your task is to find a(n) {'living' if living else 'non-living'} thing. First, focus on"
        f" the thing. Then, move it to the {box} in the {room}.",
        tuple(house.things),
        (("focus-kind", _LIVING if living else _NOT_LIVING), ("focus-in", box)),
        (("focus-held",), ("at", room)),
    )


def _draw_grow(family: str, rng: random.Random) -> World:
    house = House(_start(rng))
    plant = _one(rng, _PLANTS)
    jar = house.add("seed jar", "container", _one(rng, ("kitchen", "table", "counter", "cupboard")))
    house.add(f"{plant} seed", "seed", jar)
    house.add("jug", "container", _one(rng, ("greenhouse", "workbench", "easel")))
    for number in range(1, 4):
        pot = house.add(f"flower pot {number}", "pot", "greenhouse")
        house.add("soil", "soil", pot)
    seed = f"{plant} seed"
    return World(
        family,
        f"Your task is to grow {article(plant)} plant from seed. Seeds can be found in the kitchen."
        " First, focus on a seed. Then, make changes to the environment that grow the plant until it"
        " reaches the reproduction life stage.",
        tuple(house.things),
        (("focus", seed), *(("stage", seed, stage) for stage in (1, 2, 3))),
        (("at", "greenhouse"), ("held", seed), ("in-kind", seed, "pot"), ("in", "water", "jug")),
    )


def _draw_mix(family: str, rng: random.Random) -> World:
    house = House(_start(rng))
    ingredients, product = _one(rng, sorted((sorted(k), v) for k, v in RECIPES.items()))
    cups = _pick(rng, (*CUPS, "glass jar"), 3)
    for cup, name in zip(cups, ingredients, strict=False):
        house.filled(cup, name, _one(rng, ("table", "counter", "cupboard", "fridge")))
    others = [n for n in ("olive", "milk", "soap", "sugar", "lemonade") if n in SUBSTANCES]
    house.filled(cups[2], _one(rng, [n for n in others if n not in ingredients]), "counter")
    house.add("recipe", "recipe", "kitchen")
    return World(
        family,
        f"Your task is to use chemistry to create the substance '{product}'. A recipe and some of"
        f" the ingredients might be found near the kitchen. When you are done, focus on the"
        f" {product}.",
        tuple(house.things),
        (("exists", product), ("focus", product)),
        (("at", "kitchen"), ("read",), ("together", *ingredients)),
        recipe=f"To make {product}, you need to mix {', '.join(ingredients)}.",
    )


def _draw_paint(family: str, rng: random.Random) -> World:
    house = House(_start(rng))
    parts, product = _one(rng, sorted((sorted(k), v) for k, v in PAINTS.items()))
    colors = sorted({color for mixed in PAINTS for color in mixed} - set(parts))
    paints = [*parts, *_pick(rng, colors, 1 + rng.randrange(2))]
    for number, paint in enumerate(_pick(rng, paints, len(paints))):
        cup = house.add(f"{CUPS[number]}", "container", _one(rng, ("art studio", "large cupboard")))
        house.add(paint, "paint", cup)
    house.add("jug", "container", _one(rng, ("easel", "large cupboard", "art studio")))
    return World(
        family,
        f"Your task is to use chemistry to create {product}. When you are done, focus on the"
        f" {product}.",
        tuple(house.things),
        (("exists", product), ("focus", product)),
        (("at", "art studio"), ("together", *parts)),
    )


def _draw_lifespan(family: str, rng: random.Random) -> World:
    house = House("outside")
    animals = _pick(rng, sorted(LIFE_SPANS), 3 + rng.randrange(2))
    names = {animal: f"{_one(rng, AGES)} {animal}" for animal in animals}
    for name in names.values():
        house.add(name, "animal", "outside")
    longest = family == "lifespan-longest-lived"
    best = (max if longest else min)(animals, key=LIFE_SPANS.__getitem__)
    word = "longest" if longest else "shortest"
    return World(
        family,
        f"Your task is to find the animal with the {word} life span.  The animals are in the"
        f" 'outside' location.  Focus on the animal with the {word} life span.",
        tuple(house.things),
        (("focus", names[best]),),
        tuple(("looked", name) for name in names.values()),
    )


def _draw_plane(family: str, rng: random.Random) -> World:
    house = House(_start(rng))
    names = [f"inclined plane {letter}" for letter in _pick(rng, "ABCDEFGH", 2)]
    speeds = _pick(rng, (3, 5, 7, 9, 12, 15), 2)
    for name in names:
        house.add(name, "plane", "workshop")
    block = f"{_one(rng, ('wood', 'steel', 'ice cream', 'plastic'))} block"
    house.add(block, "block", _one(rng, ("workshop", "workbench")))
    steepest = rng.random() < 0.5
    best = names[(speeds[0] < speeds[1]) == steepest]
    word = "steepest" if steepest else "shallowest"
    letters = ", ".join(name[-1] for name in names)
    return World(
        family,
        f"Your task is to determine which of the two inclined planes ({letters}) has the {word}"
        " angle. After completing your experiment, focus on the inclined plane with the"
        f" {word} angle.",
        tuple(house.things),
        (("experiments", 2), ("focus", best)),
        (("slid", names[0]), ("slid", names[1]), ("at", "workshop")),
        speeds=dict(zip(names, speeds, strict=True)),
    )


def _draw_mendel(family: str, rng: random.Random) -> World:
    house = House(_start(rng))
    species = "pea" if rng.random() < 0.4 else f"unknown {_one(rng, 'ABCDEFGH')}"
    what, *values = _one(rng, _TRAITS)
    forms = {values[0]: values[1], values[2]: values[3]}
    words = _pick(rng, sorted(forms), 2)
    dominant = _one(rng, words)
    if species == "pea":  # as Mendel found
        dominant = {"plant height": "tall", "flower color": "purple", "seed shape": "round",
                    "seed color": "yellow"}[what]  # fmt: skip
    parents = [f"{species} plant 1", f"{species} plant 2"]
    for number in range(1, 4):
        pot = house.add(f"flower pot {number}", "pot", "greenhouse")
        house.add("soil", "soil", pot)
        house.add("water", "substance", pot)
        if number < 3:
            house.add(parents[number - 1], "plant", pot)
    house.add("bee hive", "hive", "greenhouse")
    seed = f"{species} seed"
    house.add(seed, "seed", NOWHERE)
    yes, no = _boxes(house, rng, "greenhouse")
    asked = _one(rng, words)
    return World(
        family,
        f"Your task is to determine whether {asked} {what} is a dominant or recessive trait in the"
        f" {species} plant. If the trait is dominant, focus on the {yes}. If the trait is recessive,"
        f" focus on the {no}.",
        tuple(house.things),
        (("stage", seed, 2), ("focus", yes if asked == dominant else no)),
        (("at", "greenhouse"), ("running", "bee hive"), ("held", seed), ("stage", seed, 1)),
        traits={
            **dict(zip(parents, (forms[w] for w in words), strict=True)),
            seed: forms[dominant],
        },
    )


FAMILIES: dict[str, Callable[[str, random.Random], World]] = {
    "boil": _draw_phase,
    "melt": _draw_phase,
    "freeze": _draw_phase,
    "use-thermometer": _draw_thermometer,
    "measure-melting-point": _draw_melting_point,
    "test-conductivity": _draw_conductivity,
    "find-living-thing": _draw_find,
    "find-non-living-thing": _draw_find,
    "grow-plant": _draw_grow,
    "chemistry-mix": _draw_mix,
    "mix-paint": _draw_paint,
    "lifespan-longest-lived": _draw_lifespan,
    "lifespan-shortest-lived": _draw_lifespan,
    "inclined-plane": _draw_plane,
    "mendelian-genetics": _draw_mendel,
}
