"""Random keys by name: every random choice comes from the run's seed and a stable name."""

from __future__ import annotations

from envs.base import stable_seed


def seed_for(seed: int, *names: object) -> int:
    """A 32-bit seed for one named choice, e.g. `seed_for(0, "explore", task_id, node, step)`."""
    return stable_seed(seed, *names) & 0xFFFFFFFF
