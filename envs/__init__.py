"""Text environments in pure Python; nothing in this package imports jax or leafe_jax."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from typing import Any

from envs.base import EnvDataError, Environment
from envs.options import check_horizon, make_options

# name -> module:class. A module is imported on first use: some need an extra.
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
ENTRY_POINTS = "leafe_jax.environments"  # group of the entry points of other packages


def names() -> tuple[str, ...]:
    """The names that `find` knows: REGISTRY, then the entry points of installed packages."""
    return tuple(dict.fromkeys([*REGISTRY, *sorted(_entry_points())]))


def find(name: str) -> type[Environment]:
    """The class of an environment.

    `module:Class` is imported. Any other name is looked up in REGISTRY first, then among the entry
    points, so an installed package cannot change what one of our names means.

    Raises:
      EnvDataError: an unknown name, a module that cannot be imported, or no Environment class.
    """
    where = f"env.name = {name!r}"
    path = _path(name, where)
    module_name, _, attribute = path.partition(":")
    if path != name:
        where += f" ({path})"
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module of another package may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise EnvDataError(f"{where}: cannot import {module_name}: {reason}") from error
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, Environment)):
        classes = ", ".join(_environments(module)) or "none"
        raise EnvDataError(
            f"{where}: {attribute} is no Environment class of {module_name}; it has {classes}"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise EnvDataError(f"{where}: {attribute} does not define {missing}")
    return found


def make(name: str, split: str | None = None, **options: Any) -> Environment:
    """Makes an environment by name.

        env = envs.make("sokoban", split="test", size=(7, 7))
        state, observation = env.reset(env.tasks[0])
        state, result = env.step(state, "up")

    Args:
      name: one of `names()`, or "package.module:Class".
      split: whose tasks `env.tasks` lists; None lists those of all splits.
      options: `horizon`, and the fields of the class's `Options`.

    Raises:
      EnvDataError: unknown name, split or option, or a value that is not allowed.
    """
    environment = find(name)
    horizon = check_horizon(options.pop("horizon", environment.horizon))
    env = environment(horizon, make_options(name, environment.Options, options))
    if split is not None:
        env.list_tasks(split)
        env.split = split
    return env


def _path(name: str, where: str) -> str:
    """The module:class that a name stands for."""
    paths: set[str] = set()
    if isinstance(name, str):
        if ":" in name:
            if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
                raise EnvDataError(f"{where}: must be package.module:Class")
            return name
        paths = {REGISTRY[name]} if name in REGISTRY else _entry_points().get(name, paths)
    if not paths:
        raise EnvDataError(f"{where}: must be one of {', '.join(names())}, or package.module:Class")
    if len(paths) > 1:
        raise EnvDataError(f"{where}: names several entry points: {', '.join(sorted(paths))}")
    return next(iter(paths))


def _entry_points() -> dict[str, set[str]]:
    """Name -> module:class, as given by installed packages."""
    found: dict[str, set[str]] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        found.setdefault(point.name, set()).add(point.value)
    return found


def _environments(module: Any) -> list[str]:
    """The Environment classes that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Environment)
        and value.__module__ == module.__name__
    ]
