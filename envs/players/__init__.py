"""Scripted players with known bad habits, one module a game; see envs/players/base.py."""

from __future__ import annotations

import importlib

from envs.base import EnvDataError, Environment
from envs.players.base import Player

# Name of the environment -> module:class.
REGISTRY = {
    "alfworld": "envs.players.alfworld:AlfworldPlayer",
    "code": "envs.players.code:CodePlayer",
    "household": "envs.players.household:HouseholdPlayer",
    "science": "envs.players.science:SciencePlayer",
    "sokoban": "envs.players.sokoban:SokobanPlayer",
    "webshop": "envs.players.webshop:WebShopPlayer",
}


def make_player(env: Environment) -> Player:
    """The scripted player of an environment.

    Raises:
      EnvDataError: the environment has none, or not with its options.
    """
    if env.name not in REGISTRY:
        raise EnvDataError(
            f"env.name = {env.name!r}: has no scripted player; those with one:"
            f" {', '.join(REGISTRY)}"
        )
    module, _, attribute = REGISTRY[env.name].partition(":")
    return getattr(importlib.import_module(module), attribute)(env)
