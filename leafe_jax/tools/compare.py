"""Compares runs: Pass@k of every method and the paired differences, one row per experiment.

    python -m leafe_jax.tools.compare runs/seed0 runs/seed1 runs/seed2 --out=runs/seeds
    python -m leafe_jax.tools.compare runs/unaided_sweep/*/ --out=runs/unaided_sweep

Runs whose configs differ in nothing but the seed are one experiment: their results are taken together, and
the intervals are over seeds and tasks (leafe_jax/run/intervals.py). With one seed they are over tasks only.

It reads each run's results.json and writes compare.json and compare.png to --out. The x axis of the plot is
Pass@1 of the method that --x names. In a sweep over base models this is how often the base model succeeds
unaided, as measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot, which would change a notebook's backend

from leafe_jax.errors import UserError
from leafe_jax.run.depends import without_seed
from leafe_jax.run.intervals import LEVEL, SIGNED, UNIT, seeds_interval
from leafe_jax.run.passk import ks_up_to, pass_at_k
from leafe_jax.run.protocol import sentence
from leafe_jax.run.report.plot import COLOURS, plot_text
from leafe_jax.run.report.table import (
    misses_sentence,
    points,
    provenance_sentence,
    read_results,
    text_table,
)
from leafe_jax.runtime import console, sources
from leafe_jax.runtime.files import local_path, make_directory, whole, write_json


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs that differ in their seed alone.

    Attributes:
      runs: names of their directories.
      seeds: their seeds, in the order of `runs`.
      tasks: ids of the evaluated tasks, sorted.
      counts: method -> [seeds, tasks] successful samples.
      samples: n, samples per task.
      played: what must be equal for tasks to be the same ones.
      provenance: sentences on code that is not one clean commit.
      protocol: of the first run, in words.
    """

    runs: list[str]
    seeds: list[int]
    tasks: list[str]
    counts: dict[str, np.ndarray]
    samples: int
    played: tuple[Any, ...]
    provenance: list[str]
    protocol: str

    @property
    def name(self) -> str:
        return "+".join(self.runs)

    def values(self, method: str, k: int) -> np.ndarray:
        """[seeds, tasks] Pass@k of each task."""
        return np.asarray(pass_at_k(self.samples, self.counts[method], k))


def read_experiments(paths: Sequence[Path]) -> list[Experiment]:
    """The experiments that runs belong to, in the order of their first runs.

    Raises:
      UserError: results.json is missing or cannot be read, or has no evaluation; or the runs of an
        experiment have the same seed, or other tasks.
    """
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path in paths:
        results = read_results(path)
        if not results["methods"]:
            raise UserError(f"{path}: results.json has no evaluated method")
        key = json.dumps(without_seed(results["config"]), sort_keys=True)
        groups.setdefault(key, []).append((path.name, results))
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        raise UserError("workdirs: two of them have the same name")
    return [_experiment(runs) for runs in groups.values()]


def _experiment(runs: list[tuple[str, dict[str, Any]]]) -> Experiment:
    (first_name, first), *rest = runs
    seeds: dict[int, str] = {}
    for name, results in runs:
        seed = results["protocol"]["seed"]
        if seed in seeds:
            raise UserError(
                f"{name}: seed {seed} with the config of {seeds[seed]}: the same run twice is not more"
                " evidence; leave one out"
            )
        seeds[seed] = name
        if _played(results) != _played(first):
            raise UserError(f"{name}: evaluated on other tasks than {first_name}")
    methods = [m for m in first["methods"] if all(m in results["methods"] for _, results in rest)]
    counts = {
        method: np.array(
            [
                [
                    entry["successes"]
                    for _, entry in sorted(results["methods"][method]["tasks"].items())
                ]
                for _, results in runs
            ]
        )
        for method in methods
    }
    code = sources.code()
    said = [(name, provenance_sentence(results, code)) for name, results in runs]
    return Experiment(
        runs=[name for name, _ in runs],
        seeds=list(seeds),
        tasks=_tasks(first),
        counts=counts,
        samples=first["protocol"]["samples"],
        played=_played(first),
        provenance=[f"{name}: {sentence}" for name, sentence in said if sentence],
        protocol=sentence(first["protocol"]).split("\n")[0],
    )


