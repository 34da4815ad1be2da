"""The numbers of a page: what the result files of a table's cells say, task by task and seed by seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.run.intervals import UNIT, seeds_interval
from leafe_jax.run.passk import ks_up_to, pass_at_k


@dataclasses.dataclass(frozen=True)
class Cell:
    """The finished runs of one environment.

    Attributes:
      name: of the cell.
      seeds: in ascending order.
      results: results.json of each seed.
      tasks: ids of the tasks, sorted; the same for all seeds.
      counts: row -> [seeds, tasks] successful samples; of a search: 1 if it solved the task.
      samples: n, samples a task; 1 in tables of searches.
    """

    name: str
    seeds: tuple[int, ...]
    results: tuple[dict[str, Any], ...]
    tasks: tuple[str, ...]
    counts: dict[str, np.ndarray]
    samples: int

    def values(self, row: str, k: int) -> np.ndarray:
        """[seeds, tasks] Pass@k of each task."""
        return np.asarray(pass_at_k(self.samples, self.counts[row], k))


def read_cell(name: str, runs: dict[int, dict[str, Any]], rows: str) -> Cell:
    """The cell of some runs.

    Args:
      name: of the cell.
      runs: seed -> results.json.
      rows: "methods" or "searches".

    Raises:
      UserError: the runs have other tasks, or other numbers of samples.
    """
    seeds = tuple(sorted(runs))
    results = tuple(runs[seed] for seed in seeds)
    found = [_outcomes(r, rows) for r in results]
    shared = [row for row in found[0] if all(row in other for other in found)]
    tasks = {tuple(sorted(run[row])) for run in found for row in shared}
    samples = {r["protocol"]["samples"] if rows == "methods" else 1 for r in results}
    if len(tasks) > 1 or len(samples) > 1:
        raise UserError(f"{name}: its runs have other tasks, or other numbers of samples")
    ids = next(iter(tasks), ())
    counts = {row: np.array([[run[row][task] for task in ids] for run in found]) for row in shared}
    return Cell(name, seeds, results, ids, counts, next(iter(samples)))


def _outcomes(results: dict[str, Any], rows: str) -> dict[str, dict[str, int]]:
    if rows == "searches":
        return {
            name: {task: int(solved) for task, solved in search["solved"].items()}
            for name, search in results["searches"].items()
        }
    return {
        name: {task: entry["successes"] for task, entry in method["tasks"].items()}
        for name, method in results["methods"].items()
    }


def rows_of(cells: Sequence[Cell]) -> list[str]:
    """The rows of all cells, in the order of the first one that has them."""
    return list(dict.fromkeys(row for cell in cells for row in cell.counts))


def largest_k(cells: Sequence[Cell]) -> int:
    """The largest power of two that all cells have samples for."""
    return ks_up_to(min(cell.samples for cell in cells))[-1]


def taken_together(
    cells: Sequence[Cell], row: str, k: int
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """([seeds, tasks] values of all cells that have a row, and their names); None if none has.

    The tasks of all cells stand side by side. Only the seeds that all of these cells
    have are taken. A task weighs the same in every environment.
    """
    having = [cell for cell in cells if row in cell.counts]
    if not having:
        return None
    seeds = sorted(set.intersection(*(set(cell.seeds) for cell in having)))
    if not seeds:
        return None
    parts = [cell.values(row, k)[[cell.seeds.index(s) for s in seeds]] for cell in having]
    return np.concatenate(parts, axis=1), tuple(cell.name for cell in having)


def differences(
    cells: Sequence[Cell], row: str, minus: str, k: int
) -> tuple[np.ndarray, int, tuple[str, ...]] | None:
    """([seeds, tasks] differences of two rows, paired by task and seed, the k, the environments).

    Args:
      cells: the finished ones.
      row, minus: the two rows.
      k: of Pass@k; with fewer samples the largest there is. 0 in tables of searches.

    Returns:
      None if no cell has both rows.
    """
    having = [cell for cell in cells if row in cell.counts and minus in cell.counts]
    if not having:
        return None
    taken = min(k, largest_k(having)) if k else 1
    one, other = taken_together(having, row, taken), taken_together(having, minus, taken)
    if one is None or other is None:
        return None
    return one[0] - other[0], taken if k else 0, one[1]


def estimate(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of [seeds, tasks] shares."""
    return (float(values.mean()), *seeds_interval(values, UNIT))


