"""The household's player: it sees what the state shows from the agent's place."""

from __future__ import annotations

import random

from envs.household import house_player as house
from envs.household.environment import (
    OBJECTS,
    RECEPTACLES,
    HouseholdState,
    Room,
    class_of,
    make_room,
)
from envs.player import Player


class HouseholdPlayer(Player):
    """The player of `household`; its habits are those of envs/household/house_player.py."""

    habits = house.HABITS
    units = house.names({*OBJECTS, *map(class_of, RECEPTACLES)})
    spelt = house.GOAL

    def start(self, task_id: str, observation: str) -> house.Memory:
        return house.Memory()

    def update(
        self, memory: house.Memory, action: str, state: HouseholdState, observation: str
    ) -> None:
        here = state.location
        if not here:
            return
        room = make_room(state.task_id)
        names = state.contents[room.receptacles.index(here)]
        memory.arrive(here, None if house.shut(state) else names, state.holding)

    def decide(
        self, state: HouseholdState, memory: house.Memory, aware: frozenset[str]
    ) -> tuple[str, str | None]:
        return house.decide(make_room(state.task_id), state, memory, aware)

    def advice(self, habit: str, task_id: str) -> str:
        return house.advice(habit, make_room(task_id))

    def slip(self, state: HouseholdState, rng: random.Random) -> str:
        room: Room = make_room(state.task_id)
        place = rng.choice([r for r in room.receptacles if r != state.location])
        return rng.choice(("look", f"go to {place}"))
