"""The report: console table, Pass@k plot, and one HTML page with the exploration trees.

    python -m leafe_jax.report --workdir=runs/quickstart

The page itself, and how hostile text is kept from becoming markup, is in leafe_jax/page.py.
"""

from __future__ import annotations

import argparse
import base64
import html
import itertools
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # no pyplot: a notebook's own backend stays as it is

from leafe_jax import console, page
from leafe_jax.errors import UserError
from leafe_jax.files import local_path, make_directory, read_json, readable, whole
from leafe_jax.phase import read_record
from leafe_jax.workdir import locked

RESULTS_SCHEMA = 1

# Okabe and Ito's colours, told apart by the colour-blind; grey for the first, the base model. Beyond
# them the line style changes.
_COLOURS = ("#666666", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_LINES = ("-", "--", ":")
_MAX_LABEL = 40  # characters of a name in the plot
_MAX_PANELS = 24  # families in the plot; the tables have all
_MAX_TREES = 200  # on the page; the files have all
_BUDGET = (
    ("env_steps", "environment steps"),
    ("generated_tokens", "generated tokens"),
    ("prefilled_tokens", "prefilled tokens"),
    ("cached_tokens", "cached tokens"),
    ("episodes", "episodes"),
)


def read_results(workdir: Path) -> dict[str, Any]:
    """results.json of a run; UserError when it is missing, broken or of another schema."""
    path = workdir / "results.json"
    if not path.exists():
        raise UserError(f"{path}: missing; run the phase 'report' of leafe_jax.main")
    results = read_json(path)
    found = results.get("schema")
    if found != RESULTS_SCHEMA:
        raise UserError(f"{path}: schema {found!r}: must be {RESULTS_SCHEMA}")
    for field in ("methods", "versions", "config_hash", "seed", "commit", "device"):
        if field not in results:
            raise UserError(f"{path}: field {field!r} is missing; run the phase 'report' again")
    return results


def _tree_files(workdir: Path) -> list[Path]:
    """The finished blocks that the record of `explore` lists, and blocks in flight; stray copies do not
    count. Where nothing is listed (older runs), every file with a block's name is a block."""
    directory = workdir / "explore"
    listed = read_record(directory)["files"] if (directory / "phase.json").exists() else {}
    files = {directory / name for name in listed}
    block = re.compile(r"[0-9]{4,}\.jsonl" + (r"\.partial" if listed else r"(\.partial)?"))
    for path in (directory / "trees").glob("*.jsonl*"):
        if block.fullmatch(path.name) and path.with_suffix("") not in files:
            files.add(path)
    return sorted(files)


def read_tree_lines(workdir: Path) -> tuple[list[dict[str, Any]], int, int]:
    """(what the page shows of the first trees, number of all, number of unreadable lines); half-written
    blocks are read too. A block that cannot be read counts as one unreadable line."""
    trees, number, broken = [], 0, 0
    for path in _tree_files(workdir):
        try:
            # By the byte \n: other line ends may stand inside a JSON string.
            with readable(path) as file:
                for line in filter(bytes.strip, file):
                    try:
                        text = line.decode("utf-8", errors="replace")
                        shown = page.shown_tree(json.loads(text))  # what cannot be shown is no tree
                    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                        broken += 1
                        continue
                    number += 1
                    if number <= _MAX_TREES:
                        trees.append(shown)
        except UserError:
            broken += 1
    return trees, number, broken


# -- table -----------------------------------------------------------------------------------------
def _families(results: dict[str, Any]) -> list[str]:
    """First "all", then the families that any method has, sorted."""
    names = {f for method in results["methods"].values() for f in method["families"]}
    return ["all", *sorted(names - {"all"})]


def _shown_ks(results: dict[str, Any]) -> list[str]:
    """Pass@1, one in the middle and the largest k."""
    ks = [k for m in results["methods"].values() for k in m["families"]["all"]["pass_at_k"]]
    ks = sorted(set(ks), key=int)
    return sorted({ks[0], ks[len(ks) // 2], ks[-1]}, key=int)


def _cell(value: dict[str, float] | None) -> str:
    if value is None:  # this method has fewer samples
        return "-"
    return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: per family and method, success in percent with 95% intervals over tasks."""
    ks = _shown_ks(results)
    header = ["family", "method", "tasks", *[f"Pass@{k} %" for k in ks]]
    rows = []
    for family in _families(results):
        for method, data in results["methods"].items():
            if family in data["families"]:
                summary = data["families"][family]
                cells = [_cell(summary["pass_at_k"].get(k)) for k in ks]
                rows.append([family, method, str(summary["tasks"]), *cells])
    return header, rows


def _budget_rows(results: dict[str, Any], times: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what each part of the run spent; `times` adds wall seconds."""
    header = ["spent on", *[label for _, label in _BUDGET], *["wall seconds"] * times]
    parts = {f"evaluating {name}": method for name, method in results["methods"].items()}
    if "explore" in results:
        parts = {"stage 1": results["explore"], **parts}
    rows = []
    for name, part in parts.items():
        seconds = [f"{part['seconds']:,.0f}" if "seconds" in part else "-"] * times
        rows.append([name, *[f"{part['budget'][key]:,}" for key, _ in _BUDGET], *seconds])
    return header, rows


def _text_table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
             for row in [header, ["-" * w for w in widths], *rows]]  # fmt: skip
    return "\n".join(lines)


def console_table(results: dict[str, Any]) -> str:
    """The tables for the end of a run: results, stage 1, budget. Holds no times, so that the same
    run always prints the same table."""
    parts = []
    if results["methods"]:
        parts.append(
            "Success on held-out tasks, one plain rollout a sample, 95% intervals over tasks"
        )
        parts.append(_text_table(*_rows(results)))
    parts += _context_sentences(results)
    if "explore" in results:
        parts.append(_explore_sentence(results["explore"]))
    if "distill" in results:
        parts.append(_distill_sentence(results["distill"]))
    parts.append(_text_table(*_budget_rows(results)))
    return "\n\n".join(parts)


def _context_sentences(results: dict[str, Any]) -> list[str]:
    """A sentence for each part of the run whose episodes did not all have room."""
    parts = {f"of {name}": method for name, method in results["methods"].items()}
    if "explore" in results:
        parts["of stage 1"] = results["explore"]
    return [
        f"{part['out_of_context']:,} of {part['budget']['episodes']:,} episodes {name} ended because the"
        " context was full (sampler.max_len)."
        for name, part in parts.items()
        if part.get("out_of_context")
    ]


def _explore_sentence(explore: dict[str, Any]) -> str:
    reflections = ", ".join(f"{n} {name}" for name, n in explore["reflections"].items()) or "none"
    return (
        f"Stage 1: {explore['solved_tasks']} of {explore['tasks']} tasks solved in"
        f" {explore['episodes']} trajectories; {explore['branches_successful']} of"
        f" {explore['branches']} branches succeeded. Reflections: {reflections}."
    )


def _distill_sentence(distill: dict[str, Any]) -> str:
    sentence = (
        f"Stage 2: {distill['counterfactual_examples']} counterfactual pairs,"
        f" {distill['rehearsal_examples']} rehearsed trajectories"
    )
    tokens = distill.get("target_tokens")
    return sentence + ("." if tokens is None else f", {tokens} target tokens.")


# -- plot ------------------------------------------------------------------------------------------
def plot_text(text: str) -> str:
    """Text that matplotlib draws as it is, on one short line: control characters are written out, no
    formula begins at a dollar sign, and no label is hidden for an underscore at its start."""
    shown = console.visible(text)
    if len(shown) > _MAX_LABEL:
        shown = shown[: _MAX_LABEL - 3] + "..."
    shown = shown.replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown


def _panel(axes, results: dict[str, Any], family: str, label_every: int) -> None:
    styles = [(line, colour) for line in _LINES for colour in _COLOURS]
    shade = 0.18 if len(results["methods"]) <= 3 else 0.08  # bands add up where they overlap
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
        if len(x) == 1:  # a band needs two points
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
    """Pass@k of every method: a large panel over all tasks, small ones for the first families."""
    families = _families(results)[1:][:_MAX_PANELS]
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
        _panel(axes, results, family, label_every=2 if len(_shown_ks(results)) > 2 else 1)
        axes.tick_params(labelsize=8)
    handles, labels = large.get_legend_handles_labels()
    ncols = len(labels) if len(labels) <= 6 else -(-len(labels) // 2)
    figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=ncols)
    with whole(path, binary=True) as file, warnings.catch_warnings():
        # About letters that the font lacks, and labels that leave no room: neither is worth a line.
        warnings.simplefilter("ignore")
        figure.savefig(file, dpi=130, format="png")


def _escape(text: str) -> str:
    """HTML of a text, with control characters written out."""
    return html.escape(console.visible(text))


# -- page ------------------------------------------------------------------------------------------
def _html_table(header: list[str], rows: list[list[str]]) -> str:
    """A table; a first cell that repeats the one above is left blank and opens no new group."""
    head = "".join(f"<th>{_escape(cell)}</th>" for cell in header)
    body, above = [], None
    for first, *rest in rows:
        repeated, above = first == above, first
        cells = "".join(f"<td>{_escape(cell)}</td>" for cell in ["" if repeated else first, *rest])
        body.append(f"<tr{' class=same' if repeated else ''}>{cells}</tr>")
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(body)}</table></div>"


def _run_section(results: dict[str, Any]) -> str:
    facts = {
        "config": results["config_hash"],
        "seed": results["seed"],
        "commit": (results["commit"] or "unknown")[:12],
        "measured on": results["device"],
        **results["versions"],
    }
    words = ", ".join(f"{name} {value}" for name, value in facts.items())
    return f"<p class=meta>{_escape(words)}</p>"


def _results_section(results: dict[str, Any], plot: Path) -> str:
    draw_pass_at_k(results, plot)
    picture = base64.b64encode(plot.read_bytes()).decode()
    return (
        "<h2>Held-out tasks</h2><p>Plain rollouts: no reflection, no rollback, no experience."
        " Intervals: 95%, bootstrap over tasks; where all tasks have the same value the interval is a"
        " point, which says nothing about tasks not drawn.</p>"
        '<div class=scroll><img alt="Pass@k of each method over k"'
        f' src="data:image/png;base64,{picture}"></div>' + _html_table(*_rows(results))
    )


def _explore_section(explore: dict[str, Any]) -> str:
    counts = explore["reflections"]
    total = max(sum(counts.values()), 1)
    rows = [
        [status.replace("_", " "), f"{number:,}", f"{100 * number / total:.1f}"]
        for status, number in counts.items()
    ]
    share = 100 * explore["branches_successful"] / max(explore["branches"], 1)
    return (
        f"<p>{explore['solved_tasks']:,} of {explore['tasks']:,} training tasks solved in"
        f" {explore['episodes']:,} trajectories. {explore['branches']:,} branches, of which"
        f" {explore['branches_successful']:,} ({share:.1f}%) ended in success themselves.</p>"
        + _html_table(["reflections", "number", "%"], rows)
    )


def _trees_section(shown: int, number: int, broken: int) -> str:
    note = f"{shown} of {number} trees are on this page"
    if number > shown:
        note += " (the first ones; explore/trees has all)"
    if broken:
        note += f"; {broken} unreadable {'line was' if broken == 1 else 'lines were'} left out"
    return f"<p class=meta>{note}.</p>{page.TREE_CONTROLS}"


def write_report(workdir: Path) -> None:
    """Writes report/pass_at_k.png and report/index.html from results.json and the trees.

    Raises:
      UserError: no readable results.json.
    """
    results = read_results(workdir)
    directory = workdir / "report"
    make_directory(directory)
    sections = [_run_section(results)]
    if results["methods"]:
        sections.append(_results_section(results, directory / "pass_at_k.png"))
    sections += [f"<p>{_escape(sentence)}</p>" for sentence in _context_sentences(results)]
    sections.append("<h2>Budget</h2>" + _html_table(*_budget_rows(results, times=True)))
    if "distill" in results:
        sections.append(f"<p>{_escape(_distill_sentence(results['distill']))}</p>")
    trees, number, broken = read_tree_lines(workdir)
    if trees or broken or "explore" in results:
        sections.append("<h2>Exploration</h2>")
    if "explore" in results:
        sections.append(_explore_section(results["explore"]))
    if trees or broken:
        sections.append(_trees_section(len(trees), number, broken))
    text = page.make(sections, trees)
    with whole(directory / "index.html", binary=True) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def main(argv: list[str] | None = None) -> int:
    """Writes the report of a finished run again and prints its table."""
    parser = argparse.ArgumentParser(prog="python -m leafe_jax.report", description=main.__doc__)
    parser.add_argument("--workdir", required=True)
    console.set_up()
    flags = parser.parse_args(argv)
    try:
        workdir = local_path("--workdir=", flags.workdir)
        read_results(workdir)  # before a lock is left in a directory that is no run's
        with locked(workdir, f"--workdir={flags.workdir}"):
            write_report(workdir)
            console.say(console_table(read_results(workdir)))
    except UserError as error:
        console.complain(error)
        return 2
    unwritten = console.unwritten()
    if unwritten is not None:
        console.complain(f"standard output: {unwritten}; the page is written")
    return 0 if unwritten is None else 2


if __name__ == "__main__":
    sys.exit(main())
