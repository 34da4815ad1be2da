"""The report page: hostile text stays text, torn files are survived."""

import base64
import hashlib
import html.parser
import json
import os
import re

import pytest

from leafe_jax.errors import UserError
from leafe_jax.run.passk import summarise
from leafe_jax.run.report import plot, table
from leafe_jax.run.report import write as report
from leafe_jax.runtime.console import visible
from leafe_jax.types import Node, ReflectionRecord, Tree, Turn

MARKUP = "</script><img src=x onerror=alert(1)><!-- \u2028 &amp; \x85 \U0001f600 \ud83d "
HOSTILE = MARKUP + "x" * 5000


def hostile_tree(number: int) -> Tree:
    turn = Turn(1, HOSTILE, [HOSTILE], [1], [1], [2], [-0.1], HOSTILE, HOSTILE, False, 0.0)
    reflection = ReflectionRecord(2, [1], [2], [-0.1], HOSTILE, "branched", 1, HOSTILE, 1)
    root = Node(0, None, None, 0, "root", None, [turn], HOSTILE, stop="branched",
                reflections=[reflection])  # fmt: skip
    child = Node(1, 0, 1, 1, "branch", HOSTILE, [turn], HOSTILE, success=True, stop="success")
    return Tree(
        "household", f"train/{HOSTILE[:40]}/{number}", HOSTILE[:20], 0, "dialogue", [root, child]
    )


