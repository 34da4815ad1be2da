"""The page of a table, as Markdown and HTML: results, claims, budgets, protocol, the paper's own."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure  # not pyplot, which would change a notebook's backend

from leafe_jax.paper import claims, numbers
from leafe_jax.paper.numbers import Cell
from leafe_jax.paper.published import PUBLISHED
from leafe_jax.paper.tables import LabConfig, Table
from leafe_jax.run import protocol
from leafe_jax.run.intervals import SIGNED, seeds_interval
from leafe_jax.run.passk import ks_up_to
from leafe_jax.run.report.plot import COLOURS, plot_text
from leafe_jax.run.report.table import points, provenance_sentence
from leafe_jax.runtime import console, sources
from leafe_jax.tools import compare

_ALL = "all together"
_ONE = {"methods": "method", "searches": "search"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a page: a heading, sentences, and a table if there is one."""

    title: str
    sentences: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def _share(values: tuple[float, float, float]) -> str:
    mean, low, high = (f"{100 * v:.1f}" for v in values)
    return f"{mean} [{low}, {high}]"


def _results(spec: Table, cells: Sequence[Cell]) -> Block:
    ks = (1, numbers.largest_k(cells)) if spec.rows == "methods" else (1,)
    labels = [f"Pass@{k}" for k in ks] if spec.rows == "methods" else ["tasks solved"]
    rows = []
    for row in numbers.rows_of(cells):
        line = [row]
        for group in ([cell] for cell in cells):
            line += [_cell_of(group, row, k) for k in ks]
        if len(cells) > 1:
            line += [_cell_of(cells, row, k) for k in ks]
        rows.append(tuple(line))
    names = [cell.name for cell in cells] + ([_ALL] if len(cells) > 1 else [])
    header = (_ONE[spec.rows], *(f"{name} {label}" for name in names for label in labels))
    seeds = "; ".join(f"{c.name}: {len(c.tasks)} tasks, seeds {_listed(c.seeds)}" for c in cells)
    said = f"Success in percent with 95% intervals over tasks and seeds. {seeds}."
    return Block("Results", (said,), header, tuple(rows))


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _cell_of(cells: Sequence[Cell], row: str, k: int) -> str:
    found = numbers.taken_together(cells, row, k)
    return "-" if found is None else _share(numbers.estimate(found[0]))


def _paired(spec: Table, cells: Sequence[Cell]) -> Block:
    """Every row minus the first one, and LEAFE (or the tree) minus every row."""
    rows = numbers.rows_of(cells)
    ours = "leafe" if spec.rows == "methods" else "tree"
    pairs = [(row, rows[0]) for row in rows[1:]]
    pairs += [(ours, row) for row in rows if ours in rows and row not in (ours, rows[0])]
    ks = (1, numbers.largest_k(cells)) if spec.rows == "methods" else (0,)
    labels = [f"Pass@{k}" for k in ks] if spec.rows == "methods" else ["tasks solved"]
    groups = [(cell.name, [cell]) for cell in cells] + [(_ALL, list(cells))] * (len(cells) > 1)
    lines = [
        (f"{row} - {minus}", *(_difference(g, row, minus, k) for _, g in groups for k in ks))
        for row, minus in dict.fromkeys(pairs)
    ]
    header = ("difference", *(f"{name} {label}" for name, _ in groups for label in labels))
    said = "Percentage points with 95% intervals, paired by task and seed."
    return Block("Differences", (said,), header, tuple(lines))


def _difference(cells: Sequence[Cell], row: str, minus: str, k: int) -> str:
    found = numbers.differences(cells, row, minus, k)
    if found is None:
        return "-"
    low, high = seeds_interval(found[0], SIGNED)
    return f"{points(float(found[0].mean()))} [{points(low)}, {points(high)}]"


def _claims(spec: Table, cells: Sequence[Cell]) -> Block:
    def found(row: str, minus: str, k: int):
        return numbers.differences(cells, row, minus, k)

    verdicts = [claims.judge(claim, found) for claim in spec.claims]
    note = (
        "A claim holds here if the 95% interval of the paired difference lies on its side, does not hold if"
        " it lies on the other, and is undecided otherwise. The intervals are not corrected for the number"
        f" of claims ({len(verdicts)})."
    )
    return Block("The paper's claims", (note, *(verdict.sentence for verdict in verdicts)))


def _budgets(spec: Table, cells: Sequence[Cell]) -> Block:
    rows = []
    for cell in cells:
        ours = "leafe" if spec.rows == "methods" else "tree"
        reference = [numbers.spent(r, ours, spec.rows) for r in cell.results]
        for row in cell.counts:
            each = [numbers.spent(r, row, spec.rows) for r in cell.results]
            own = {name: round(sum(e[name] for e in each) / len(each)) for name in each[0]}
            told = numbers.beyond(each, reference) or ("equal" if own["env_steps"] else "nothing")
            expert = numbers.expert_of(cell.results[0], row, spec.rows) or "-"
            rows.append((cell.name, row, *(f"{v:,}" for v in own.values()), told, expert))
    header = (
        "environment", _ONE[spec.rows], "environment steps", "generated tokens", "reflections",
        "trained tokens", "wall seconds", "against LEAFE's", "expert",
    )  # fmt: skip
    said = (
        "What each row has cost before its evaluation, with all that it reads; the mean over seeds. Equal,"
        f" with every seed: environment steps within {numbers.STEPS_WITHIN:.0%}, generated tokens within"
        f" {numbers.TOKENS_WITHIN:.0%}."
    )
    return Block("Budgets", (said,), header, tuple(rows))


