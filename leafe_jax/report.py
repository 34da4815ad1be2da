"""The report: console table, Pass@k plot, and one HTML page with the exploration trees.

    python -m leafe_jax.report --workdir=runs/quickstart

Model text is hostile: it reaches the page only as JSON with every `<` escaped, and is put into the
document with textContent, so it can never become markup.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from leafe_jax.errors import UserError

_COLOURS = ("#666666", "#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito's
_MAX_TREES = 200  # on the page; the files have all
_BUDGET = (
    ("env_steps", "environment steps"),
    ("generated_tokens", "generated tokens"),
    ("prefilled_tokens", "prefilled tokens"),
    ("cached_tokens", "of the cache"),
    ("episodes", "episodes"),
)


def read_results(workdir: Path) -> dict[str, Any]:
    """results.json of a run; UserError when it is missing or broken."""
    path = workdir / "results.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; run the phase 'report' of leafe_jax.main") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error


def read_tree_lines(workdir: Path) -> tuple[list[dict[str, Any]], int]:
    """(trees as JSON values, number of unreadable lines); half-written blocks are read too."""
    trees, broken = [], 0
    directory = workdir / "explore" / "trees"
    for path in sorted([*directory.glob("*.jsonl"), *directory.glob("*.jsonl.partial")]):
        for line in path.read_text(errors="replace").splitlines():
            try:
                trees.append(json.loads(line))
            except ValueError:
                broken += 1
    return trees, broken


# -- table -----------------------------------------------------------------------------------------
def _shown_ks(results: dict[str, Any]) -> list[str]:
    """Pass@1, one in the middle and the largest k."""
    ks = [k for m in results["methods"].values() for k in m["families"]["all"]["pass_at_k"]]
    ks = sorted(set(ks), key=int)
    return sorted({ks[0], ks[len(ks) // 2], ks[-1]}, key=int)


def _cell(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: per family and method, success in percent with 95% intervals over tasks."""
    ks = _shown_ks(results)
    header = ["family", "method", "tasks", *[f"Pass@{k} %" for k in ks]]
    rows = []
    methods = results["methods"]
    for family in next(iter(methods.values()))["families"]:
        for method, data in methods.items():
            summary = data["families"][family]
            cells = [_cell(summary["pass_at_k"][k]) for k in ks]
            rows.append([family, method, str(summary["tasks"]), *cells])
    return header, rows


def _budget_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["spent on", *[label for _, label in _BUDGET]]
    parts = {f"evaluating {name}": m["budget"] for name, m in results["methods"].items()}
    if "explore" in results:
        parts = {"stage 1": results["explore"]["budget"], **parts}
    return header, [[name, *[f"{b[key]:,}" for key, _ in _BUDGET]] for name, b in parts.items()]


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
    if "explore" in results:
        parts.append(_explore_sentence(results["explore"]))
    if "distill" in results:
        distill = results["distill"]
        parts.append(
            f"Stage 2: {distill['counterfactual_examples']} counterfactual pairs,"
            f" {distill['rehearsal_examples']} rehearsed trajectories,"
            f" {distill['target_tokens']} target tokens."
        )
    parts.append(_text_table(*_budget_rows(results)))
    return "\n\n".join(parts)


def _explore_sentence(explore: dict[str, Any]) -> str:
    reflections = ", ".join(f"{n} {name}" for name, n in explore["reflections"].items()) or "none"
    return (
        f"Stage 1: {explore['solved_tasks']} of {explore['tasks']} tasks solved in"
        f" {explore['episodes']} trajectories; {explore['branches_successful']} of"
        f" {explore['branches']} branches succeeded. Reflections: {reflections}."
    )


# -- plot ------------------------------------------------------------------------------------------
def _panel(axes, results: dict[str, Any], family: str) -> None:
    for colour, (method, data) in zip(_COLOURS, results["methods"].items(), strict=False):
        curve = data["families"][family]["pass_at_k"]
        ks = sorted(curve, key=int)
        x = [int(k) for k in ks]
        axes.plot(x, [100 * curve[k]["value"] for k in ks], color=colour, label=method, lw=2)
        low, high = ([100 * curve[k][side] for k in ks] for side in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(k) for k in x])
    axes.set_ylim(-2, 102)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    tasks = next(iter(results["methods"].values()))["families"][family]["tasks"]
    axes.set_title(f"{family} ({tasks} tasks)", fontsize=10)


