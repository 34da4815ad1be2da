"""The scripted players of houses (`household`, `alfworld`) and their bad habits.

A player searches the receptacles in the order in which the room lists them, and remembers what it
has seen.

    habit    unaware player                                   experience that mends it
    closed   walks past closed receptacles while searching    open what is closed.
    target   moves things into a closed target                open the {target} first.
    clean    brings the object without cleaning it            clean it with the sinkbasin 1 first.
    heat     leaves the object in the microwave               heat it with the microwave 1.
    cool     tries to cool it in the sink, then gives up      cool it with the fridge 1.
    lamp     examines the object in the dark                  carry it to the desklamp 1 and use that.
    second   stops after the first of two objects             look for another {object}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

from envs.household.environment import APPLIANCE, OPENABLE, class_of

HABITS = ("closed", "target", "clean", "heat", "cool", "lamp", "second")
GIVE_UP = "inventory"
GOAL = r"Your task is to:.*"  # tokenized word by word, so that new goals can be read


class House(Protocol):
    """What the task and the first observation say; see household.environment.Room."""

    family: str
    object_class: str
    target_class: str
    receptacles: Sequence[str]


class Situation(Protocol):
    """The current situation; see household.environment.HouseholdState."""

    location: str
    holding: str
    opened: frozenset[str]
    cleaned: frozenset[str]
    hot: frozenset[str]
    cool: frozenset[str]


def names(classes: Iterable[str]) -> str:
    """A regular expression for objects and receptacles with their numbers (` mug 2`)."""
    return rf" ?\b(?:{'|'.join(sorted(classes))}) \d+"


def shut(state: Situation) -> bool:
    """True if the agent is at something closed."""
    here = state.location
    return bool(here) and class_of(here) in OPENABLE and here not in state.opened


def advice(habit: str, room: House) -> str:
    """The experience text e that makes a player aware of `habit`."""
    return {
        "closed": "open what is closed.",
        "target": "open the {target} first.",
        "clean": "clean it with the sinkbasin 1 first.",
        "heat": "heat it with the microwave 1.",
        "cool": "cool it with the fridge 1.",
        "lamp": "carry it to the desklamp 1 and use that.",
        "second": "look for another {object}.",
    }[habit].format(target=room.target_class, object=room.object_class)


@dataclasses.dataclass
class Memory:
    """What a text player knows after some steps.

    Attributes:
      visited: receptacles in the order of first arrival.
      seen: where each object was last seen.
    """

    visited: list[str] = dataclasses.field(default_factory=list)
    seen: dict[str, str] = dataclasses.field(default_factory=dict)

    def arrive(self, here: str, names: Sequence[str] | None, holding: str) -> None:
        """Adds the place of the agent and what it sees there; None: it sees nothing there."""
        if here not in self.visited:
            self.visited.append(here)
        if names is None:
            return
        self.seen = {name: place for name, place in self.seen.items() if place != here}
        for name in names:
            self.seen[name] = here
        self.seen.pop(holding, None)


def decide(
    room: House, state: Situation, memory: Memory, aware: frozenset[str]
) -> tuple[str, str | None]:
    """The player's next action and the habit that it depends on (None: any player does the same)."""
    here, held = state.location, state.holding
    closed = shut(state)
    target = next((r for r in room.receptacles if class_of(r) == room.target_class), "")
    if held and class_of(held) == room.object_class:
        return _carrying(room, state, memory, aware, target, closed)
    if held:  # another object in hand: put it down here
        return (f"open {here}", None) if closed else (f"move {held} to {here}", None)

    placed = [n for n, place in memory.seen.items() if _is_goal_object(room, n) and place == target]
    if room.family == "two" and placed and "second" not in aware:
        return GIVE_UP, "second"
    habit = "second" if room.family == "two" and placed else None
    if placed and room.family != "two":
        return _unfinished(room, state, placed[0], target, aware)
    wanted = sorted(
        (n for n, place in memory.seen.items() if _is_goal_object(room, n) and place != target)
    )
    if wanted:
        place = memory.seen[wanted[0]]
        if room.family == "heat" and place == "microwave 1":
            habit = "heat"
            if "heat" not in aware:
                return GIVE_UP, habit  # believes that lying in the microwave is enough
        if here == place:
            return f"take {wanted[0]} from {place}", habit
        return f"go to {place}", habit
    if closed and here != target and "closed" in aware:
        return f"open {here}", "closed"
    action = _next_receptacle(room, memory, target)
    return action, "closed" if closed and here != target else habit


def _is_goal_object(room: House, name: str) -> bool:
    return class_of(name) == room.object_class


def _next_receptacle(room: House, memory: Memory, target: str) -> str:
    """The next receptacle in listed order; the target is not searched."""
    for place in room.receptacles:
        if place not in memory.visited and place != target:
            return f"go to {place}"
    return GIVE_UP


def _carrying(
    room: House,
    state: Situation,
    memory: Memory,
    aware: frozenset[str],
    target: str,
    closed: bool,
) -> tuple[str, str | None]:
    """With the goal object in hand: treat it as the family asks, then bring it to the target."""
    here, held, family = state.location, state.holding, room.family
    treated = {"clean": state.cleaned, "heat": state.hot, "cool": state.cool}
    if family in treated and held not in treated[family]:
        device = APPLIANCE[family]
        if family in aware:
            if here == device:
                return f"{family} {held} with {device}", family
            return f"go to {device}", family if family != "heat" else None
        if family == "heat":
            if here != device:
                return f"go to {device}", None
            return (f"open {device}" if closed else f"move {held} to {device}"), "heat"
        if family == "cool":
            if here != "sinkbasin 1":
                return "go to sinkbasin 1", "cool"
            return f"cool {held} with sinkbasin 1", "cool"
    if family == "look":
        if "lamp" not in aware:
            return f"examine {held}", "lamp"
        lamp = memory.seen.get("desklamp 1")
        if lamp is None:
            return _next_receptacle(room, memory, ""), "lamp"
        return ("use desklamp 1" if here == lamp else f"go to {lamp}"), "lamp"
    habit = family if family == "clean" and held not in state.cleaned else None
    if here != target:
        return f"go to {target}", habit
    if closed:
        return (f"open {target}" if "target" in aware else f"move {held} to {target}"), "target"
    return f"move {held} to {target}", habit


def _unfinished(
    room: House, state: Situation, name: str, target: str, aware: frozenset[str]
) -> tuple[str, str | None]:
    """The object is at the target, but the task is not done: it was not treated before."""
    if room.family in aware:
        if state.location != target:
            return f"go to {target}", room.family
        return f"take {name} from {target}", room.family
    return GIVE_UP, room.family if room.family in APPLIANCE else None
