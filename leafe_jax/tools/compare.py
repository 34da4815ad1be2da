"""Compares runs: Pass@1 and Pass@k of every method, one row per run, as a table and a plot.

    python -m leafe_jax.tools.compare runs/unaided_sweep/*/ --out=runs/unaided_sweep

It reads each run's results.json and writes compare.json and compare.png to --out. The x axis of the plot is
Pass@1 of the method that --x names. In a sweep over base models this is how often the base model succeeds
unaided, as measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot, which would change a notebook's backend

from leafe_jax.errors import UserError
from leafe_jax.run.report.plot import COLOURS, plot_text
from leafe_jax.run.report.table import read_results, text_table
from leafe_jax.runtime import console
from leafe_jax.runtime.files import local_path, make_directory, whole, write_json

# Method -> k -> {"value", "low", "high"}.
Row = dict[str, dict[str, dict[str, float]]]


def read_row(workdir: Path) -> Row:
    """Pass@k over all tasks for each method of a run.

    Raises:
      UserError: results.json is missing or cannot be read, or has no evaluation.
    """
    methods = read_results(workdir)["methods"]
    if not methods:
        raise UserError(f"{workdir}: results.json has no evaluated method")
    return {name: method["families"]["all"]["pass_at_k"] for name, method in methods.items()}


def check(rows: dict[str, Row], x: str) -> tuple[list[str], str]:
    """(methods that all runs have, largest k that all of these have).

    Raises:
      UserError: a run does not have the method `x`, or the runs have no other in common.
    """
    for name, row in rows.items():
        if x not in row:
            raise UserError(f"--x={x}: {name} has {', '.join(row)}")
    first, *rest = rows.values()
    methods = [method for method in first if all(method in row for row in rest)]
    ks = [set(row[m]) for row in rows.values() for m in methods]
    return methods, max(set.intersection(*ks), key=int)


def table(rows: dict[str, Row], methods: Sequence[str], largest: str) -> str:
    """Pass@1 and Pass@`largest` in percent with 95% intervals, one line per run."""
    header = ["run", *[f"{m} @{k}" for m in methods for k in ("1", largest)]]

    def cell(value: dict[str, float]) -> str:
        return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"

    lines = [
        [name, *[cell(row[m][k]) for m in methods for k in ("1", largest)]]
        for name, row in rows.items()
    ]
    return text_table(header, lines)


def draw(rows: dict[str, Row], methods: Sequence[str], largest: str, x: str, path: Path) -> None:
    """Writes a plot of Pass@1 and Pass@`largest` of each method over Pass@1 of the method `x`."""
    ordered = sorted(rows.values(), key=lambda row: row[x]["1"]["value"])
    places = [100 * row[x]["1"]["value"] for row in ordered]
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, k in zip(panels, ("1", largest), strict=True):
        for number, method in enumerate(methods):
            colour = COLOURS[number % len(COLOURS)]
            curve: list[dict[str, Any]] = [row[method][k] for row in ordered]
            value, low, high = ([100 * c[s] for c in curve] for s in ("value", "low", "high"))
            axes.plot(places, value, "o-", color=colour, label=plot_text(method), lw=2)
            axes.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)
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
        paths = [local_path("", workdir) for workdir in flags.workdirs]
        rows = {path.name: read_row(path) for path in paths}
        if len(rows) < len(paths):
            raise UserError("workdirs: two of them have the same name")
        methods, largest = check(rows, flags.x)
        out = local_path("--out=", flags.out)
        make_directory(out)
        write_json(out / "compare.json", rows)
        draw(rows, methods, largest, flags.x, out / "compare.png")
        console.say(table(rows, methods, largest))
    except UserError as error:
        console.complain(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
