"""The report: console table, Pass@k plot, and one HTML page with the exploration trees.

    python -m leafe_jax.report --workdir=runs/quickstart

Model text is hostile: it reaches the page only as JSON with every `<` escaped, and is put into the
document with textContent, so it can never become markup.
"""

from __future__ import annotations

import argparse
import base64
import html
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # no pyplot: a notebook's own backend stays as it is

from leafe_jax.errors import UserError
from leafe_jax.files import local_path, make_directory, put_in_place, read_json
from leafe_jax.workdir import locked

RESULTS_SCHEMA = 1

# Okabe and Ito's colours, told apart by the colour-blind; grey for the first, the base model. Beyond
# them the line style changes.
_COLOURS = ("#666666", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_LINES = ("-", "--", ":")
_MAX_TREES = 200  # on the page; the files have all
_MAX_CHARS = 10_000  # of one text on the page; the files have all
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


def read_tree_lines(workdir: Path) -> tuple[list[dict[str, Any]], int, int]:
    """(what the page shows of the first trees, number of all, number of unreadable lines); half-written
    blocks are read too."""
    trees, number, broken = [], 0, 0
    directory = workdir / "explore" / "trees"
    for path in sorted([*directory.glob("*.jsonl"), *directory.glob("*.jsonl.partial")]):
        # Not splitlines(): that also splits at characters that may stand inside a JSON string.
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            if not line.strip():
                continue
            try:
                shown = _for_page(json.loads(line))  # whatever cannot be shown is no tree
            except (ValueError, KeyError, TypeError, AttributeError):
                broken += 1
                continue
            number += 1
            if number <= _MAX_TREES:
                trees.append(shown)
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
def _plain(text: str) -> str:
    """Text that matplotlib draws as it is: no half surrogate pair, no formula between dollars."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")


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
            x, y, line, color=colour, label=_plain(method), lw=2, marker="o", ms=3, clip_on=False
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
    axes.set_title(f"{_plain(family)} ({tasks} tasks)", fontsize=10, loc="left")


def draw_pass_at_k(results: dict[str, Any], path: Path) -> None:
    """Pass@k of every method: one large panel over all tasks, a small one per family."""
    families = _families(results)[1:]
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
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, dpi=130, format="png")
    put_in_place(partial, path)


# -- page ------------------------------------------------------------------------------------------
def _html_table(header: list[str], rows: list[list[str]]) -> str:
    """A table; a first cell that repeats the one above is left blank and opens no new group."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body, above = [], None
    for first, *rest in rows:
        repeated, above = first == above, first
        cells = "".join(
            f"<td>{html.escape(cell)}</td>" for cell in ["" if repeated else first, *rest]
        )
        body.append(f"<tr{' class=same' if repeated else ''}>{cells}</tr>")
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(body)}</table></div>"


def _short(text: str | None) -> str | None:
    if text is None or len(text) <= _MAX_CHARS:
        return text
    return f"{text[:_MAX_CHARS]} [... {len(text) - _MAX_CHARS:,} more characters in the tree file]"