def _tasks(results: dict[str, Any]) -> list[str]:
    return sorted(next(iter(results["methods"].values()))["tasks"])


def _played(results: dict[str, Any]) -> tuple[Any, ...]:
    protocol = results["protocol"]
    names = ("environment", "versions", "horizon", "split", "split_hash")
    return (*[json.dumps(protocol[name]) for name in names], *_tasks(results))


def estimate(
    values: np.ndarray, ends: tuple[float, float], level: float = LEVEL
) -> dict[str, float]:
    """Mean and interval of [seeds, tasks] values."""
    low, high = seeds_interval(values, ends, level)
    return {"value": float(values.mean()), "low": low, "high": high}


def check(experiments: Sequence[Experiment], x: str) -> tuple[list[str], list[int]]:
    """(methods that all experiments have, the k that all of these have).

    Raises:
      UserError: an experiment does not have the method `x`.
    """
    for experiment in experiments:
        if x not in experiment.counts:
            raise UserError(f"--x={x}: {experiment.name} has {', '.join(experiment.counts)}")
    first, *rest = experiments
    methods = [m for m in first.counts if all(m in other.counts for other in rest)]
    return methods, ks_up_to(min(experiment.samples for experiment in experiments))


def rows_of(
    experiments: Sequence[Experiment], methods: Sequence[str], ks: Sequence[int]
) -> dict[str, Any]:
    """What compare.json has: each experiment's Pass@k, and all paired differences.

    Differences are between methods of one experiment, and between the first experiment and another for
    the same method, if both have the same tasks and seeds.
    """
    pairs: list[tuple[str, dict[int, np.ndarray]]] = []
    for experiment in experiments:
        prefix = f"{experiment.name}: " if len(experiments) > 1 else ""
        for minus, method in itertools.combinations(methods, 2):
            values = {k: experiment.values(method, k) - experiment.values(minus, k) for k in ks}
            pairs.append((f"{prefix}{method} - {minus}", values))
    first, *rest = experiments
    for other in rest:
        if (other.played, other.seeds) == (first.played, first.seeds):
            for method in methods:
                values = {k: other.values(method, k) - first.values(method, k) for k in ks}
                pairs.append((f"{method}: {other.name} - {first.name}", values))
    number = len(pairs) * len(_shown(ks))  # cells of the table
    at_once = 1 - (1 - LEVEL) / max(number, 1)  # Bonferroni
    return {
        "experiments": {
            e.name: {
                "seeds": e.seeds,
                "tasks": len(e.tasks),
                "pass_at_k": {
                    m: {str(k): estimate(e.values(m, k), UNIT) for k in ks} for m in e.counts
                },
            }
            for e in experiments
        },
        "differences": {
            label: {
                str(k): estimate(found, SIGNED)
                | {"distinct_at_once": _excludes_zero(seeds_interval(found, SIGNED, at_once))}
                for k, found in values.items()
            }
            for label, values in pairs
        },
    }


def _excludes_zero(interval: tuple[float, float]) -> bool:
    return interval[0] > 0 or interval[1] < 0


def _shown(ks: Sequence[int]) -> list[str]:
    return [str(k) for k in dict.fromkeys((1, ks[-1]))]