def _protocol(cells: Sequence[Cell]) -> Block:
    lines = [
        f"{cell.name}: {line}"
        for cell in cells
        for line in protocol.sentence(cell.results[0]["protocol"]).split("\n")
    ]
    seen: dict[str, list[str]] = {}  # what is said of the code -> of which runs
    for cell in cells:
        for seed, results in zip(cell.seeds, cell.results, strict=True):
            code = results["made_by"]["report"][-1]
            said = provenance_sentence(results, code) or f"Made by {sources.told(code)}."
            seen.setdefault(said, []).append(f"{cell.name} seed {seed}")
    lines += [f"{', '.join(runs)}: {said}" for said, runs in seen.items()]
    return Block("Protocol", tuple(lines))


def _paper(table: str) -> list[Block]:
    found = PUBLISHED.get(table)
    if found is None:
        return []
    note = "NOT measured here: the paper's own numbers, success in percent, with its models and budgets. "
    return [Block("The paper's own numbers", (note + found.note,), found.header, found.rows)]


def blocks(
    lab: LabConfig, spec: Table, cells: Sequence[Cell], missing: Mapping[str, str]
) -> list[Block]:
    """The parts of a page.

    Args:
      lab: which grid.
      spec: its table.
      cells: those with a finished run.
      missing: run -> why it is not there.
    """
    made = [Block(f"{spec.title} ({lab.mode})")]
    if missing:
        lines = tuple(f"{name}: {reason}" for name, reason in missing.items())
        made.append(Block("Not finished", lines))
    if cells:
        made += [_results(spec, cells), _paired(spec, cells), _claims(spec, cells),
                 _budgets(spec, cells), _protocol(cells)]  # fmt: skip
    return made + _paper(lab.table)


# -- as text -----------------------------------------------------------------------------------------
def markdown(parts: Sequence[Block]) -> str:
    """The page as Markdown."""
    lines = []
    for number, part in enumerate(parts):
        lines += [f"{'##' if number else '#'} {_plain(part.title)}", ""]
        for sentence in part.sentences:
            lines += [f"* {_plain(sentence)}" if len(part.sentences) > 1 else _plain(sentence)]
        lines += [""] * bool(part.sentences)
        if part.header:
            lines += [_line(part.header), _line(["---"] * len(part.header))]
            lines += [*map(_line, part.rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    return " ".join(console.visible(text).split()).replace("<", "&lt;")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _escape(text: str) -> str:
    return html.escape(console.visible(text))


_STYLE = (
    "body{font:15px/1.5 system-ui;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #ccc;padding:3px 7px;"
    "text-align:left;white-space:nowrap}.scroll{overflow-x:auto}.paper{background:#f5f0e0}"
)


def web_page(parts: Sequence[Block], picture: bytes | None) -> str:
    """The page as HTML; `picture` is a PNG."""
    body = []
    for number, part in enumerate(parts):
        level = "h2" if number else "h1"
        kind = " class=paper" if part.title == "The paper's own numbers" else ""
        body.append(f"<section{kind}><{level}>{_escape(part.title)}</{level}>")
        body += [f"<p>{_escape(sentence)}</p>" for sentence in part.sentences]
        if part.header:
            head = "".join(f"<th>{_escape(cell)}</th>" for cell in part.header)
            rows = "".join(
                "<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>"
                for row in part.rows
            )
            body.append(f"<div class=scroll><table><tr>{head}</tr>{rows}</table></div>")
        if part.title == "Results" and picture is not None:
            data = base64.b64encode(picture).decode()
            body.append(f'<img alt="Pass@k over k" src="data:image/png;base64,{data}">')
        body.append("</section>")
    title = _escape(parts[0].title)
    return (
        f'<!doctype html><html lang=en><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def curves(cells: Sequence[Cell]) -> bytes:
    """A PNG with the Pass@k of every row over k, on a logarithmic axis, a panel for each cell.

    The bands are 95% intervals.
    """
    figure = Figure(figsize=(5.2 * len(cells), 4.2), layout="constrained")
    panels = figure.subplots(1, len(cells), squeeze=False)[0]
    names = numbers.rows_of(cells)
    for axes, cell in zip(panels, cells, strict=True):
        ks = ks_up_to(cell.samples)
        for row in cell.counts:
            colour = COLOURS[names.index(row) % len(COLOURS)]
            found = [numbers.estimate(cell.values(row, k)) for k in ks]
            value, low, high = ([100 * v for v in column] for column in zip(*found, strict=True))
            axes.plot(ks, value, "o-", color=colour, label=plot_text(row), lw=1.6, ms=3)
            axes.fill_between(ks, low, high, color=colour, alpha=0.14, lw=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.set(title=plot_text(cell.name), xlabel="k", ylabel="Pass@k, %", ylim=(-2, 102))
        axes.grid(alpha=0.25)
    panels[0].legend(frameon=False, fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, dpi=110, format="png")
    return data.getvalue()


def sweep(cells: Sequence[Cell], x: str) -> bytes:
    """A PNG with Pass@1 and the largest Pass@k of every row over Pass@1 of the row `x`, a point a cell."""
    ks = (1, numbers.largest_k(cells))
    rows = [row for row in numbers.rows_of(cells) if all(row in cell.counts for cell in cells)]
    made = {
        cell.name: {
            "pass_at_k": {
                row: {
                    str(k): dict(
                        zip(
                            ("value", "low", "high"),
                            numbers.estimate(cell.values(row, k)),
                            strict=True,
                        )
                    )
                    for k in ks
                }
                for row in rows
            }
        }
        for cell in cells
    }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "sweep.png"
        compare.draw({"experiments": made}, rows, ks, x, path)
        return path.read_bytes()
