"""The player of generated ALFWorld games; it uses the text alone.

Its habits are those of envs/household/house_player.py, but one is worse. Rooms are larger here and most
receptacles are open. A player that only walked past closed ones would often find the object elsewhere.
So a player unaware of `closed` stays at the first closed receptacle that it meets and examines it.
"""

from __future__ import annotations

import dataclasses
import random
import re

from envs.alfworld.environment import AlfworldState
from envs.alfworld.games import CLASSES
from envs.household import house_player as house
from envs.player import Player

_NAME = re.compile(r"\ban? ([a-z]+ \d+)")
_ARRIVED = re.compile(r"You arrive at (.+?)\. ")
_FAMILIES = {
    "pick_and_place_simple": "pick",
    "look_at_obj_in_light": "look",
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
    "pick_two_obj_and_place": "two",
}


@dataclasses.dataclass(frozen=True)
class _Task:
    """What the goal and the first observation say; see house.House."""

    family: str
    object_class: str
    target_class: str
    receptacles: tuple[str, ...]


@dataclasses.dataclass
class _Memory(house.Memory):
    """What was read so far, and the situation that follows from it; see house.Situation.

    Attributes:
      unread: the agent is at a receptacle whose contents it has not read.
    """

    task: _Task | None = None
    location: str = ""
    holding: str = ""
    opened: frozenset[str] = frozenset()
    cleaned: frozenset[str] = frozenset()
    hot: frozenset[str] = frozenset()
    cool: frozenset[str] = frozenset()
    unread: bool = False


class AlfworldPlayer(Player):
    """The player of `alfworld`; see the module docstring.

    Raises:
      EnvDataError: on first use, if the environment plays official files. People worded their goals,
        and their rooms are too large for the corpus.
    """

    habits = house.HABITS
    units = house.names(name.lower() for name in CLASSES)
    spelt = house.GOAL

    def _task(self, task_id: str, observation: str = "") -> _Task:
        spec = self.env.spec(task_id)
        listed = observation.partition("Your task is to:")[0]
        return _Task(
            _FAMILIES[spec.family],
            spec.target.lower(),
            spec.parent.lower(),
            tuple(_NAME.findall(listed)),
        )

    def start(self, task_id: str, observation: str) -> _Memory:
        return _Memory(task=self._task(task_id, observation))

    def update(self, memory: _Memory, action: str, state: AlfworldState, observation: str) -> None:
        verb, _, rest = action.partition(" ")
        if observation == "Nothing happens.":
            place = rest.removeprefix("to ")
            # Some receptacles share a place. Going from one to the other gives no description.
            if verb == "go" and place in memory.task.receptacles and place != memory.location:
                memory.location = place
                shut = house.shut(memory)
                memory.unread = not shut and place not in memory.visited
                memory.arrive(place, None, memory.holding)
            elif verb == "open" and rest == memory.location:  # it has been open all along
                memory.opened |= {rest}
                memory.unread = True
            return
        arrived = _ARRIVED.match(observation)
        if arrived:
            memory.location = arrived.group(1)
        here = memory.location
        if " is open. In it" in observation:
            memory.opened |= {here}
        elif observation.startswith("You close the"):
            memory.opened -= {here}
        elif observation.startswith("You pick up the"):
            memory.holding = rest.partition(" from ")[0]
            memory.seen.pop(memory.holding, None)
        elif observation.startswith("You move the"):
            memory.seen[memory.holding] = here
            memory.holding = ""
        elif verb in ("clean", "heat", "cool"):
            self._treat(memory, verb, rest.partition(" with ")[0])
        if "you see" in observation and not observation.startswith("You are"):
            memory.unread = False
            memory.arrive(here, _NAME.findall(observation.partition("you see")[2]), memory.holding)
        elif arrived:
            memory.unread = False
            memory.arrive(here, None, memory.holding)

    @staticmethod
    def _treat(memory: _Memory, verb: str, name: str) -> None:
        if verb == "clean":
            memory.cleaned |= {name}
        elif verb == "heat":
            memory.hot, memory.cool = memory.hot | {name}, memory.cool - {name}
        else:
            memory.cool, memory.hot = memory.cool | {name}, memory.hot - {name}

    def decide(
        self, state: AlfworldState, memory: _Memory, aware: frozenset[str]
    ) -> tuple[str, str | None]:
        if memory.unread:
            return f"examine {memory.location}", None
        action, habit = house.decide(memory.task, memory, memory, aware)
        if habit == "closed" and "closed" not in aware:
            return f"examine {memory.location}", habit
        return action, habit

    def advice(self, habit: str, task_id: str) -> str:
        return house.advice(habit, self._task(task_id))

    def slip(self, state: AlfworldState, rng: random.Random) -> str:
        places = [c for c in self.env.actions(state) if c.startswith("go to ")]
        return rng.choice(("look", rng.choice(places)))