def tables(rows: dict[str, Any], methods: Sequence[str], ks: Sequence[int]) -> str:
    """Pass@1 and Pass@`ks[-1]` in percent with 95% intervals, one line per experiment, and differences."""
    shown = _shown(ks)
    header = ["run", "seeds", *[f"{m} @{k}" for m in methods for k in shown]]
    lines = [
        [name, str(len(e["seeds"])), *[_cell(e["pass_at_k"][m][k]) for m in methods for k in shown]]
        for name, e in rows["experiments"].items()
    ]
    parts = [text_table(header, lines), misses_sentence(lines)]
    if rows["differences"]:
        lines = [
            [label, *[_cell(curve[k], points) for k in shown]]
            for label, curve in rows["differences"].items()
        ]
        number = len(lines) * len(shown)
        parts += [
            text_table(["difference, points", *[f"@{k}" for k in shown]], lines),
            f"Paired by task and seed. *: not zero with all {number} differences of this table at once"
            " (Bonferroni, 95% for all of them together).",
        ]
    return "\n\n".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _cell(value: dict[str, Any], shown: Callable[[float], str] = _percent) -> str:
    mean, low, high = (shown(value[name]) for name in ("value", "low", "high"))
    return f"{mean} [{low}, {high}]{'*' * value.get('distinct_at_once', False)}"


def notes(experiments: Sequence[Experiment]) -> list[str]:
    """What a reader has to know of the intervals, the protocols and the code."""
    found = []
    for number in sorted({len(e.seeds) for e in experiments}):
        if number == 1:
            found.append(
                "One seed: the interval is over tasks, for that seed; others may differ more."
            )
        else:
            found.append(
                f"{number} seeds: the interval is over tasks and seeds; seeds by Student's t with"
                f" {number - 1} degrees of freedom."
            )
    found += dict.fromkeys(e.protocol for e in experiments)
    return found + [sentence for e in experiments for sentence in e.provenance]


def draw(
    rows: dict[str, Any], methods: Sequence[str], ks: Sequence[int], x: str, path: Path
) -> None:
    """Writes a plot of Pass@1 and Pass@`ks[-1]` of each method over Pass@1 of the method `x`."""
    curves = [e["pass_at_k"] for e in rows["experiments"].values()]
    curves.sort(key=lambda curve: curve[x]["1"]["value"])
    places = [100 * curve[x]["1"]["value"] for curve in curves]
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, k in zip(panels, ("1", str(ks[-1])), strict=True):
        for number, method in enumerate(methods):
            colour = COLOURS[number % len(COLOURS)]
            points = [curve[method][k] for curve in curves]
            value, low, high = ([100 * p[s] for p in points] for s in ("value", "low", "high"))
            axes.plot(places, value, "o-", color=colour, label=plot_text(method), lw=2)
            axes.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)
            if len(points) == 1:  # a band needs two points, so draw a bar
                axes.vlines(places, low, high, color=colour, lw=6, alpha=0.3)
        axes.set_xlabel(f"Pass@1 of {plot_text(x)}, %")
        axes.set_ylabel(f"Pass@{k}, %")
        axes.set_ylim(-2, 102)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    with whole(path, binary=True) as file:
        figure.savefig(file, dpi=130, format="png")


def main(argv: list[str] | None = None) -> int:
    """Compares finished runs. Returns 0, or 2 after one line on stderr about an error the user can fix."""
    parser = argparse.ArgumentParser(
        prog="python -m leafe_jax.tools.compare", description=main.__doc__
    )
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--out", required=True, help="directory of compare.json and compare.png")
    parser.add_argument("--x", default="base", help="method whose Pass@1 is the x axis")
    console.set_up()
    flags = parser.parse_args(argv)
    try:
        experiments = read_experiments([local_path("", workdir) for workdir in flags.workdirs])
        methods, ks = check(experiments, flags.x)
        out = local_path("--out=", flags.out)
        make_directory(out)
        rows = rows_of(experiments, methods, ks)
        write_json(out / "compare.json", rows)
        draw(rows, methods, ks, flags.x, out / "compare.png")
        console.say("\n\n".join([tables(rows, methods, ks), *notes(experiments)]))
    except UserError as error:
        console.complain(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