def draw_pass_at_k(results: dict[str, Any], path: Path) -> None:
    """Pass@k of every method: one large panel over all tasks, a small one per family."""
    families = [f for f in next(iter(results["methods"].values()))["families"] if f != "all"]
    columns = (len(families) + 1) // 2
    figure = plt.figure(figsize=(5.2 + 2.6 * columns, 4.8), layout="constrained")
    grid = figure.add_gridspec(2, 2 + columns)
    large = figure.add_subplot(grid[:, :2])
    _panel(large, results, "all")
    large.set_xlabel("k (samples per task)")
    large.set_ylabel("Pass@k, %")
    large.legend(frameon=False, loc="upper left")
    for index, family in enumerate(families):
        axes = figure.add_subplot(grid[index // columns, 2 + index % columns])
        _panel(axes, results, family)
        axes.tick_params(labelsize=7)
        ticks = [t for i, t in enumerate(axes.get_xticks()) if i % 2 == 0]
        axes.set_xticks(ticks, [f"{t:.0f}" for t in ticks])
    figure.savefig(path, dpi=130)
    plt.close(figure)


# -- page ------------------------------------------------------------------------------------------
def _html_table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


def _for_page(tree: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a tree: text, no token ids."""
    nodes = []
    for node in tree["nodes"]:
        turns = [
            {k: t[k] for k in ("step", "observation", "experience", "text", "action", "valid")}
            for t in node["turns"]
        ]
        reflections = [
            {k: r[k] for k in ("step", "text", "status", "tau", "experience", "child")}
            for r in node["reflections"]
        ]
        kept = ("id", "parent", "branch_step", "depth", "kind", "experience", "final_observation",
                "success", "stop")  # fmt: skip
        nodes.append({**{k: node[k] for k in kept}, "turns": turns, "reflections": reflections})
    return {"task_id": tree["task_id"], "family": tree["family"], "nodes": nodes}


def write_report(workdir: Path) -> None:
    """Writes report/pass_at_k.png and report/index.html from results.json and the trees.

    Raises:
      UserError: no readable results.json.
    """
    results = read_results(workdir)
    directory = workdir / "report"
    directory.mkdir(exist_ok=True)
    sections = []
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    sections.append(
        f"<p class=meta>config {html.escape(results['config_hash'])}, seed {results['seed']}, commit"
        f" {html.escape(str(results['commit'])[:12])}, measured on {html.escape(results['device'])};"
        f" {html.escape(versions)}</p>"
    )
    if results["methods"]:
        draw_pass_at_k(results, directory / "pass_at_k.png")
        picture = base64.b64encode((directory / "pass_at_k.png").read_bytes()).decode()
        sections.append("<h2>Held-out tasks</h2>")
        sections.append(
            "<p>Plain rollouts: no reflection, no rollback, no experience. Intervals: 95%, bootstrap"
            " over tasks.</p>"
        )
        sections.append(f'<img alt="Pass@k of each method" src="data:image/png;base64,{picture}">')
        sections.append(_html_table(*_rows(results)))
    sections.append("<h2>Budget</h2>" + _html_table(*_budget_rows(results)))
    trees, broken = read_tree_lines(workdir)
    if trees:
        sections.append("<h2>Exploration</h2>")
        if "explore" in results:
            sections.append(f"<p>{html.escape(_explore_sentence(results['explore']))}</p>")
        note = f"{min(len(trees), _MAX_TREES)} of {len(trees)} trees"
        if broken:
            note += f"; {broken} unreadable lines were left out"
        sections.append(f"<p class=meta>{note}.</p>{_TREE_CONTROLS}")
    data = json.dumps([_for_page(t) for t in trees[:_MAX_TREES]], ensure_ascii=True)
    # Inside <script> only "</" and "<!--" could end or change the element; no "<" is left at all.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    page = _PAGE.replace("@SECTIONS@", "\n".join(sections)).replace("@DATA@", data)
    (directory / "index.html").write_text(page, encoding="utf-8")


_TREE_CONTROLS = """<div class=controls>
<label>family <select id=family><option value="">all</option></select></label>
<label>outcome <select id=outcome><option value="">all</option><option value=branch>solved by a
branch</option><option value=root>solved unaided</option><option value=no>not solved</option>
</select></label>
<label>text <input id=search type=search placeholder="in observations, replies, advice"></label>
<span id=count class=meta></span></div>
<div id=trees></div>"""

_PAGE = """<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>LEAFE run</title><style>
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1b1b;--soft:#666;--line:#d8d8d8;--card:#f6f6f4;
--good:#00724c;--bad:#a33a00;--tell:#fff3c4;--tellfg:#4a3b00}
@media(prefers-color-scheme:dark){:root{--bg:#161616;--fg:#e8e8e8;--soft:#a0a0a0;--line:#3a3a3a;
--card:#202020;--good:#4cc38a;--bad:#ff9a62;--tell:#463c14;--tellfg:#ffe9a6}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1100px;
margin:0 auto;padding:16px}
h1{margin:.2em 0}.meta{color:var(--soft);font-size:13px}img{max-width:100%;background:#fff}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
td,th{padding:3px 12px 3px 0;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
.scroll{overflow-x:auto}.controls{display:flex;gap:16px;flex-wrap:wrap;align-items:center;margin:8px 0}
input,select{font:inherit}details{margin:4px 0}summary{cursor:pointer}
.tree{border:1px solid var(--line);border-radius:6px;padding:4px 12px;background:var(--card)}
.node{border-left:3px solid var(--line);padding-left:12px;margin:8px 0}
.node.win{border-color:var(--good)}.good{color:var(--good);font-weight:600}.bad{color:var(--bad)}
.turn{display:grid;grid-template-columns:2.2em 1fr;font-size:13px;margin:1px 0}
.turn .n{color:var(--soft)}.turn.left{opacity:.45}.obs{color:var(--soft);white-space:pre-wrap;
overflow-wrap:anywhere}.act{font-family:ui-monospace,monospace;overflow-wrap:anywhere}
.tell{background:var(--tell);color:var(--tellfg);border-radius:4px;padding:1px 6px;
overflow-wrap:anywhere}.reflect{font-size:13px;margin:4px 0 4px 2.2em;overflow-wrap:anywhere}
</style></head><body><h1>LEAFE run</h1>
@SECTIONS@
<script type="application/json" id=data>@DATA@</script>
<script>
"use strict";
const trees=JSON.parse(document.getElementById("data").textContent);
const box=document.getElementById("trees");
function el(tag,cls,text){const e=document.createElement(tag);if(cls)e.className=cls;
 if(text!==undefined)e.textContent=text;return e}
function outcome(t){if(t.nodes.some(n=>n.success&&n.parent===null))return"root";
 return t.nodes.some(n=>n.success)?"branch":"no"}
function wins(t,n){return n.success||t.nodes.some(c=>c.parent===n.id&&wins(t,c))}
const ends={success:"success",failure:"horizon reached without success",
 branched:"left for a branch",context:"context full",budget:"budget spent"};
function turnRow(turn,left){const row=el("div","turn"+(left?" left":""));
 row.append(el("span","n",turn.step));const body=el("div");
 body.append(el("div","obs",turn.observation));
 if(turn.experience!==null){const p=el("div");p.append(el("span","tell","told: "+turn.experience));
  body.append(p)}
 body.append(el("div","act","> "+turn.action+(turn.valid?"":"   (not understood)")));
 row.append(body);return row}
function nodeView(t,n){const v=el("div","node"+(wins(t,n)?" win":""));const head=el("div");
 head.append(el("b","",n.parent===null?"Root":n.kind==="retry"?"Retry":"Branch at step "+n.branch_step));
 if(n.experience!==null){head.append(" ");head.append(el("span","tell","experience: "+n.experience))}
 head.append(" ");head.append(el("span",n.success?"good":"bad",ends[n.stop]||n.stop));v.append(head);
 const kids=t.nodes.filter(c=>c.parent===n.id);
 const leave=n.stop==="branched"&&kids.length?Math.min(...kids.map(c=>c.branch_step)):Infinity;
 const d=el("details");d.open=wins(t,n);d.append(el("summary","meta",n.turns.length+" steps"));
 for(const turn of n.turns)d.append(turnRow(turn,turn.step>=leave));
 if(n.final_observation)d.append(el("div","obs",n.final_observation));v.append(d);
 for(const r of n.reflections){const p=el("div","reflect");
  p.append(el("span","meta","reflection before step "+r.step+": "));p.append(el("span","",r.text));
  p.append(el("span","meta","  ("+r.status.replace("_"," ")+")"));v.append(p)}
 for(const c of kids)v.append(nodeView(t,c));return v}
function treeView(t){const d=el("details","tree");const s=el("summary");const o=outcome(t);
 s.append(el("b","",t.task_id),"  ");
 s.append(el("span",o==="no"?"bad":"good",{root:"solved unaided",branch:"solved by a branch",
  no:"not solved"}[o]));
 s.append(el("span","meta","  "+t.nodes.length+" trajectories"));d.append(s);
 d.addEventListener("toggle",()=>{if(d.open&&d.children.length===1)
  for(const n of t.nodes)if(n.parent===null)d.append(nodeView(t,n))});return d}
function show(){const f=family.value,o=outcomeBox.value,q=search.value.toLowerCase();box.textContent="";
 let shown=0,first=null;for(const t of trees){if(f&&t.family!==f||o&&outcome(t)!==o)continue;
 if(q&&!JSON.stringify(t).toLowerCase().includes(q))continue;const v=treeView(t);box.append(v);shown++;
 if(first===null&&outcome(t)==="branch")first=v}
 document.getElementById("count").textContent=shown+" shown";if(first)first.open=true}
let family,outcomeBox,search;
if(box){family=document.getElementById("family");outcomeBox=document.getElementById("outcome");
 search=document.getElementById("search");
 for(const f of [...new Set(trees.map(t=>t.family))].sort()){const opt=el("option","",f);opt.value=f;
 family.append(opt)}
 family.onchange=outcomeBox.onchange=search.oninput=show;show()}
</script></body></html>
"""


def main(argv: list[str] | None = None) -> int:
    """Writes the report of a finished run again and prints its table."""
    parser = argparse.ArgumentParser(prog="python -m leafe_jax.report", description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    workdir = parser.parse_args(argv).workdir
    try:
        write_report(workdir)
        print(console_table(read_results(workdir)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