# -- what was spent ----------------------------------------------------------------------------------
_SPENT = ("env_steps", "replayed_steps", "generated_tokens", "reflections")


def read_by(config: dict[str, Any], row: str, rows: str) -> tuple[list[str], list[str]]:
    """(searches, methods) whose work is in a row, by the flat config of a run."""
    searches: list[str] = []
    methods: list[str] = []

    def visit(name: str) -> None:
        if name in methods:
            return
        own = f"variants.{name}." if f"variants.{name}.method" in config else f"{name}."
        if f"{own}start" in config:
            visit(config[f"{own}start"])
        if f"{own}trees" in config:
            look(config[f"{own}trees"])
        methods.append(name)

    def look(search: str) -> None:
        if search not in searches:
            visit(config[f"search.{search}.agent"])
            searches.append(search)

    look(row) if rows == "searches" else visit(row)
    return searches, methods


def spent(results: dict[str, Any], row: str, rows: str) -> dict[str, int]:
    """What a row of one run has cost before its evaluation, over all that it reads.

    Returns:
      "env_steps" (replayed ones included), "generated_tokens", "reflections", "trained_tokens" (those with
      loss, over all epochs) and "seconds" (wall time).
    """
    config = results["config"]
    searches, methods = read_by(config, row, rows)
    parts = [results["searches"][s] for s in searches if s in results["searches"]]
    fits = {m: results["fits"][m] for m in methods if m in results["fits"]}
    budgets = [part["budget"] for part in (*parts, *fits.values()) if "budget" in part]
    total = {name: sum(budget[name] for budget in budgets) for name in _SPENT}
    trained = 0
    for method, fit in fits.items():
        own = f"variants.{method}." if f"variants.{method}.method" in config else f"{method}."
        trained += fit["target_tokens"] * config.get(f"{own}train.num_epochs", 1)
    return {
        "env_steps": total["env_steps"] + total["replayed_steps"],
        "generated_tokens": total["generated_tokens"],
        "reflections": total["reflections"],
        "trained_tokens": trained,
        "seconds": round(sum(p["seconds"] for p in (*parts, *fits.values()))),
    }


def expert_of(results: dict[str, Any], row: str, rows: str) -> str:
    """Whose actions a row imitates: "player", "solver" or "own"; "" if nobody's."""
    config = results["config"]
    searches, _ = read_by(config, row, rows)
    of = (s for s in searches if config[f"search.{s}.method"] == "alternatives")
    return ", ".join(dict.fromkeys(config[f"search.{s}.expert"] for s in of))


STEPS_WITHIN, TOKENS_WITHIN = 0.02, 0.10  # of the reference; beyond that a row says so


def beyond(own: Sequence[dict[str, int]], reference: Sequence[dict[str, int]]) -> str:
    """What a row has spent more or less than the reference, in words; "" if it is within the limits.

    Args:
      own, reference: what both have spent, seed by seed. The seed that is furthest off counts.
    """
    words = []
    for name, label, limit in (
        ("env_steps", "environment steps", STEPS_WITHIN),
        ("generated_tokens", "generated tokens", TOKENS_WITHIN),
    ):
        pairs = [(o[name], r[name]) for o, r in zip(own, reference, strict=True)]
        more = max((o / r - 1 for o, r in pairs if o and r), key=abs, default=0.0)
        if abs(more) > limit + 1e-9:  # 1.02 - 1 is above 0.02
            words.append(f"{more:+.0%} {label}")
    return ", ".join(words)
