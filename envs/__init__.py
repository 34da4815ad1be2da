"""Text environments in pure Python; nothing in this package imports jax or leafe_jax."""

from __future__ import annotations

from typing import Any

from envs.base import EnvDataError, Environment

NAMES = ("household", "sokoban")


def make(name: str, **options: Any) -> Environment:
    """Makes an environment by name.

    Args:
      name: one of NAMES.
      options: the environment's constructor arguments.

    Raises:
      EnvDataError: unknown name or option value.
    """
    if name == "household":
        from envs.household import Household

        return Household(**options)
    if name == "sokoban":
        from envs.sokoban import Sokoban

        return Sokoban(**options)
    raise EnvDataError(f"env.name = {name!r}: must be one of {', '.join(NAMES)}")
