"""The report page: hostile text stays text, torn files are survived."""

import base64
import hashlib
import html.parser
import json
import os
import re

import pytest

from leafe_jax.errors import UserError
from leafe_jax.run.passk import differences, summarise
from leafe_jax.run.report import plot, table
from leafe_jax.run.report import write as report
from leafe_jax.runtime import sources
from leafe_jax.runtime.console import visible
from leafe_jax.types import Node, ReflectionRecord, Tree, Turn

MARKUP = "</script><img src=x onerror=alert(1)><!-- \u2028 &amp; \x85 \U0001f600 \ud83d "
HOSTILE = MARKUP + "x" * 5000


PROTOCOL = {
    "environment": "household", "versions": {"leafe_jax": "0.1.0"}, "options": {"env.options.walls": 3},
    "horizon": 20, "split": "test", "split_hash": "8f2a", "tasks": 6, "samples": 4, "temperature": 0.4,
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "context_mode": "dialogue",
    "window": None, "max_action_tokens": 8, "max_len": 384, "prompts": {"base": "1122"}, "seed": 7,
    "searches": {"tree": {"method": "tree", "split": "train", "num_tasks": 0, "max_attempts": 11}},
}  # fmt: skip


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
    kinds = {t: "odd" if t[-1] in "135" else "even" for t in outcomes}
    families = summarise(outcomes, kinds)
    budget = dict(env_steps=1234, generated_tokens=5, prefilled_tokens=6, cached_tokens=7,
                  episodes=8, reflections=9, replayed_steps=10)  # fmt: skip
    results = {
        "schema": 4, "versions": {"jax": "1"}, "config_hash": "abc", "config": {"seed": 0},
        "device": "<b>cpu</b>", "protocol": json.loads(json.dumps(PROTOCOL)),
        "made_by": {name: [sources.code()] for name in ("trees/tree", "evaluate/base", "report")},
        "methods": {m: {"families": families, "budget": budget, "seconds": 1.0} for m in ("base", "leafe")},
        "differences": [
            {"method": "leafe", "minus": "base", "families": differences(outcomes, outcomes, kinds)}
        ],
        "searches": {"tree": {
            "tasks": 3, "solved_tasks": 3, "episodes": 6, "success_episodes": 3,
            "reflections": {"branched": 3}, "experiences_cut": 0, "branches": 3, "branches_successful": 3,
            "budget": budget, "seconds": 1.0,
        }},
        "fits": {"leafe": {
            "examples": {"counterfactual": 1, "rehearsal": 2}, "duplicates": 0, "target_tokens": 3,
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
    for field in ("config_hash", "device"):
        results[field] = MARKUP
    code = {"version": MARKUP, "commit": None, "dirty": None, "sources": MARKUP}
    results["made_by"] = {MARKUP: [code, code | {"version": "1"}], "report": [code]}
    for field in ("environment", "split", "split_hash", "seed", "context_mode"):
        results["protocol"][field] = MARKUP
    for field in ("versions", "options", "prompts"):
        results["protocol"][field] = {MARKUP: MARKUP}
    results["protocol"]["searches"] = {
        MARKUP: results["protocol"]["searches"]["tree"] | {MARKUP: MARKUP}
    }
    results["differences"][0] |= {"method": MARKUP, "minus": MARKUP}
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
    fields = {"schema": 4, "phase": "trees/tree", "done": True, "config": {}, "seconds": 1.0,
              "files": dict.fromkeys(blocks, ""), "made_of": {}, "made_by": []}  # fmt: skip
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
    assert [row[0] for row in rows if row[1:2] == ["base"]] == ["all", "even", "odd"]
    differences = [row for row in rows if row[1:2] == ["leafe - base"]]
    assert [row[0] for row in differences] == ["all", "even", "odd"]
    assert differences[0][3] == "+0.0 [-45.9, +45.9]"  # 1 - 0.025 ** (1 / 6)
    budgets = {row[0]: row[1:] for row in rows}
    assert budgets["search tree"] == ["1,234", "10", "5", "6", "7", "8", "1"]
    assert budgets["branched"] == ["3", "100.0"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "config abc, seed 7, report by" in page and "3 (100.0%) ended in success" in page
    spent = "A task took 414.7 environment steps (replayed ones included) and 1.7 generated tokens."
    assert spent in page and spent in table.console_table(results)


def test_parts_of_a_run(tmp_path):
    """Stage 1 only, evaluation only, one sample per task, methods with different numbers of samples."""
    results = make_workdir(tmp_path)
    only = summarise({"a": [True], "b": [False]}, {"a": "x", "b": "y"})
    uneven = {**results["methods"], "short": {**results["methods"]["base"], "families": only}}
    for change in (
        {"methods": {}, "differences": []},
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


# -- which code, and which protocol ------------------------------------------------------------------
HERE = {"version": "0.1.0", "commit": "a" * 40, "dirty": False, "sources": "1" * 12}
OTHER = {"version": "0.1.0", "commit": "b" * 40, "dirty": False, "sources": "2" * 12}
DIRTY = {**HERE, "dirty": True, "sources": "3" * 12}
WHEEL = {"version": "0.1.0", "commit": None, "dirty": None, "sources": "1" * 12}


@pytest.mark.parametrize(
    ("phases", "report_by", "said"),
    [
        ([HERE], HERE, ""),
        ([WHEEL], WHEEL, ""),
        ([OTHER], HERE, "CAUTION: made by several versions of the code: evaluate/base by bbbbbbbbbbbb; report"),
        ([HERE, OTHER], HERE, "evaluate/base, report by aaaaaaaaaaaa; evaluate/base by bbbbbbbbbbbb."),
        ([DIRTY], DIRTY, "CAUTION: made by code with uncommitted changes: evaluate/base, report by aaaa"),
        ([DIRTY], HERE, "aaaaaaaaaaaa with uncommitted changes (sources 333333333333); report by aaaaaaaaaaaa."),
        ([{**OTHER, "sources": HERE["sources"]}], HERE, "Note: made by several commits, but their leafe_jax"),
        ([WHEEL], OTHER, "evaluate/base by leafe_jax 0.1.0 (sources 111111111111); report by bbbbbbbbbbbb."),
    ],
)  # fmt: skip
def test_code_that_is_not_one_clean_commit_is_said(tmp_path, monkeypatch, phases, report_by, said):
    results = make_workdir(tmp_path)
    results["made_by"] = {"evaluate/base": phases, "report": [report_by]}
    edit(tmp_path, results)
    monkeypatch.setattr(sources, "code", lambda: report_by)
    shown = table.console_table(results)
    parsed(tmp_path)
    page = (tmp_path / "report" / "index.html").read_text()
    assert said in shown and said in page and ("class=caution" in page) == bool(said)
    assert sum("uncommitted" in x or "several" in x for x in shown.splitlines()) == bool(said)


def test_a_page_made_in_another_checkout_says_so(tmp_path, monkeypatch):
    results = make_workdir(tmp_path)
    results["made_by"] = {"evaluate/base": [HERE], "report": [HERE]}
    edit(tmp_path, results)
    monkeypatch.setattr(sources, "code", lambda: OTHER)
    parsed(tmp_path)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "evaluate/base, report by aaaaaaaaaaaa; this output by bbbbbbbbbbbb." in page


def test_the_protocol_is_with_the_table(tmp_path):
    results = make_workdir(tmp_path)
    rows = {row[0]: row[1] for row in parsed(tmp_path).rows if len(row) == 2}
    assert rows["split hash"] == "8f2a" and rows["temperature"] == "0.4" and rows["seed"] == "7"
    assert rows["env.options.walls"] == "3" and rows["searches.tree.max_attempts"] == "11"
    shown = table.console_table(results)
    line = next(line for line in shown.splitlines() if line.startswith("Protocol: "))
    for fact in (
        "household (leafe_jax 0.1.0; walls=3)", "horizon 20", "test (8f2a)", "6 tasks", "4 samples a task",
        "temperature 0.4", "top_p 1", "top_k 0", "dialogue", "prompts 1122", "8 tokens an action", "seed 7",
    ):  # fmt: skip
        assert fact in line, fact
    assert "Search tree: tree on train, all tasks; max_attempts 11." in shown
    assert line in (tmp_path / "report" / "index.html").read_text()


# -- intervals ---------------------------------------------------------------------------------------
def test_the_number_of_intervals_is_said(tmp_path):
    shown = table.console_table(make_workdir(tmp_path))
    # 2 methods, 3 groups of tasks, 3 values of k.
    assert "18 intervals of 95% each: up to 5% of them, about 0.9, are expected to miss" in shown


def test_stars_hold_for_a_whole_table():
    cell = {"value": 0.5, "low": 0.1, "high": 0.8, "p": 0.01}
    pair = {"method": "b", "minus": "a", "families": {
        name: {"tasks": 9, "pass_at_k": {"1": {**cell, "p": p}}}
        for name, p in (("all", 0.02), ("x", 0.03), ("y", 0.01))
    }}  # fmt: skip
    methods = {m: {"families": {"all": {"pass_at_k": {"1": cell}}}} for m in "ab"}
    results = {"methods": methods, "differences": [pair]}

    def cells(families):
        return [row[-1] for row in table.difference_rows(results, [pair], families)[1]]

    assert cells(["all"]) == ["+50.0 [+10.0, +80.0]*"]  # p is at most 5%
    assert [c[-1] for c in cells(["all", "x", "y"])] == ["]", "]", "*"]  # at most 5% / 3
    assert table.points(-0.0) == table.points(-0.0004) == "+0.0"
    back = table.turned(pair)
    assert table.difference_rows(results, [back], ["all"])[1] == [
        ["all", "a - b", "9", "-50.0 [-80.0, -10.0]*"]
    ]


def test_pairs_of_the_first_and_of_the_last_method():
    pairs = [{"method": m, "minus": n} for n, m in ("ab", "ac", "ad", "bc", "bd", "cd")]
    shown = table.shown_pairs({"methods": dict.fromkeys("abcd"), "differences": pairs})
    assert [p["method"] + p["minus"] for p in shown] == ["ba", "ca", "da", "db", "dc"]


def test_any_pair_on_request(tmp_path, capsys):
    make_workdir(tmp_path)
    for pair in ("leafe,base", "base,leafe"):
        assert report.main([f"--workdir={tmp_path}", f"--pair={pair}"]) == 0
        out = capsys.readouterr().out
        assert pair.replace(",", " - ") in out and "odd" in out and "Pass@4, points" in out
    assert report.main([f"--workdir={tmp_path}", "--pair=leafe,grpo"]) == 2
    assert "--pair=leafe,grpo: must be two of base, leafe" in capsys.readouterr().err
