"""The `science` laboratory's task lists: which worlds belong to which split."""

from __future__ import annotations

import functools
import random

from envs.base import stable_seed
from envs.science.lab import Lab
from envs.science.world import World
from envs.science.worlds import FAMILIES

# Tasks of "bootstrap" are for scripted corpora only.
TASKS_PER_FAMILY = {"train": 32, "valid": 16, "test": 16, "bootstrap": 256}
_SPLIT_OF = ("test", "valid", "train", "train")  # by the hash of the first observation


def first_observation(world: World) -> str:
    """The task description and the room in which the task begins."""
    lab = Lab(world, world.things, frozenset(), (), -1)
    return f"{world.description}\n{lab.look_around()}"


@functools.cache
def variations(family: str) -> dict[str, tuple[World, ...]]:
    """All variations of a task type by split, the same on every machine.

    The hash of the first observation decides the split of a variation, so no held-out task begins
    like a training task. All worlds differ.
    """
    splits: dict[str, list[World]] = {split: [] for split in dict.fromkeys(_SPLIT_OF)}
    seen: set[str] = set()
    attempt = 0
    while any(len(worlds) < TASKS_PER_FAMILY[split] for split, worlds in splits.items()):
        rng = random.Random(stable_seed("science", family, attempt))
        attempt += 1
        world = FAMILIES[family](family, rng)
        content = repr(world)
        text = first_observation(world)
        split = _SPLIT_OF[stable_seed("science-split", text) % 4]
        if content not in seen and len(splits[split]) < TASKS_PER_FAMILY[split]:
            seen.add(content)
            splits[split].append(world)
    return {split: tuple(splits[split]) for split in TASKS_PER_FAMILY if split in splits}


@functools.cache
def bootstrap_variations(family: str) -> tuple[World, ...]:
    """Worlds for scripted corpora; none begins like a task of another split."""
    taken = {first_observation(w) for worlds in variations(family).values() for w in worlds}
    worlds: list[World] = []
    attempt = 0
    while len(worlds) < TASKS_PER_FAMILY["bootstrap"]:
        rng = random.Random(stable_seed("science-bootstrap", family, attempt))
        attempt += 1
        world = FAMILIES[family](family, rng)
        text = first_observation(world)
        if text not in taken and _SPLIT_OF[stable_seed("science-split", text) % 4] == "train":
            worlds.append(world)  # first observations may repeat: some types have few of them
    return tuple(worlds)
