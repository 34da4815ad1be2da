"""The page of a report: its frame, its script, and what it shows of a tree.

Text of a run is hostile. It reaches the page as JSON with every `<` escaped, and the document through
textContent, so it can never become markup. If it did, the page's policy allows no script but the one
below and no address to load from.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from leafe_jax.runtime.console import visible

_MAX_CHARS = 10_000  # of one text on the page; the files have all
# Fields and their types; what has others is no tree.
_NODE = {
    "id": int, "parent": int | None, "branch_step": int | None, "kind": str,
    "experience": str | None, "final_observation": str | None, "success": bool, "done": bool,
}  # fmt: skip
_TURN = {
    "step": int, "observation": str, "experience": str | None, "text": str, "action": str,
    "valid": bool,
}  # fmt: skip
_REFLECTION = {
    "step": int, "text": str, "status": str, "tau": int | None, "experience": str | None,
    "child": int | None,
}  # fmt: skip


def shown_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a tree: text with control characters written out, no token ids.

    Raises:
      ValueError, KeyError, TypeError, AttributeError: it is no tree.
    """
    nodes = []
    for node in tree["nodes"]:
        shown = _fields(node, _NODE)
        shown["stop"] = _fields({"stop": node.get("stop", "")}, {"stop": str})["stop"]
        shown["turns"] = [_fields(turn, _TURN) for turn in node["turns"]]
        shown["reflections"] = [_fields(record, _REFLECTION) for record in node["reflections"]]
        nodes.append(shown)
    if len({node["id"] for node in nodes}) < len(nodes):
        raise ValueError("two nodes have the same id")
    return {
        "task_id": _text(str(tree["task_id"])),
        "family": _text(str(tree["family"])),
        "nodes": nodes,
    }


def _fields(record: dict[str, Any], types: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, kind in types.items():
        value = record[name]
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            raise TypeError(f"{name} is {type(value).__name__}")
        found[name] = _text(value) if isinstance(value, str) else value
    return found


def _text(text: str) -> str:
    short = visible(text[:_MAX_CHARS], keep="\n\t")
    if len(text) <= _MAX_CHARS:
        return short
    return f"{short} [... {len(text) - _MAX_CHARS:,} more characters in the tree file]"


def make(sections: Sequence[str], trees: Sequence[dict[str, Any]]) -> str:
    """The page's text.

    Args:
      sections: HTML.
      trees: from `shown_tree`.
    """
    data = json.dumps(trees, ensure_ascii=True, allow_nan=False)
    # Inside <script> only "</" and "<!--" could end or change the element; no "<" is left at all.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    # Joined and not substituted: no text of the run can stand for a part of the page.
    return "".join((
        _HEAD.replace("@POLICY@", policy), "\n".join(sections),
        '\n<script type="application/json" id=data>', data, "</script>\n<script>", _SCRIPT,
        "</script>\n</body></html>\n",
    ))  # fmt: skip


TREE_CONTROLS = """<div class=controls>
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
<meta http-equiv=Content-Security-Policy content="@POLICY@">
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