def _for_page(tree: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a tree: text, no token ids."""

    def kept(record: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
        values = {field: record[field] for field in fields}
        return {f: _short(v) if isinstance(v, str) else v for f, v in values.items()}

    nodes = []
    for node in tree["nodes"]:
        shown = kept(node, ("id", "parent", "branch_step", "kind", "experience",
                            "final_observation", "success", "done"))  # fmt: skip
        shown["stop"] = node.get("stop", "")
        shown["turns"] = [
            kept(turn, ("step", "observation", "experience", "text", "action", "valid"))
            for turn in node["turns"]
        ]
        shown["reflections"] = [
            kept(reflection, ("step", "text", "status", "tau", "experience", "child"))
            for reflection in node["reflections"]
        ]
        nodes.append(shown)
    return {"task_id": str(tree["task_id"]), "family": str(tree["family"]), "nodes": nodes}


def _run_section(results: dict[str, Any]) -> str:
    facts = {
        "config": results["config_hash"],
        "seed": results["seed"],
        "commit": (results["commit"] or "unknown")[:12],
        "measured on": results["device"],
        **results["versions"],
    }
    words = ", ".join(f"{name} {value}" for name, value in facts.items())
    return f"<p class=meta>{html.escape(words)}</p>"


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
    return f"<p class=meta>{note}.</p>{_TREE_CONTROLS}"


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
    sections += [f"<p>{html.escape(sentence)}</p>" for sentence in _context_sentences(results)]
    sections.append("<h2>Budget</h2>" + _html_table(*_budget_rows(results, times=True)))
    if "distill" in results:
        sections.append(f"<p>{html.escape(_distill_sentence(results['distill']))}</p>")
    trees, number, broken = read_tree_lines(workdir)
    if trees or broken or "explore" in results:
        sections.append("<h2>Exploration</h2>")
    if "explore" in results:
        sections.append(_explore_section(results["explore"]))
    if trees or broken:
        sections.append(_trees_section(len(trees), number, broken))
    data = json.dumps(trees, ensure_ascii=True)
    # Inside <script> only "</" and "<!--" could end or change the element; no "<" is left at all.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    # Joined and not substituted: no text of the run can stand for a part of the page.
    page = "".join((
        _HEAD, "\n".join(sections),
        '\n<script type="application/json" id=data>', data, "</script>\n<script>", _SCRIPT,
        "</script>\n</body></html>\n",
    ))  # fmt: skip
    partial = directory / "index.html.partial"
    partial.write_text(page, encoding="utf-8", errors="replace")  # half a surrogate pair is "?"
    put_in_place(partial, directory / "index.html")


_TREE_CONTROLS = """<div class=controls>
<label>family <select id=family><option value="">all</option></select></label>
<label>outcome <select id=outcome><option value="">all</option>
<option value=branch>solved by a branch</option><option value=root>solved unaided</option>
<option value=no>not solved</option></select></label>
<label>text <input id=search type=search placeholder="observation, reply, experience"></label>
<span id=count class=meta></span></div>
<p class=meta><span class=key><i class="swatch win"></i>on a path to success</span>
<span class=key><i class="swatch gone"></i>abandoned: undone by a rollback</span>
<span class=key><span class=tell>experience e</span></span></p>
<div id=trees></div>"""

_HEAD = """<!doctype html>
<html lang=en><head><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<title>LEAFE run</title><style>
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1b1b;--soft:#5c5c5c;--line:#d8d8d8;--card:#f7f7f5;
--gone:#767676;--good:#00724c;--bad:#a33a00;--tell:#fff3c4;--tellfg:#4a3b00}
@media(prefers-color-scheme:dark){:root{--bg:#161616;--fg:#e8e8e8;--soft:#a8a8a8;--line:#3a3a3a;
--card:#1f1f1f;--gone:#8a8a8a;--good:#4cc38a;--bad:#ff9a62;--tell:#463c14;--tellfg:#ffe9a6}}
*{box-sizing:border-box}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1100px;
margin:0 auto;padding:16px;overflow-wrap:anywhere}
h1{margin:.2em 0}h2{margin:1.4em 0 .4em}.meta{color:var(--soft);font-size:13px}
img{display:block;max-width:100%;background:#fff;border-radius:6px;margin:8px 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:3px 20px 3px 0;text-align:left;white-space:nowrap}
td{border-top:1px solid var(--line)}tr.same td{border-top:0}.scroll{overflow-x:auto}
.controls{display:flex;gap:8px 16px;flex-wrap:wrap;align-items:center;margin:8px 0}
input,select{font:inherit;max-width:100%}input{width:17em}
.key{display:inline-block;margin-right:16px}
.swatch{display:inline-block;width:14px;height:0;vertical-align:middle;margin-right:6px}
.swatch.win{border-top:3px solid var(--good)}.swatch.gone{border-top:3px dashed var(--gone)}
summary{cursor:pointer}
.tree{border:1px solid var(--line);border-radius:6px;padding:4px 12px;margin:6px 0;
background:var(--card)}
.node{margin:8px 0 8px 2px;padding-left:10px;border-left:1px solid var(--line)}
.node.win{border-left-color:var(--good)}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad)}
.turn,.end,.reflect{font-size:13px;padding:2px 0 2px 8px;border-left:3px solid transparent}
.turn,.end{display:grid;grid-template-columns:2em 1fr}
.turn.win{border-left-color:var(--good)}.turn.gone{border-left:3px dashed var(--gone)}
.obs,.no{color:var(--soft)}.gone *{color:var(--gone)}
.obs,.say,.reply{white-space:pre-wrap;min-width:0}
.act,.reply{font-family:ui-monospace,monospace}.reply{font-size:12px;color:var(--soft)}
.tell{background:var(--tell);color:var(--tellfg)!important;border-radius:4px;padding:1px 6px;
box-decoration-break:clone;-webkit-box-decoration-break:clone;white-space:pre-wrap}
.back{color:var(--gone);font-size:12px;font-style:italic;padding:4px 0 0 11px}
.badge{border:1px solid var(--line);border-radius:9px;padding:0 8px;font-size:12px}
.reflect{margin:6px 0;padding-left:11px}
@media(max-width:600px){body{padding:10px}img{max-width:none;width:760px}
.tree{padding:4px 6px}.node{padding-left:5px}
.turn,.end{grid-template-columns:1.6em 1fr;padding-left:4px}}
</style></head><body><h1>LEAFE run</h1>
"""

_SCRIPT = r"""
"use strict";
// Text of the run enters the document through textContent only, and a tree when it is opened.
const trees = JSON.parse(document.getElementById("data").textContent);
const ENDS = {success: "success", failure: "ended without success", branched: "left for a branch",
  context: "context full", budget: "budget spent", horizon: "horizon reached"};
const OUTCOMES = {root: "solved unaided", branch: "solved by a branch", no: "not solved"};

function el(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
// A details element whose content is made when it is first opened.
function lazy(className, open, summary, fill) {
  const details = el("details", className);
  details.append(summary);
  const once = () => { if (details.open && fill) { const f = fill; fill = null; f(details); } };
  details.addEventListener("toggle", once);
  details.open = open;
  if (open) queueMicrotask(once);
  return details;
}
// Which turns count: those of a node before step `kept` are on the way to where some descendant
// ended, those before step `won` on the way to a success. A branch may go back beyond the turns of
// its parent, into an ancestor's: hence the smaller step along each line of descent.
function index(tree) {
  tree.kids = new Map(tree.nodes.map(n => [n.id, []]));
  for (const n of tree.nodes) if (tree.kids.has(n.parent)) tree.kids.get(n.parent).push(n);
  for (const n of [...tree.nodes].reverse()) {  // children come after their parents
    const kids = tree.kids.get(n.id);
    const last = key => Math.max(0, ...kids.map(k => Math.min(k.branch_step, k[key])));
    n.kept = n.success || !kids.length ? Infinity : last("kept");
    n.won = n.success ? Infinity : last("won");
    n.wins = n.success || kids.some(k => k.wins);
  }
  const first = tree.nodes.filter(n => n.parent === null);
  tree.outcome = first.some(n => n.success) ? "root" : first.some(n => n.wins) ? "branch" : "no";
}
function haystack(value) {
  if (typeof value === "string") return value + "\n";
  if (value === null || typeof value !== "object") return "";
  return Object.values(value).map(haystack).join("");
}
function turnView(turn, state) {
  const row = el("div", "turn " + state);
  row.append(el("span", "no", turn.step));
  const body = el("div", "say");
  body.append(el("div", "obs", turn.observation));
  if (turn.experience !== null) {
    const told = el("div");
    told.append(el("span", "tell", "told: " + turn.experience));
    body.append(told);
  }
  body.append(el("div", "act", "\u203a " + turn.action + (turn.valid ? "" : "   (not understood)")));
  if (turn.text.trim() !== turn.action.trim())  // a thought, or what the parser did not understand
    body.append(lazy("", false, el("summary", "meta", "whole reply"), details => {
      details.append(el("div", "reply", turn.text));
    }));
  row.append(body);
  return row;
}
function reflectionView(reflection) {
  const view = el("div", "reflect");
  const to = reflection.tau === null ? "" : ", back to step " + reflection.tau;
  view.append(el("span", "meta", "reflection before step " + reflection.step + to + " "));
  view.append(el("span", "badge", reflection.status.replaceAll("_", " ")));
  view.append(el("div", "say", reflection.text));
  return view;
}
function nodeHead(node, kids) {
  const names = {root: "Root", sample: "Sample", retry: "Retry from step " + node.branch_step,
    branch: "Branch from step " + node.branch_step};
  const head = el("summary");
  head.append(el("b", "", (names[node.kind] || node.kind) + " "));
  if (node.experience !== null) head.append(el("span", "tell", node.experience), " ");
  const stop = node.stop || (node.success ? "success" : node.done ? "failure" : kids.length ? "branched"
    : "horizon");
  head.append(el("span", node.success ? "good" : "bad", ENDS[stop] || stop));
  head.append(el("span", "meta", " " + node.turns.length + " steps"));
  return head;
}
function nodeView(tree, node) {
  const kids = tree.kids.get(node.id), open = node.wins || node.parent === null;
  return lazy("node" + (node.wins ? " win" : ""), open, nodeHead(node, kids), details => {
    let cut = false;
    for (const turn of node.turns) {
      if (turn.step >= node.kept && !cut) {
        cut = true;
        details.append(el("div", "back", "abandoned: went back to step " + node.kept));
      }
      details.append(turnView(turn, cut ? "gone" : turn.step < node.won ? "win" : ""));
    }
    if (node.final_observation) {
      const end = el("div", "end" + (cut ? " gone" : ""));
      end.append(el("span"), el("div", "obs", node.final_observation));
      details.append(end);
    }
    for (const reflection of node.reflections) details.append(reflectionView(reflection));
    for (const kid of kids) details.append(nodeView(tree, kid));
  });
}
function treeView(tree, open) {
  const head = el("summary");
  head.append(el("b", "", tree.task_id + " "));
  head.append(el("span", tree.outcome === "no" ? "bad" : "good", OUTCOMES[tree.outcome]));
  const number = tree.nodes.length;
  head.append(el("span", "meta", " " + number + (number === 1 ? " trajectory" : " trajectories")));
  return lazy("tree", open, head, details => {
    for (const node of tree.nodes) if (node.parent === null) details.append(nodeView(tree, node));
  });
}
function start() {
  const [box, family, outcome, search, count] =
    ["trees", "family", "outcome", "search", "count"].map(id => document.getElementById(id));
  if (!box) return;
  trees.forEach(index);
  for (const name of [...new Set(trees.map(t => t.family))].sort()) {
    const option = el("option", "", name);
    option.value = name;
    family.append(option);
  }
  let timer = 0, example = trees.find(t => t.outcome === "branch");
  function show() {
    const words = search.value.toLowerCase();
    const shown = trees.filter(t => (!family.value || t.family === family.value)
      && (!outcome.value || t.outcome === outcome.value)
      && (!words || (t.words ??= haystack([t.task_id, t.nodes]).toLowerCase()).includes(words)));
    box.replaceChildren(...shown.map(t => treeView(t, t === example)));
    count.textContent = shown.length + " of " + trees.length;
    example = null;  // one tree is open at first, to show what there is to see
  }
  family.onchange = outcome.onchange = show;
  search.oninput = () => { clearTimeout(timer); timer = setTimeout(show, 200); };
  show();
}
start();
"""


def main(argv: list[str] | None = None) -> int:
    """Writes the report of a finished run again and prints its table."""
    parser = argparse.ArgumentParser(prog="python -m leafe_jax.report", description=main.__doc__)
    parser.add_argument("--workdir", required=True)
    flags = parser.parse_args(argv)
    try:
        workdir = local_path("--workdir=", flags.workdir)
        read_results(workdir)  # before a lock is left in a directory that is no run's
        with locked(workdir, f"--workdir={flags.workdir}"):
            write_report(workdir)
            print(console_table(read_results(workdir)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
