"""What is refused before any work: processes that disagree, changed fields, training that cannot begin."""

from __future__ import annotations

from typing import Any

import jax
from etils import epath

from envs.base import Environment
from leafe_jax.errors import UserError
from leafe_jax.methods.base import FineTuned
from leafe_jax.methods.on_policy import OnPolicy
from leafe_jax.models import hf
from leafe_jax.run.config import RunConfig
from leafe_jax.run.depends import closure, flatten, on_policy, searches
from leafe_jax.run.phase import Phase
from leafe_jax.run.weights import base_model_path
from leafe_jax.runtime import processes, sources
from leafe_jax.training.start import check


def agree(config: RunConfig, env: Environment) -> None:
    """All processes must run the same thing: a host with other code or data would spoil the numbers.

    Raises:
      UserError: names what differs, and in which process.
    """
    if jax.process_count() == 1:
        return
    facts = flatten(config) | sources.facts()
    splits = {f"search.{name}": config.search[name].split for name in searches(config)}
    for method in on_policy(config):
        splits[method.name] = method.config.split
        if method.config.probe_every:
            splits[f"{method.name}.probe"] = method.config.probe_split
    if {"evaluate", "habits"} & set(config.phases):
        splits["evaluate"] = config.evaluate.split
    for section, split in splits.items():
        facts[f"the tasks of {section}.split"] = env.split_hash(split)

    def compare(all_facts: list[dict[str, Any]]) -> None:
        ours = all_facts[0]
        for number, theirs in enumerate(all_facts):
            for name in sorted({*ours, *theirs}):
                if ours.get(name) != theirs.get(name):
                    raise UserError(
                        f"{name} = {theirs.get(name)!r} in process {number}, {ours.get(name)!r} in"
                        " process 0: all need the same config, code and data"
                    )

    processes.together("config", facts, compare)


def phases_of(config: RunConfig) -> list[str]:
    """The directories that a run of `config` writes or reads, what is read first standing first."""
    wanted: list[str] = [name for name in ("bootstrap", "habits") if name in config.phases]
    if {"explore", "report"} & set(config.phases):
        wanted += [part for s in config.search for part in closure(config, f"trees/{s}")]
    if {"fit", "evaluate", "report"} & set(config.phases):
        wanted += [part for m in config.methods for part in closure(config, m)]
    if {"evaluate", "report"} & set(config.phases):
        wanted += [f"evaluate/{method}" for method in config.methods]
    return [name for name in dict.fromkeys(wanted) if name != "base"]


def records(config: RunConfig, root: epath.Path) -> None:
    """Refuses changed fields: those of what the run makes, and of what this is made from.

    Raises:
      UserError: names the field, both values and the directory.
    """
    for name in ("explore", "distill"):
        if (root / name / "phase.json").exists():
            raise UserError(
                f"{root / name}: made by a version before 2026-12, which kept trees and models elsewhere;"
                " use another --workdir"
            )
    for name in phases_of(config):
        Phase(root, name, config)


def training(config: RunConfig, root: epath.Path) -> None:
    """Refuses before exploration what training would refuse after it.

    Raises:
      UserError: a field of a `train` section does not go with the model or the devices.
    """
    path = base_model_path(config, root)
    if "fit" not in config.phases or not path.exists():
        return
    for name in config.methods:
        for part in closure(config, name):
            method = None if part.startswith("trees/") else config.find(part)
            if isinstance(method, FineTuned | OnPolicy) and not Phase(root, part, config).done:
                check(method.config.train, hf.read_config(str(path)))