def make_workdir(tmp_path, trees=3):
    outcomes = {f"t{i}": [i % 2 == 0, False, False, True] for i in range(6)}
    families = summarise(
        outcomes, {t: "odd" if t[-1] in "135" else "even" for t in outcomes}, 50, 0
    )
    budget = dict(env_steps=1234, generated_tokens=5, prefilled_tokens=6, cached_tokens=7,
                  episodes=8, reflections=9, replayed_steps=10)  # fmt: skip
    results = {
        "schema": 3, "commit": None, "versions": {"jax": "1"}, "config_hash": "abc", "seed": 0,
        "device": "<b>cpu</b>",
        "methods": {m: {"families": families, "budget": budget, "seconds": 1.0} for m in ("base", "leafe")},
        "searches": {"tree": {
            "tasks": 3, "solved_tasks": 3, "episodes": 6, "success_episodes": 3,
            "reflections": {"branched": 3}, "branches": 3, "branches_successful": 3,
            "budget": budget, "seconds": 1.0,
        }},
        "fits": {"leafe": {
            "examples": {"counterfactual": 1, "rehearsal": 2}, "target_tokens": 3,
        }},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    directory = tmp_path / "trees" / "tree"
    directory.mkdir(parents=True)
    lines = [json.dumps(hostile_tree(i).to_json()) for i in range(trees)]
    (directory / "0000.jsonl").write_text("\n".join(lines) + "\n")
    (directory / "0001.jsonl.partial").write_text(lines[0] + "\n" + lines[0][:100])
    return results


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.rows, self.data = [], [], ""
        self.inside = self.cell = False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") == "data"
        self.cell = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif self.cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.cell = False

    def handle_data(self, data):
        if self.inside:
            self.data += data
        if self.cell:
            self.rows[-1][-1] += data


def parsed(tmp_path) -> Tags:
    report.write_report(tmp_path)
    parser = Tags()
    parser.feed((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    return parser


def edit(tmp_path, results) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results))


def test_hostile_text_never_becomes_markup(tmp_path):
    make_workdir(tmp_path)
    parser = parsed(tmp_path)
    assert not [
        t for t, a in parser.tags if t == "img" and not a["src"].startswith("data:image/png")
    ]
    assert not [a for _, a in parser.tags if any(name.startswith("on") for name in a)]
    assert [t for t, _ in parser.tags].count("script") == 2
    assert "<" not in parser.data
    shown = json.loads(parser.data)
    assert len(shown) == 4 and shown[0]["nodes"][0]["turns"][0]["text"] == visible(HOSTILE)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "1 unreadable line was left out" in page and "&lt;b&gt;cpu" in page
    assert "innerHTML" not in page and "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "report" / "pass_at_k.png").stat().st_size > 5000


def test_text_in_results_json_never_becomes_markup(tmp_path):
    results = make_workdir(tmp_path)
    clean = [tag for tag, _ in parsed(tmp_path).tags]
    families = results["methods"]["base"]["families"]
    families[MARKUP] = families.pop("odd")
    results["methods"] = {MARKUP: results["methods"]["base"]}
    for field in ("commit", "config_hash", "device", "seed"):
        results[field] = MARKUP
    results["versions"] = {MARKUP: "@DATA@ $x {x}"}
    results["searches"]["tree"]["reflections"] = {MARKUP: 3}
    edit(tmp_path, results)
    parser = parsed(tmp_path)
    named = {tag for tag, _ in parser.tags}
    assert named == set(clean) and [tag for tag, _ in parser.tags].count("img") == 1
    assert json.loads(parser.data)


def test_lines_that_are_not_trees_are_counted(tmp_path):
    make_workdir(tmp_path)
    # With U+2028 unescaped, as other JSON writers leave it.
    good = json.dumps(hostile_tree(7).to_json(), ensure_ascii=False)
    lines = [
        "17",
        "null",
        "[]",
        '{"schema": 1}',
        '{"task_id": 1, "family": 2, "nodes": "xx"}',
        "",
        good,
    ]
    raw = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n\xff\xfe torn"
    (tmp_path / "trees" / "tree" / "0002.jsonl").write_bytes(raw)
    trees, number, broken = report.read_tree_lines(tmp_path)
    assert len(trees) == number == 5 and broken == 1 + 5 + 1
    parsed(tmp_path)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "5 of 5 trees" in page and "7 unreadable lines were left out" in page


def record(workdir, *blocks):
    fields = {"schema": 3, "phase": "trees/tree", "done": True, "config": {}, "seconds": 1.0,
              "files": dict.fromkeys(blocks, ""), "made_of": {}}  # fmt: skip
    (workdir / "trees" / "tree" / "phase.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("listed", [True, False])
def test_only_blocks_are_on_the_page(tmp_path, listed):
    """Stray copies are ignored, with or without a list of blocks, and a FIFO does not block the page."""
    make_workdir(tmp_path)
    trees = tmp_path / "trees" / "tree"
    strays = ["0000 (copy).jsonl", "0000.jsonl.bak", "copy.jsonl.partial", "0000.jsonl.damaged"]
    for name in strays + ["0007.jsonl"] * listed:
        (trees / name).write_bytes((trees / "0000.jsonl").read_bytes())
    os.mkfifo(trees / "0002.jsonl.partial")
    if listed:
        record(tmp_path, "0000.jsonl")
    _, number, broken = report.read_tree_lines(tmp_path)
    assert (number, broken) == (4, 2)
    if listed:
        record(tmp_path, "0000.jsonl", "0001.jsonl")
        assert report.read_tree_lines(tmp_path)[1:] == (3, 2), "a listed block that is missing"


def test_very_long_text_is_truncated_with_a_note(tmp_path):
    make_workdir(tmp_path)
    tree = hostile_tree(0).to_json()
    tree["nodes"][0]["turns"][0]["observation"] = "o" * 2_000_000
    (tmp_path / "trees" / "tree" / "0000.jsonl").write_text(json.dumps(tree) + "\n")
    shown = json.loads(parsed(tmp_path).data)[0]["nodes"][0]["turns"][0]["observation"]
    assert shown.endswith("[... 1,990,000 more characters in the tree file]")
    assert shown.count("o") < 10_020


def test_more_trees_than_the_page_holds(tmp_path, monkeypatch):
    make_workdir(tmp_path)
    monkeypatch.setattr(report, "_MAX_TREES", 2)
    assert len(json.loads(parsed(tmp_path).data)) == 2
    page = (tmp_path / "report" / "index.html").read_text()
    assert "2 of 4 trees are on this page (the first ones" in page


def test_full_contexts_are_reported(tmp_path):
    results = make_workdir(tmp_path)
    sentence = "episodes of base ended because the context was full (sampler.max_len)."
    assert sentence not in table.console_table(results)
    results["methods"]["base"]["out_of_context"] = 3
    (tmp_path / "results.json").write_text(json.dumps(results))
    parsed(tmp_path)
    assert f"3 of {results['methods']['base']['budget']['episodes']:,} {sentence}" in (
        table.console_table(results)
    )
    assert sentence in (tmp_path / "report" / "index.html").read_text()


def test_the_page_s_tables(tmp_path):
    results = make_workdir(tmp_path)
    rows = parsed(tmp_path).rows
    header, first, second = rows[:3]
    assert header == ["family", "method", "tasks", "Pass@1 %", "Pass@2 %", "Pass@4 %"]
    value = results["methods"]["base"]["families"]["all"]["pass_at_k"]["4"]
    shown = f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
    assert first[:3] == ["all", "base", "6"] and first[5] == shown
    assert second[:2] == ["", "leafe"]  # the family is shown once
    assert [row[0] for row in rows if row[1] == "base"] == ["all", "even", "odd"]
    budgets = {row[0]: row[1:] for row in rows}
    assert budgets["search tree"] == ["1,234", "10", "5", "6", "7", "8", "1"]
    assert budgets["branched"] == ["3", "100.0"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "config abc, seed 0, commit unknown" in page and "3 (100.0%) ended in success" in page
    spent = "A task took 414.7 environment steps (replayed ones included) and 1.7 generated tokens."
    assert spent in page and spent in table.console_table(results)


def test_parts_of_a_run(tmp_path):
    """Stage 1 only, evaluation only, one sample per task, methods with different numbers of samples."""
    results = make_workdir(tmp_path)
    only = summarise({"a": [True], "b": [False]}, {"a": "x", "b": "y"}, 10, 0)
    uneven = {**results["methods"], "short": {**results["methods"]["base"], "families": only}}
    for change in (
        {"methods": {}},
        {"methods": {"base": uneven["short"]}},
        {"methods": uneven},
        {"methods": {f"method {i}": results["methods"]["base"] for i in range(20)}},
    ):
        edit(tmp_path, {**results, **change})
        rows = parsed(tmp_path).rows
        assert all(
            any(row[1] == method for row in rows if len(row) > 1) for method in change["methods"]
        )
        assert table.console_table({**results, **change})
    for tree in (tmp_path / "trees" / "tree").iterdir():
        tree.unlink()
    edit(tmp_path, {**results, "searches": {}, "fits": {}})
    assert "Exploration" not in (parsed(tmp_path), (tmp_path / "report/index.html").read_text())[1]


def test_large_runs_are_capped_on_the_page(tmp_path):
    make_workdir(tmp_path, trees=230)
    report.write_report(tmp_path)
    assert "200 of 231 trees" in (tmp_path / "report" / "index.html").read_text()


def test_console_table(tmp_path):
    shown = table.console_table(make_workdir(tmp_path))
    assert "50.0" in shown and "1,234" in shown and "3 of 3 tasks solved" in shown
    assert "second" not in shown  # the same run prints the same table


def test_command_line(tmp_path, capsys):
    assert report.main(["--workdir", str(tmp_path)]) == 2
    assert "results.json: missing" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        table.read_results(tmp_path)
    for field, value in (("schema", 1), ("methods", None)):
        directory = tmp_path / field
        directory.mkdir()
        results = make_workdir(directory)
        if value is None:
            del results[field]
        else:
            results[field] = value
        edit(directory, results)
        assert report.main(["--workdir", str(directory)]) == 2
        error = capsys.readouterr().err
        assert field in error and "results.json" in error and error.count("\n") == 1
    directory = tmp_path / "whole"
    directory.mkdir()
    make_workdir(directory)
    assert report.main(["--workdir", str(directory)]) == 0
    assert "Pass@1 %" in capsys.readouterr().out


def test_the_policy_allows_only_the_script_of_the_page(tmp_path):
    make_workdir(tmp_path)
    parser = parsed(tmp_path)
    (policy,) = [a["content"] for _, a in parser.tags if "http-equiv" in a]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    text = (tmp_path / "report" / "index.html").read_text()
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    # The policy would block inline handlers and styles.
    assert not re.search(r"\son[a-z]+=|style=", text.partition("<script")[0])


def test_no_line_direction_or_control_character_reaches_the_page(tmp_path):
    results = make_workdir(tmp_path)
    results["device"] = hostile = "\u202eevil\x00\x1b[2J\u2066\u2028\ud83d"
    results["methods"] = {hostile: results["methods"]["base"]}
    edit(tmp_path, results)
    tree = hostile_tree(0).to_json()
    tree["family"] = tree["nodes"][0]["turns"][0]["text"] = hostile
    (tmp_path / "trees" / "tree" / "0000.jsonl").write_text(json.dumps(tree) + "\n")
    shown = json.loads(parsed(tmp_path).data)[0]
    assert shown["family"] == shown["nodes"][0]["turns"][0]["text"] == visible(hostile)
    page = (tmp_path / "report" / "index.html").read_text()
    assert not re.search("[\x00\x1b\x85\u2028\u202e\u2066\ufffd]", page) and r"\u202eevil" in page


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: tree["nodes"][0].update(branch_step=float("nan")),
        lambda tree: tree["nodes"][0]["turns"][0].update(step=float("inf")),
        lambda tree: tree["nodes"][0]["turns"][0].update(text=17),
        lambda tree: tree["nodes"][0]["turns"][0].update(text={"trim": 1}),
        lambda tree: tree["nodes"][0].update(success="yes"),
        lambda tree: tree["nodes"][1].update(id=0),
        lambda tree: tree["nodes"][0].update(stop=None),
        lambda tree: tree.update(nodes={"0": 1}),
    ],
)
def test_a_tree_that_would_stop_the_script_is_left_out(tmp_path, spoil):
    make_workdir(tmp_path)
    tree = hostile_tree(0).to_json()
    spoil(tree)
    path = tmp_path / "trees" / "tree" / "0002.jsonl"
    path.write_text(json.dumps(tree) + "\n" + "[" * 100_000 + "\n")
    trees, number, broken = report.read_tree_lines(tmp_path)
    assert number == 4 and broken == 3
    assert json.dumps(trees, allow_nan=False)


@pytest.mark.parametrize(
    "name", ["$x^$", "_hidden", "\\frac{$", "\x00\x1b[2J\n", "\ud83d", "日本語", "a" * 9999]
)
def test_any_name_can_be_drawn(tmp_path, name, recwarn):
    results = make_workdir(tmp_path)
    families = results["methods"]["base"]["families"]
    families[name] = families.pop("odd")
    plot.draw_pass_at_k(
        {**results, "methods": {name: results["methods"]["base"]}}, tmp_path / "p.png"
    )
    assert (tmp_path / "p.png").stat().st_size > 5000 and not recwarn.list


def test_more_families_than_a_picture_has_room_for(tmp_path):
    results = make_workdir(tmp_path)
    families = results["methods"]["base"]["families"]
    families |= {f"family {i}": families["odd"] for i in range(2000)}
    plot.draw_pass_at_k(results, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size < 2e6
