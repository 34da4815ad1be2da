"use strict";
// Text of the run enters the document through textContent only. A tree is rendered when it is opened.
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
// Sets two steps per node. Turns before step `kept` lead to where some descendant ended; turns before
// step `won` lead to a success. A branch may go back beyond its parent's turns into an ancestor's, so
// the smallest step along each line of descent counts.
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
  for (const experience of turn.experiences) {
    const told = el("div");
    told.append(el("span", "tell", "told: " + experience));
    body.append(told);
  }
  body.append(el("div", "act", "\u203a " + turn.action + (turn.valid ? "" : "   (not understood)")));
  if (turn.text.trim() !== turn.action.trim())  // a thought, or text that the parser did not understand
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
    example = null;  // only the first view opens a tree, as an example
  }
  family.onchange = outcome.onchange = show;
  search.oninput = () => { clearTimeout(timer); timer = setTimeout(show, 200); };
  show();
}
start();
