"""The Pass@k plot."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

from leafe_jax.run.report.table import families_of, shown_ks
from leafe_jax.runtime import console
from leafe_jax.runtime.files import whole

# Okabe and Ito's colours, which colour-blind readers can tell apart. Grey is for the first method, the base
# model. With more methods than colours the line style changes.
COLOURS = ("#666666", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_LINES = ("-", "--", ":")
_MAX_LABEL = 40  # characters of a name in the plot
_MAX_PANELS = 24  # families in the plot; the tables have all of them


def plot_text(text: str) -> str:
    """One short line that matplotlib draws literally: control characters are escaped, a dollar sign starts
    no formula, and a leading underscore does not hide a label."""
    shown = console.visible(text)
    if len(shown) > _MAX_LABEL:
        shown = shown[: _MAX_LABEL - 3] + "..."
    shown = shown.replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown


def _panel(axes: Any, results: dict[str, Any], family: str, label_every: int) -> None:
    styles = [(line, colour) for line in _LINES for colour in COLOURS]
    shade = 0.18 if len(results["methods"]) <= 3 else 0.08  # overlapping bands get darker
    ticks, tasks = set(), 0
    for (line, colour), (method, data) in zip(
        itertools.cycle(styles), results["methods"].items(), strict=False
    ):
        if family not in data["families"]:
            continue
        curve, tasks = (data["families"][family][key] for key in ("pass_at_k", "tasks"))
        ks = sorted(curve, key=int)
        x = [int(k) for k in ks]
        y, low, high = ([100 * curve[k][key] for k in ks] for key in ("value", "low", "high"))
        axes.plot(
            x, y, line, color=colour, label=plot_text(method), lw=2, marker="o", ms=3, clip_on=False
        )
        axes.fill_between(x, low, high, color=colour, alpha=shade, lw=0)
        if len(x) == 1:  # a band needs two points, so draw a bar
            axes.vlines(x, low, high, color=colour, lw=6, alpha=2 * shade)
        ticks.update(x)
    axes.set_xscale("log", base=2)
    shown = sorted(ticks)
    axes.set_xticks(shown, ["" if i % label_every else str(k) for i, k in enumerate(shown)])
    axes.minorticks_off()
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20 if label_every == 1 else 50))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{plot_text(family)} ({tasks} tasks)", fontsize=10, loc="left")


def draw_pass_at_k(results: dict[str, Any], path: Path) -> None:
    """Writes a plot of Pass@k for every method: a large panel for all tasks, and small ones for the first
    families."""
    # Not pyplot, which would change a notebook's backend. Imported here: it takes a second that most
    # starts of a run do not need.
    from matplotlib.figure import Figure

    families = families_of(results)[1:][:_MAX_PANELS]
    num_rows = 2 if len(families) <= 8 else 3
    columns = -(-len(families) // num_rows)
    figure = Figure(figsize=(5.2 + 2.3 * columns, 2.45 * num_rows), layout="constrained")
    grid = figure.add_gridspec(num_rows, 2 + columns)
    large = figure.add_subplot(grid[:, :2])
    _panel(large, results, "all", label_every=1)
    large.set_xlabel("k (samples per task)")
    large.set_ylabel("Pass@k, %")
    for index, family in enumerate(families):
        axes = figure.add_subplot(grid[index // columns, 2 + index % columns])
        _panel(axes, results, family, label_every=2 if len(shown_ks(results)) > 2 else 1)
        axes.tick_params(labelsize=8)
    handles, labels = large.get_legend_handles_labels()
    ncols = len(labels) if len(labels) <= 6 else -(-len(labels) // 2)
    figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=ncols)
    with whole(path, binary=True) as file, warnings.catch_warnings():
        # matplotlib warns about missing glyphs and labels that leave no room. Neither matters to a user.
        warnings.simplefilter("ignore")
        figure.savefig(file, dpi=130, format="png")
