"""Writes the report: a console table, a Pass@k plot, and one HTML page with the exploration trees.

    python -m leafe_jax.run.report.write --workdir=runs/quickstart

leafe_jax/run/report/page.py makes the page, and keeps hostile text from becoming markup.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
import sys
from pathlib import Path
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.run.phase import read_record
from leafe_jax.run.report import page
from leafe_jax.run.report.plot import draw_pass_at_k
from leafe_jax.run.report.table import (
    budget_rows,
    console_table,
    context_sentences,
    fit_sentence,
    read_results,
    result_rows,
    spent_sentence,
)
from leafe_jax.run.workdir import locked
from leafe_jax.runtime import console
from leafe_jax.runtime.files import local_path, make_directory, readable, whole

_MAX_TREES = 200  # trees on the page; the files have all of them


def _tree_files(workdir: Path) -> list[Path]:
    """The finished blocks that the records of the searches list, and unfinished blocks. Stray copies are
    ignored."""
    files: set[Path] = set()
    for directory in (workdir / "trees").glob("*"):
        recorded = (directory / "phase.json").exists()
        listed = read_record(directory)["files"] if recorded else {}
        own = {directory / name for name in listed}
        block = re.compile(r"[0-9]{4,}\.jsonl" + (r"\.partial" if listed else r"(\.partial)?"))
        for path in directory.glob("*.jsonl*"):
            if block.fullmatch(path.name) and path.with_suffix("") not in own:
                own.add(path)
        files |= own
    return sorted(files)


def read_tree_lines(workdir: Path) -> tuple[list[dict[str, Any]], int, int]:
    """(the first trees as the page shows them, number of all trees, number of unreadable lines).

    Unfinished blocks are read too. A block that cannot be read counts as one unreadable line.
    """
    trees, number, broken = [], 0, 0
    for path in _tree_files(workdir):
        try:
            # Split at the byte \n only: other line separators may occur inside a JSON string.
            with readable(path) as file:
                for line in filter(bytes.strip, file):
                    try:
                        text = line.decode("utf-8", errors="replace")
                        shown = page.shown_tree(json.loads(text))
                    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                        broken += 1
                        continue
                    number += 1
                    if number <= _MAX_TREES:
                        trees.append(shown)
        except UserError:
            broken += 1
    return trees, number, broken


def _escape(text: str) -> str:
    """A text as HTML, with control characters escaped."""
    return html.escape(console.visible(text))


def _html_table(header: list[str], rows: list[list[str]]) -> str:
    """A table as HTML. A first cell that equals the one above is blank and starts no new group."""
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
        " 95% intervals, bootstrap over tasks. If all tasks have the same value, the interval is a"
        " point; it says nothing about tasks that were not drawn.</p>"
        '<div class=scroll><img alt="Pass@k of each method over k"'
        f' src="data:image/png;base64,{picture}"></div>' + _html_table(*result_rows(results))
    )


def _search_section(name: str, search: dict[str, Any]) -> str:
    counts = search["reflections"]
    total = max(sum(counts.values()), 1)
    rows = [
        [status.replace("_", " "), f"{number:,}", f"{100 * number / total:.1f}"]
        for status, number in counts.items()
    ]
    share = 100 * search["branches_successful"] / max(search["branches"], 1)
    return (
        f"<p>Search {_escape(name)}: {search['solved_tasks']:,} of {search['tasks']:,} training tasks"
        f" solved in {search['episodes']:,} trajectories. {search['branches']:,} branches, of which"
        f" {search['branches_successful']:,} ({share:.1f}%) ended in success themselves."
        f" {spent_sentence(search)}</p>" + _html_table(["reflections", "number", "%"], rows)
    )


def _trees_section(shown: int, number: int, broken: int) -> str:
    note = f"{shown} of {number} trees are on this page"
    if number > shown:
        note += " (the first ones; the directory trees has all)"
    if broken:
        note += f"; {broken} unreadable {'line was' if broken == 1 else 'lines were'} left out"
    return f"<p class=meta>{note}.</p>{page.tree_controls()}"


def write_report(workdir: Path) -> None:
    """Writes report/pass_at_k.png and report/index.html from results.json and the trees.

    Raises:
      UserError: results.json is missing or cannot be read.
    """
    results = read_results(workdir)
    directory = workdir / "report"
    make_directory(directory)
    sections = [_run_section(results)]
    if results["methods"]:
        sections.append(_results_section(results, directory / "pass_at_k.png"))
    sections += [f"<p>{_escape(sentence)}</p>" for sentence in context_sentences(results)]
    sections.append("<h2>Budget</h2>" + _html_table(*budget_rows(results, times=True)))
    for item in results["fits"].items():
        sections.append(f"<p>{_escape(fit_sentence(*item))}</p>")
    trees, number, broken = read_tree_lines(workdir)
    if trees or broken or results["searches"]:
        sections.append("<h2>Exploration</h2>")
    sections += [_search_section(*item) for item in results["searches"].items()]
    if trees or broken:
        sections.append(_trees_section(len(trees), number, broken))
    text = page.make(sections, trees)
    with whole(directory / "index.html", binary=True) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def main(argv: list[str] | None = None) -> int:
    """Writes a finished run's report again and prints its table."""
    parser = argparse.ArgumentParser(
        prog="python -m leafe_jax.run.report.write", description=main.__doc__
    )
    parser.add_argument("--workdir", required=True)
    console.set_up()
    flags = parser.parse_args(argv)
    try:
        workdir = local_path("--workdir=", flags.workdir)
        read_results(workdir)  # first, so that no lock file is left in a directory without a run
        with locked(workdir, f"--workdir={flags.workdir}"):
            write_report(workdir)
            console.say(console_table(read_results(workdir)))
    except UserError as error:
        console.complain(error)
        return 2
    unwritten = console.unwritten()
    if unwritten is not None:
        console.complain(f"standard output: {unwritten}; the page was written")
    return 0 if unwritten is None else 2


if __name__ == "__main__":
    sys.exit(main())
