"""A sweep: one base model per value of a field, several variants of the method on each.

The study behind the embedded model found that what LEAFE gains over plain rejection sampling hangs
on how often the base does the right thing unasked. `configs/unaided_sweep.py` varies that rate; every
part is an ordinary run in a workdir of its own, so a killed sweep goes on where it was.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from leafe_jax.errors import NothingToLearn, UserError
from leafe_jax.run import experiment
from leafe_jax.run.report.plot import plot_text
from leafe_jax.run.workdir import opened
from leafe_jax.runtime import console, processes
from leafe_jax.runtime.files import read_json, whole, write_json


def _override(config, field: str, value: Any) -> None:
    section, _, name = field.rpartition(".")
    for part in section.split(".") if section else ():
        config = config[part]
    if name not in config:
        raise UserError(f"sweep: there is no field {field!r}")
    config[name] = value


def _shares(workdir: Path, method: str) -> dict[str, dict[str, float]]:
    results = read_json(workdir / "results.json")
    return results["methods"][method]["families"]["all"]["pass_at_k"]


def run(config, workdir: str) -> None:
    """Runs every value and variant of `config.sweep`, then writes sweep.json and sweep.png.

    Args:
      config: a whole config with `sweep`: `field` and its `settings` (of the base model),
        `variants` ((name, ((field, value), ...)), ...) (of the method).
      workdir: gets a directory per value, with `base` and one per variant in it.

    Raises:
      UserError: as experiment.run, or a field that does not exist.
    """
    with opened(workdir) as root:
        _run(config, root)


def _run(config, root: Path) -> None:
    rows = []
    for value in config.sweep.settings:
        part = root / str(value)
        base = copy.deepcopy(config)
        _override(base, config.sweep.field, value)
        base.phases = ("bootstrap",)
        experiment.run(base, str(part / "base"))
        row: dict[str, Any] = {"value": value}
        for number, (name, changes) in enumerate(config.sweep.variants):
            variant = copy.deepcopy(base)
            for field, changed in changes:
                _override(variant, field, changed)
            variant.model.path = str(part / "base" / "bootstrap" / "model")
            variant.phases = ("explore", "distill", "evaluate", "report")
            # The base model is the same for all variants: it is evaluated once.
            variant.evaluate.methods = ("base", "leafe") if number == 0 else ("leafe",)
            try:
                experiment.run(variant, str(part / name))
            except NothingToLearn:
                if number == 0:
                    raise
                row[name] = row["base"]  # without a single success the weights stay as they are
                continue
            if number == 0:
                row["base"] = _shares(part / name, "base")
            row[name] = _shares(part / name, "leafe")
        rows.append(row)
        if processes.first():
            write_json(root / "sweep.json", rows)
    if processes.first():
        draw(rows, root / "sweep.png")
        console.say(console_table(rows, config.sweep.field))


def _methods(rows: list[dict[str, Any]]) -> list[str]:
    return [name for name in rows[0] if name != "value"]


def console_table(rows: list[dict[str, Any]], field: str) -> str:
    """Pass@1 and Pass@k_max of each method, in percent, a line a value."""
    largest = max(rows[0]["base"], key=int)
    header = f"{field:>24s}"
    for name in _methods(rows):
        header += f"{name + ' @1':>16s}{f'@{largest}':>8s}"
    lines = [header]
    for row in rows:
        line = f"{row['value']!s:>24s}"
        for name in _methods(rows):
            line += f"{100 * row[name]['1']['value']:16.1f}{100 * row[name][largest]['value']:8.1f}"
        lines.append(line)
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Both measures against the base model's own Pass@1, which is the unaided rate as measured."""
    largest = max(rows[0]["base"], key=int)
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    x = [100 * row["base"]["1"]["value"] for row in rows]
    for axes, k in zip(panels, ("1", largest), strict=True):
        for colour, name in zip(("#666666", "#0072B2", "#D55E00"), _methods(rows), strict=False):
            curve = [row[name][k] for row in rows]
            axes.plot(
                x,
                [100 * c["value"] for c in curve],
                "o-",
                color=colour,
                label=plot_text(name),
                lw=2,
            )
            low, high = ([100 * c[side] for c in curve] for side in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        axes.set_xlabel("Pass@1 of the base model, %")
        axes.set_ylabel(f"Pass@{k}, %")
        axes.set_ylim(-2, 102)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    with whole(path, binary=True) as file:
        figure.savefig(file, dpi=130, format="png")
    plt.close(figure)
