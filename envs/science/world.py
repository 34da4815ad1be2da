"""Things and rules of the `science` laboratory: rooms, substances, heat, circuits, plants, planes.

Commands and feedback have ScienceWorld's wording (as played in version 1.2.3). The physics is our
own and much simpler. A substance has one temperature, which approaches that of its surroundings by
Newton's law. There is one loop of wires. Plants have four stages. Blocks slide at constant speed.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import NamedTuple

AGENT = 0  # index of the agent among the things; the place of what it holds
NOWHERE = -2  # place of what was eaten, mixed or poured out
NOT_UNDERSTOOD = "No known action matches that input."
UNKNOWN = (
    "Unknown action.  Type 'help' for a list of actions, and 'objects' for a list of possible object"
    " referents."
)
_MENU = (
    "Ambiguous request: Please enter the number for the action you intended (or blank to cancel):"
)

ROOMS = (
    "hallway", "kitchen", "workshop", "greenhouse", "art studio", "living room", "outside",
)  # fmt: skip
DOORS = (
    ("hallway", "kitchen"), ("hallway", "workshop"), ("hallway", "greenhouse"),
    ("hallway", "art studio"), ("hallway", "living room"), ("kitchen", "outside"),
    ("greenhouse", "outside"),
)  # fmt: skip

# Substance -> melting and boiling point in degrees Celsius; None: the stove is too cold to boil it.
SUBSTANCES: dict[str, tuple[float, float | None]] = {
    "water": (0, 100), "milk": (-1, 101), "orange juice": (-2, 102), "apple juice": (-3, 103),
    "coffee": (-1, 100), "lemonade": (-3, 101), "tea": (-1, 100), "vinegar": (-2, 101),
    "tomato soup": (-4, 102), "ethanol": (-114, 78), "acetone": (-95, 56), "mercury": (-39, 357),
    "bromine": (-7, 59), "glycerol": (18, 290), "chocolate": (36, None), "butter": (33, None),
    "candle wax": (58, None), "gallium": (30, None), "caesium": (28, 671), "lead": (327, None),
    "tin": (232, None), "sulfur": (115, 445), "sugar": (186, None), "coconut oil": (24, None),
    "sodium": (98, None), "iodine": (114, 184), "sodium chloride": (801, None),
    "baking soda": (850, None), "soap": (54, None),
}  # fmt: skip
ROOM_TEMPERATURE = 10.0  # what ScienceWorld's thermometer reads in a kitchen
SOURCES = {"stove": (400.0, 0.03), "freezer": (-30.0, 0.04), "fridge": (4.0, 0.02)}
# Ingredients -> product of `mix`.
RECIPES: dict[frozenset[str], str] = {
    frozenset({"sodium chloride", "water"}): "salt water",
    frozenset({"soap", "water"}): "soapy water",
    frozenset({"sugar", "water"}): "sugar water",
    frozenset({"baking soda", "vinegar"}): "sodium acetate",
    frozenset({"coffee", "milk"}): "milk coffee",
    frozenset({"tea", "milk"}): "milk tea",
    frozenset({"orange juice", "apple juice"}): "fruit punch",
    frozenset({"lemonade", "tea"}): "iced tea",
    frozenset({"sugar", "milk"}): "sweet milk",
}
PAINTS: dict[frozenset[str], str] = {
    frozenset({"red paint", "blue paint"}): "violet paint",
    frozenset({"red paint", "yellow paint"}): "orange paint",
    frozenset({"blue paint", "yellow paint"}): "green paint",
    frozenset({"red paint", "white paint"}): "pink paint",
    frozenset({"blue paint", "white paint"}): "light blue paint",
    frozenset({"black paint", "white paint"}): "grey paint",
    frozenset({"black paint", "red paint"}): "brown paint",
}
STAGES = ("seed", "seedling", "adult", "reproducing")
STAGE_TICKS = 4
POD_TICKS = 3
_TERMINALS = {"battery": ("anode", "cathode"), "bulb": ("anode", "cathode")}
_WIRE_TERMINALS = ("terminal 1", "terminal 2")


class Kind(NamedTuple):
    """What all things of a kind have in common."""

    holds: bool = False  # other things can be put there
    moveable: bool = True
    openable: bool = False
    device: bool = False
    conducts: bool = True


KINDS = {
    "agent": Kind(holds=True, moveable=False),
    "room": Kind(holds=True, moveable=False),
    "surface": Kind(holds=True, moveable=False),
    "cabinet": Kind(holds=True, moveable=False, openable=True),
    "stove": Kind(holds=True, moveable=False, device=True),
    "basin": Kind(holds=True, moveable=False, device=True),
    "fountain": Kind(holds=True, moveable=False),
    "container": Kind(holds=True),
    "pot": Kind(holds=True),
    "hive": Kind(moveable=False, openable=True),
    "substance": Kind(),
    "paint": Kind(),
    "product": Kind(),
    "soil": Kind(),
    "seed": Kind(),
    "plant": Kind(moveable=False),
    "tree": Kind(moveable=False),
    "animal": Kind(),
    "object": Kind(),
    "recipe": Kind(),
    "thermometer": Kind(),
    "battery": Kind(),
    "wire": Kind(),
    "bulb": Kind(),
    "sample": Kind(),
    "block": Kind(),
    "plane": Kind(holds=True, moveable=False),
}
LIQUIDS = ("paint", "product")


class Thing(NamedTuple):
    """One thing.

    Attributes:
      name: its name; of a substance, without the state of matter.
      kind: one of KINDS.
      place: index of what it is in, on, or held by; -1 for rooms, NOWHERE if it is gone.
      flag: cabinets and hives: open; devices: switched on.
      temperature: of substances, in degrees Celsius.
      stage: of seeds and plants, index into STAGES.
      clock: ticks in the stage; for a block, the percentage of the plane that it has slid down.
    """

    name: str
    kind: str
    place: int
    flag: bool = False
    temperature: float = ROOM_TEMPERATURE
    stage: int = 0
    clock: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """What is fixed during an episode. It is made from the task id, so states need not hold it.

    Attributes:
      family: task type.
      description: the sentences that state the task.
      things: all things at the start; the agent first, then the rooms.
      required: goals to reach in this order, see envs/science/goals.py.
      optional: goals that add to the score, in any order.
      fatal: goals that fail the task if they are reached.
      melting: melting points of substances that are not in SUBSTANCES.
      samples: name -> conductivity, or fixed temperature.
      speeds: name of a plane -> percent per tick that a block slides.
      traits: name of a plant -> how it looks when grown, such as "with a tall height".
      recipe: the text of the recipe, "" if there is none.
    """

    family: str
    description: str
    things: tuple[Thing, ...]
    required: tuple[tuple, ...]
    optional: tuple[tuple, ...] = ()
    fatal: tuple[tuple, ...] = ()
    melting: dict[str, float] = dataclasses.field(default_factory=dict)
    samples: dict[str, float] = dataclasses.field(default_factory=dict)
    speeds: dict[str, int] = dataclasses.field(default_factory=dict)
    traits: dict[str, str] = dataclasses.field(default_factory=dict)
    recipe: str = ""

    def points(self, name: str) -> tuple[float, float | None]:
        """Melting and boiling point."""
        return SUBSTANCES[name] if name in SUBSTANCES else (self.melting[name], None)


def phase(world: World, thing: Thing) -> str:
    """Solid, liquid or gaseous."""
    melting, boiling = world.points(thing.name)
    if thing.temperature < melting:
        return "solid"
    return "liquid" if boiling is None or thing.temperature < boiling else "gaseous"


_WATER = {"solid": "ice", "liquid": "water", "gaseous": "steam"}
# The state of matter is part of a substance's name only if it is not this one.
_USUALLY = {
    name: "solid" if melting > ROOM_TEMPERATURE else "liquid"
    for name, (melting, _) in SUBSTANCES.items()
}


def called(world: World, thing: Thing) -> str:
    """The name with the state: ice, liquid lead, pea plant in the adult stage."""
    if thing.kind == "substance":
        state = phase(world, thing)
        if thing.name == "water":
            return _WATER[state]
        return thing.name if state == _USUALLY.get(thing.name) else f"{state} {thing.name}"
    if thing.kind == "seed" and thing.stage:
        text = f"{thing.name[:-5]} plant in the {STAGES[thing.stage]} stage"
        trait = world.traits.get(thing.name)
        return f"{text} {trait}" if trait and thing.stage >= 2 else text
    if thing.kind == "plant":
        return f"{thing.name} in the reproducing stage {world.traits[thing.name]}"
    return thing.name


@functools.lru_cache(maxsize=65536)
def referents(name: str, shown: str, kind: str) -> tuple[str, ...]:
    """The names of a thing in commands, in lower case: full names, "", short names."""
    full = [shown.lower(), name.lower()]
    if kind == "seed" and shown != name:
        full.append(f"{name[:-5]} plant")
        full.remove(name.lower())
    short = {shown.lower().rpartition(" ")[2], name.lower().rpartition(" ")[2]}
    if kind == "substance":
        short.add("substance")
    return (*dict.fromkeys(full), "", *sorted(short))


def article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


# -- commands --------------------------------------------------------------------------------------
_NO_OBJECT = {
    "look around": "look around", "look": "look around", "inventory": "inventory",
    "task": "task", "wait": "wait", "wait1": "wait1",
}  # fmt: skip
_ONE_OBJECT = (
    ("pick up ", "pick up"), ("get ", "pick up"), ("take ", "pick up"), ("put down ", "put down"),
    ("drop ", "put down"), ("look in ", "look in"), ("look at ", "look at"), ("look on ", "look at"),
    ("examine ", "look at"), ("focus on ", "focus on"), ("focus ", "focus on"), ("open ", "open"),
    ("close ", "close"), ("activate ", "activate"), ("turn on ", "activate"),
    ("deactivate ", "deactivate"), ("turn off ", "deactivate"), ("read ", "read"),
    ("eat ", "eat"), ("consume ", "eat"), ("mix ", "mix"), ("stir ", "mix"),
    ("disconnect ", "disconnect"), ("go to ", "go to"), ("go through ", "go to"), ("go ", "go to"),
    ("teleport to ", "teleport to"), ("teleport ", "teleport to"),
)  # fmt: skip
_TWO_OBJECTS = (
    ("move ", (" to ", " into ", " in ", " on "), "move"),
    ("put ", (" to ", " into ", " in ", " on "), "move"),
    ("pour ", (" into ", " in ", " on "), "pour"),
    ("dunk ", (" into ", " in "), "dunk"),
    ("use ", (" on ", " with "), "use"),
    ("connect ", (" to ",), "connect"),
)
_SPACES = re.compile(r"\s+")


def readings(action: str) -> list[tuple[str, str, str]]:
    """(verb, first object, second object) for each way to parse the action; objects are texts."""
    text = _SPACES.sub(" ", action.strip().lower())
    if text in _NO_OBJECT:
        return [(_NO_OBJECT[text], "", "")]
    for prefix, verb in _ONE_OBJECT:
        if text.startswith(prefix):
            return [(verb, text[len(prefix) :], "")]
    for prefix, separators, verb in _TWO_OBJECTS:
        if text.startswith(prefix):
            rest = text[len(prefix) :]
            return [
                (verb, rest[: found.start()], rest[found.end() :])
                for separator in separators
                for found in re.finditer(re.escape(separator), rest)
            ]
    return []


def menu(lines: list[str]) -> str:
    numbered = "\n".join(f"{number}:\t{line}" for number, line in enumerate(lines))
    return f"{_MENU}\n{numbered}\n"


def terminals(kind: str) -> tuple[str, ...]:
    """Names of the two terminals of a thing; () if it has none."""
    if kind in ("wire", "sample"):
        return _WIRE_TERMINALS
    return _TERMINALS.get(kind, ())
