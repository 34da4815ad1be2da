"""What lies in a workdir, read back: trees, the results of each method, and the phase `report`."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from envs.base import Environment
from leafe_jax import console, passk, processes, report
from leafe_jax.errors import UserError
from leafe_jax.evaluate import merge_budgets
from leafe_jax.metrics import Metrics
from leafe_jax.phase import finished, write_json
from leafe_jax.seeds import seed_for
from leafe_jax.settings import METHODS, flatten
from leafe_jax.types import Budget, Tree

RESULTS_SCHEMA = 1


def tree_files(workdir: epath.Path) -> list[epath.Path]:
    """The finished blocks of the explore phase, in order."""
    return sorted((workdir / "explore" / "trees").glob("*.jsonl"))


class Trees:
    """The trees of some blocks, in order, read anew each time: all at once may be more than memory holds.

    Raises:
      UserError: while it is iterated, names a line that is no tree.
    """

    def __init__(self, paths: Sequence[epath.Path]):
        self._paths = paths

    def __iter__(self) -> Iterator[Tree]:
        for path in self._paths:
            with path.open() as file:
                for number, line in enumerate(file, start=1):
                    try:
                        yield Tree.from_json(json.loads(line))
                    except (ValueError, KeyError, TypeError) as error:
                        raise UserError(f"{path}, line {number}: not a tree: {error}") from error


def method_result(config, workdir: epath.Path, method: str) -> dict[str, Any]:
    directory = workdir / "evaluate" / method
    parts = [
        json.loads(path.read_text())
        for path in sorted(directory.glob("*.json"))
        if path.name != "phase.json"
    ]
    records = [record for part in parts for record in part["tasks"]]
    return {
        "families": passk.summarise(
            {r["task_id"]: r["successes"] for r in records},
            {r["task_id"]: r["family"] for r in records},
            config.evaluate.num_resamples,
            seed_for(config.seed, "bootstrap-interval"),
        ),
        "out_of_context": sum(r["out_of_context"] for r in records),
        "budget": merge_budgets([part["budget"] for part in parts]),
        "seconds": _seconds(directory),
    }


def _seconds(directory: epath.Path) -> float:
    return json.loads((directory / "phase.json").read_text())["seconds"]


def _explore_result(workdir: epath.Path) -> dict[str, Any]:
    count: collections.Counter[str] = collections.Counter()
    statuses: collections.Counter[str] = collections.Counter()
    budget = Budget()
    for tree in Trees(tree_files(workdir)):
        budget.add(tree.budget)
        count["tasks"] += 1
        count["solved_tasks"] += any(node.success for node in tree.nodes)
        for node in tree.nodes:
            count["success_episodes"] += node.success
            count["branches"] += node.parent is not None
            count["branches_successful"] += node.parent is not None and node.success
            count["out_of_context"] += node.stop == "context"
            statuses.update(reflection.status for reflection in node.reflections)
    return {
        "tasks": count["tasks"],
        "solved_tasks": count["solved_tasks"],
        "episodes": budget.episodes,
        "success_episodes": count["success_episodes"],
        "out_of_context": count["out_of_context"],
        "reflections": dict(sorted(statuses.items())),
        "branches": count["branches"],
        "branches_successful": count["branches_successful"],
        "budget": dataclasses.asdict(budget),
        "seconds": _seconds(workdir / "explore"),
    }


def commit() -> str | None:
    """The commit that is checked out, or None outside a repository."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _device() -> str:
    name = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    if jax.process_count() > 1:
        name += f", {jax.process_count()} processes, {jax.device_count()} devices in all"
    return name


def run_report(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    """results.json, the plots and the page, from the finished phases; by the first process."""
    if not processes.first():
        return True
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "grain")
    flat = flatten(config)
    results = {
        "schema": RESULTS_SCHEMA,
        "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "config_hash": hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:12],
        "config": flat,
        "seed": config.seed,
        # Tells readers on other machines whether they played the same tasks.
        "split_hash": env.split_hash(config.evaluate.split),
        "device": _device(),
        "methods": {
            method: method_result(config, workdir, method)
            for method in METHODS
            if finished(workdir / "evaluate" / method)
        },
    }
    if finished(workdir / "explore"):
        results["explore"] = _explore_result(workdir)
    if finished(workdir / "distill"):
        summary = json.loads((workdir / "distill" / "summary.json").read_text())
        results["distill"] = {**summary, "seconds": _seconds(workdir / "distill")}
    write_json(workdir / "results.json", results)
    report.write_report(Path(workdir))
    console.say(report.console_table(results))
    return True
