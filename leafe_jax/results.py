"""What lies in a workdir, read back: trees, the results of each method, and the phase `report`."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from envs.base import Environment
from leafe_jax import passk, processes, report
from leafe_jax.errors import UserError
from leafe_jax.evaluate import merge_budgets
from leafe_jax.metrics import Metrics
from leafe_jax.phase import write_json
from leafe_jax.seeds import seed_for
from leafe_jax.settings import METHODS, flatten
from leafe_jax.types import Tree

RESULTS_SCHEMA = 1


def tree_files(workdir: epath.Path) -> list[epath.Path]:
    """The finished blocks of the explore phase, in order."""
    return sorted((workdir / "explore" / "trees").glob("*.jsonl"))


def read_trees(paths: Sequence[epath.Path]) -> list[Tree]:
    """The trees of some blocks, in order; UserError names a line that is none."""
    trees = []
    for path in paths:
        for number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
            try:
                trees.append(Tree.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a tree: {error}") from error
    return trees


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
        "budget": merge_budgets([part["budget"] for part in parts]),
        "seconds": _seconds(directory),
    }


def _seconds(directory: epath.Path) -> float:
    return json.loads((directory / "phase.json").read_text())["seconds"]


def _explore_result(workdir: epath.Path) -> dict[str, Any]:
    trees = read_trees(tree_files(workdir))
    nodes = [(tree, node) for tree in trees for node in tree.nodes]
    statuses: dict[str, int] = {}
    for _, node in nodes:
        for reflection in node.reflections:
            statuses[reflection.status] = statuses.get(reflection.status, 0) + 1
    branches = [(tree, node) for tree, node in nodes if node.parent is not None]
    return {
        "tasks": len(trees),
        "solved_tasks": sum(any(n.success for n in tree.nodes) for tree in trees),
        "episodes": len(nodes),
        "success_episodes": sum(node.success for _, node in nodes),
        "reflections": dict(sorted(statuses.items())),
        "branches": len(branches),
        "branches_successful": sum(node.success for _, node in branches),
        "budget": merge_budgets([dataclasses.asdict(tree.budget) for tree in trees]),
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
    """results.json, the plots and the page, from what lies in the workdir; by the first process."""
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
            if (workdir / "evaluate" / method / "phase.json").exists()
        },
    }
    if (workdir / "explore" / "phase.json").exists():
        results["explore"] = _explore_result(workdir)
    if (workdir / "distill" / "summary.json").exists():
        summary = json.loads((workdir / "distill" / "summary.json").read_text())
        results["distill"] = {**summary, "seconds": _seconds(workdir / "distill")}
    write_json(workdir / "results.json", results)
    report.write_report(Path(workdir))
    print(report.console_table(results))
    return True
