"""Text environments in pure Python; nothing in this package imports jax or leafe_jax."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from envs.base import EnvDataError, Environment

# name -> module:class. Modules are imported when asked for: some need an extra.
REGISTRY = {
    "alfworld": "envs.alfworld.environment:Alfworld",
    "alfworld_real": "envs.alfworld.real:AlfworldReal",
    "code": "envs.code.environment:Code",
    "household": "envs.household.environment:Household",
    "science": "envs.science.environment:Science",
    "scienceworld": "envs.scienceworld.environment:ScienceWorld",
    "sokoban": "envs.sokoban.environment:Sokoban",
    "webshop": "envs.webshop.environment:WebShop",
}


def find(name: str) -> type[Environment]:
    """The class of an environment.

    Raises:
      EnvDataError: unknown name.
    """
    if name not in REGISTRY:
        raise EnvDataError(f"env.name = {name!r}: must be one of {', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make(name: str, split: str | None = None, **options: Any) -> Environment:
    """Makes an environment by name.

        env = envs.make("sokoban", split="test", size=(7, 7))
        state, observation = env.reset(env.tasks[0].task_id)
        state, result = env.step(state, "up")

    Args:
      name: one of REGISTRY.
      split: whose tasks `env.tasks` lists; None lists those of all splits.
      options: the environment's constructor arguments.

    Raises:
      EnvDataError: unknown name, split or option, or a value that is not allowed.
    """
    environment = find(name)
    allowed = inspect.signature(environment).parameters
    for option in options:
        if option not in allowed:
            raise EnvDataError(f"{name} has no option {option!r}; it has {', '.join(allowed)}")
    env = environment(**options)
    if split is not None:
        env.list_tasks(split)
        env.split = split
    return env
