"""The phase `report`: the results of each method, read back from the workdir, and what is made of them."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
from etils import epath

from envs.base import Environment
from leafe_jax.agent.evaluate import merge_budgets
from leafe_jax.errors import UserError
from leafe_jax.run import passk, protocol
from leafe_jax.run.blocks import Blocks, Trees, evaluation_blocks, read_evaluation, tree_blocks
from leafe_jax.run.checks import phases_of
from leafe_jax.run.config import RunConfig
from leafe_jax.run.depends import flatten, methods_behind
from leafe_jax.run.phase import finished, read_record
from leafe_jax.run.report import table
from leafe_jax.run.report.write import write_report
from leafe_jax.runtime import console, processes, sources
from leafe_jax.runtime.files import checksum, read_json, write_json
from leafe_jax.types import Budget

# What the report leaves; the plot only with an evaluation.
_OUTPUTS = ("results.json", "report/index.html", "report/pass_at_k.png")


def method_result(config: RunConfig, blocks: Blocks) -> dict[str, Any]:
    """What results.json says of a method; `blocks` are those of its evaluation."""
    parts = [read_evaluation(file, config.evaluate.num_samples) for file in blocks]
    records = [record for part in parts for record in part["tasks"]]
    successes, families = _outcomes(records)
    return {
        "families": passk.summarise(successes, families),
        "tasks": {
            task: {"family": families[task], "successes": sum(successes[task])}
            for task in sorted(families)
        },
        "out_of_context": sum(r["out_of_context"] for r in records),
        "budget": merge_budgets([part["budget"] for part in parts]),
        "seconds": blocks.phase.record["seconds"],
    }


def _outcomes(records: list[dict[str, Any]]) -> tuple[dict[str, list[bool]], dict[str, str]]:
    """(task -> its outcomes, task -> its family)."""
    return (
        {r["task_id"]: r["successes"] for r in records},
        {r["task_id"]: r["family"] for r in records},
    )


def method_differences(config: RunConfig, blocks: dict[str, Blocks]) -> list[dict[str, Any]]:
    """What results.json says of each pair of methods; `blocks` are those of their evaluations.

    Methods play the same tasks with the same sampling keys, so their outcomes are paired.
    """
    outcomes = {}
    for method in blocks:
        parts = [read_evaluation(f, config.evaluate.num_samples) for f in blocks[method]]
        outcomes[method] = _outcomes([record for part in parts for record in part["tasks"]])
    return [
        {
            "method": method,
            "minus": minus,
            "families": passk.differences(
                outcomes[method][0], outcomes[minus][0], outcomes[minus][1]
            ),
        }
        for minus, method in itertools.combinations(outcomes, 2)
    ]


def _search_result(blocks: Blocks) -> dict[str, Any]:
    count: collections.Counter[str] = collections.Counter()
    statuses: collections.Counter[str] = collections.Counter()
    budget, solved = Budget(), {}
    for tree in Trees(blocks):
        budget.add(tree.budget)
        count["tasks"] += 1
        # An expert's success is not the search's.
        solved[tree.task_id] = any(
            node.success and node.kind not in ("expert", "alternative") for node in tree.nodes
        )
        for node in tree.nodes:
            count["success_episodes"] += node.success
            count["branches"] += node.parent is not None
            count["branches_successful"] += node.parent is not None and node.success
            count["out_of_context"] += node.stop == "context"
            statuses.update(reflection.status for reflection in node.reflections)
            count["experiences_cut"] += sum(
                reflection.cut and reflection.experience is not None
                for reflection in node.reflections
            )
    return {
        "tasks": count["tasks"],
        "solved_tasks": sum(solved.values()),
        "solved": dict(sorted(solved.items())),
        "episodes": budget.episodes,
        "success_episodes": count["success_episodes"],
        "out_of_context": count["out_of_context"],
        "reflections": dict(sorted(statuses.items())),
        "experiences_cut": count["experiences_cut"],
        "branches": count["branches"],
        "branches_successful": count["branches_successful"],
        "budget": dataclasses.asdict(budget),
        "seconds": blocks.phase.record["seconds"],
    }


def read_summary(path: epath.Path) -> dict[str, Any]:
    """A method's summary.json: {"examples": {label: number}, "duplicates", "target_tokens": number}.

    Raises:
      UserError: it cannot be read, or a count is missing.
    """
    summary = read_json(path)
    examples = summary.get("examples")
    if not isinstance(examples, dict):
        raise UserError(f"{path}: examples = {examples!r}: must be an object of counts")
    counts = {name: summary.get(name) for name in ("duplicates", "target_tokens")}
    for field, value in {**examples, **counts}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{path}: {field} = {value!r}: must be a whole number, 0 or more")
    return summary


def _device() -> str:
    name = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    if jax.process_count() > 1:
        name += f", {jax.process_count()} processes, {jax.device_count()} devices in all"
    return name


def _reported(config: RunConfig) -> list[str]:
    """The directories that a report is made from, finished or not."""
    methods = [m for m in methods_behind(config, config.methods) if m != "base"]
    return [
        *(f"trees/{search}" for search in config.search),
        *methods,
        *(f"evaluate/{method}" for method in config.methods),
    ]


def run_report(config: RunConfig, env: Environment, workdir: epath.Path) -> bool:
    """results.json, the plots and the page, from what is finished; by the first process.

    Returns:
      False if they are there already, and made of what is there now.
    """
    names = _reported(config)

    def look(_: Any) -> dict[str, str]:
        found = {n: checksum(workdir / n / "phase.json") for n in names if finished(workdir / n)}
        if not found:
            raise UserError(
                f"{workdir}: no phase to report is finished ({', '.join(names)}); put one into"
                " --config.phases"
            )
        return found

    made_of = processes.together("report: phases", decide=look)
    record = workdir / "report" / "made_of.json"
    if processes.together("report", decide=lambda _: _is_current(workdir, record, made_of)):
        return False
    if processes.first():
        _tell_what_is_gone(record, made_of)
    # Made in all processes, which agree on them.
    evaluated = [method for method in config.methods if f"evaluate/{method}" in made_of]
    blocks = {m: evaluation_blocks(config, env, workdir, m) for m in evaluated}
    grown = [search for search in config.search if f"trees/{search}" in made_of]
    trees = {s: tree_blocks(config, env, workdir, s) for s in grown}
    if not processes.first():
        return True
    results = _header(config)
    results["made_by"] = _made_by(config, workdir)
    prompts = {m: blocks[m].phase.record["made_of"].get("prompts", "") for m in evaluated}
    results["protocol"] = protocol.card(config, env, prompts)
    results["methods"] = {m: method_result(config, blocks[m]) for m in evaluated}
    results["differences"] = method_differences(config, blocks)
    results["searches"] = {s: _search_result(trees[s]) for s in grown}
    results["fits"] = {
        method: {
            **read_summary(workdir / method / "summary.json"),
            "seconds": read_record(workdir / method)["seconds"],
        }
        for method in methods_behind(config, config.methods)
        if method in made_of
    }
    write_json(workdir / "results.json", results)
    write_report(Path(workdir))
    outputs = [name for name in _OUTPUTS if (workdir / name).exists()]
    files = {name: checksum(workdir / name) for name in outputs}
    write_json(record, {"made_of": made_of, "files": files})
    console.say(table.console_table(results))
    return True


def _made_by(config: RunConfig, workdir: epath.Path) -> dict[str, list[sources.Code]]:
    """Phase -> the versions of the code that have worked in it; "report" is this one."""
    names = dict.fromkeys(["bootstrap", *phases_of(config)])
    found = {n: read_record(workdir / n)["made_by"] for n in names if finished(workdir / n)}
    return {**found, "report": [sources.code()]}


def _header(config: RunConfig) -> dict[str, Any]:
    """What says which run it was: packages, config, machine."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "grain")
    flat = flatten(config)
    return {
        "schema": table.RESULTS_SCHEMA,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "config_hash": hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:12],
        "config": flat,
        "device": _device(),
    }


def _tell_what_is_gone(record: epath.Path, made_of: dict[str, str]) -> None:
    """A line for each phase that the last report has, and the next one has not."""
    try:
        before = read_json(record).get("made_of")
    except UserError:  # there was none, or it is damaged
        return
    for name in before if isinstance(before, dict) else ():
        if name not in made_of:
            logging.getLogger("leafe_jax").warning(
                "report: phase %r is not finished any more: the last report had its results, this one"
                " has not", name,
            )  # fmt: skip


def _is_current(workdir: epath.Path, record: epath.Path, made_of: dict[str, str]) -> bool:
    """True if results.json, plot and page are as they were written, from what is there now.

    It asks no clock: a clock may have been set back, and a copied file is younger than it was.
    """
    try:
        known = read_json(record)
        if known.get("made_of") != made_of or not isinstance(known.get("files"), dict):
            return False
        needed = _OUTPUTS if any(n.startswith("evaluate/") for n in made_of) else _OUTPUTS[:2]
        return all(checksum(workdir / name) == known["files"].get(name) for name in needed)
    except UserError:  # one of them cannot be read: all are written again
        return False
