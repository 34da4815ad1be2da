"""What config files are made of: the files by name, and the changes that several of them share."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import ml_collections

import envs
from leafe_jax.errors import UserError
from leafe_jax.methods import base
from leafe_jax.methods.on_policy import OnPolicyConfig
from leafe_jax.run.config import default_config

# In an installed package the files lie beside it; in a checkout, at the top.
_PLACES = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")


def find_config(name: str) -> Path:
    """The file of a config that comes with this package, e.g. "quickstart".

    Raises:
      UserError: there is none of this name.
    """
    directory = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
    path = directory / f"{name}.py"
    if not path.is_file():
        known = sorted(file.stem for file in directory.glob("*.py"))
        raise UserError(f"--config={name}: must be a file, or one of {', '.join(known)}")
    return path


def load_config(name: str, mode: str = "") -> ml_collections.ConfigDict:
    """What a config file makes: as the base of another one, or as the settings of a script.

    Args:
      name: of a file that comes with the package, e.g. "quickstart", or a path that ends in .py.
      mode: e.g. "smoke"; "" for the file's default.

    Raises:
      UserError: there is no such file.
      ValueError: it has no such mode.
    """
    path = Path(name).expanduser() if name.endswith(".py") else find_config(name)
    spec = importlib.util.spec_from_file_location(f"_leafe_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    return module.get_config(mode) if mode else module.get_config()


def set_environment(config: ml_collections.ConfigDict, name: str, **options: Any) -> None:
    """Sets the environment: all of its options with their defaults, then those given.

    Raises:
      EnvDataError: an unknown name.
    """
    config.env.name = name
    defaults = dataclasses.asdict(envs.find(name).Options())
    config.env.options = ml_collections.ConfigDict(defaults)
    config.env.options.update(options)


def set_training(config: ml_collections.ConfigDict, **fields: Any) -> None:
    """Sets fields of the `train` section of every method, so that methods are compared as equals.

    Methods that train on their own rollouts keep their num_epochs and schedule, which mean another thing
    there.
    """
    rest = {k: v for k, v in fields.items() if k not in ("num_epochs", "schedule")}
    for kind, section in _sections(config):
        if "train" in section:
            section.train.update(rest if issubclass(kind, OnPolicyConfig) else fields)


def set_on_policy(config: ml_collections.ConfigDict, **fields: Any) -> None:
    """Sets fields of every method that trains on its own rollouts, if it has them; `train` is a dict."""
    for kind, section in _sections(config):
        if issubclass(kind, OnPolicyConfig):
            section.train.update(fields.get("train", {}))
            section.update({k: v for k, v in fields.items() if k != "train" and k in section})


def _sections(config: ml_collections.ConfigDict) -> list[tuple[type, Any]]:
    """(type of its settings, section) of every method and variant."""
    methods = [(name, config[name]) for name in base.REGISTRY if name in config]
    variants = [(section.method, section) for section in config.variants.values()]
    return [(base.find(name).Config, section) for name, section in (*methods, *variants)]


def add_variant(config: ml_collections.ConfigDict, name: str, method: str, **fields: Any) -> None:
    """Adds a method once more: under another name, with the settings it has so far, and other fields.

    The variant is fitted and evaluated like a method of that name, after those that `config.methods`
    has already.
    """
    _define_variant(config, name, method, **fields)
    config.methods = (*config.methods, name)


def _define_variant(
    config: ml_collections.ConfigDict, name: str, method: str, **fields: Any
) -> None:
    """A variant that is fitted where another method reads it, and not evaluated."""
    config.variants[name] = config[method].copy_and_resolve_references()
    config.variants[name].update(fields)
    config.variants[name].method = method


def add_search(config: ml_collections.ConfigDict, name: str, **fields: Any) -> None:
    """Adds a search with the tasks, the budget and the rules of `search.tree`, and other fields."""
    config.search[name] = config.search.tree.copy_and_resolve_references()
    config.search[name].update(fields)


def add_leafe_on(config: ml_collections.ConfigDict, start: str, name: str, search: str) -> None:
    """Adds LEAFE on top of another method: that one's agent explores, and its model is trained on.

    Args:
      config: is changed.
      start: the other method.
      name: of the variant.
      search: name of the search that it reads.
    """
    add_search(config, search, agent=start)
    add_variant(config, name, "leafe", start=start, trees=search)


def add_early_experience(
    config: ml_collections.ConfigDict, expert: str = "player", explain: bool = False
) -> None:
    """Adds Early Experience (arXiv 2510.08558) at the budget of `search.tree`.

    Args:
      config: is changed.
      expert: whose actions are imitated: "player", "solver" or "own" (docs/METHODS.md).
      explain: False: implicit world modelling, one epoch, then imitation for the other epochs. True:
        self-reflection, together with imitation.
    """
    add_search(config, "alternatives", method="alternatives", expert=expert, explain=explain)
    early = config.early_experience
    early.trees = "alternatives"
    if explain:
        early.update(dict(world_weight=0.0, reflection_weight=1.0, imitation_weight=1.0))
    else:
        early.update(dict(world_weight=1.0, reflection_weight=0.0, imitation_weight=0.0))
        _define_variant(config, "early_world", "early_experience")
        config.variants.early_world.train.num_epochs = 1
        early.update(dict(world_weight=0.0, imitation_weight=1.0, start="early_world"))
        early.train.num_epochs = max(1, early.train.num_epochs - 1)
    config.methods = (*config.methods, "early_experience")


def add_ace(
    config: ml_collections.ConfigDict, start: str = "base", name: str = "ace", **fields: Any
) -> None:
    """Adds ACE on the model of a method, with the tasks and the budget of `search.tree`.

    Args:
      config: is changed.
      start: the method whose model is used.
      name: "ace", or the name of a variant.
      fields: further fields of `config.ace`.
    """
    tree = config.search.tree
    shared = ("split", "num_tasks", "max_env_steps", "max_generated_tokens")
    fields = {**{field: tree[field] for field in shared}, "start": start, **fields}
    if name == "ace":
        config.ace.update(fields)
        config.methods = (*config.methods, "ace")
    else:
        add_variant(config, name, "ace", **fields)


def add_rounds(config: ml_collections.ConfigDict, number: int) -> None:
    """Adds rounds of both stages of LEAFE until there are `number` of them.

    Round i explores with the model of round i - 1 (`search.tree_i`) and trains on from it (`leafe_i`).
    """
    before = "leafe"
    for i in range(2, number + 1):
        add_leafe_on(config, before, f"leafe_{i}", f"tree_{i}")
        before = f"leafe_{i}"


def laptop(name: str, mode: str) -> ml_collections.ConfigDict:
    """What the small games have in common: dialogue, in a context of 1,024 tokens.

    A game's file sets what depends on its horizon: env.horizon and, where 40 steps a task do not suit it,
    search.tree.max_env_steps.

    Args:
      name: of the environment and of the config file.
      mode: "full", or "smoke" for a run of a minute.

    Raises:
      ValueError: another mode.
    """
    c = default_config()
    set_environment(c, name)
    c.sampler.num_slots = 48
    c.sampler.max_len = 1024
    c.sampler.turn_chunk = 32
    c.sampler.prefill_chunk = 128
    tree = c.search.tree
    tree.num_tasks = 96
    tree.block_size = 24
    tree.max_env_steps = 40
    tree.reflect_every = 5
    set_training(c, seq_len=1024, batch_size=4)
    set_on_policy(c, num_tasks=tree.num_tasks)
    c.evaluate.num_tasks = 36
    c.evaluate.num_samples = 32
    if mode == "smoke":
        tree.num_tasks = c.evaluate.num_tasks = 4
        tree.block_size = c.evaluate.block_size = 4
        tree.num_roots = 1
        tree.max_env_steps = 20
        c.evaluate.num_samples = 2
        c.methods = ("base",)
        c.phases = ("explore", "evaluate", "report")
        c.sampler.num_slots = 8
        c.sampler.compile_ahead = False  # so short a run is over before it pays
    elif mode != "full":
        raise ValueError(f"--config=configs/{name}.py:{mode}: the modes are full and smoke")
    return c
