"""The report page: hostile text stays text, torn files are survived."""

import html.parser
import json

import pytest

from leafe_jax import report
from leafe_jax.errors import UserError
from leafe_jax.passk import summarise
from leafe_jax.types import Node, ReflectionRecord, Tree, Turn

HOSTILE = "</script><img src=x onerror=alert(1)><!-- \u2028 &amp; \U0001f600 " + "x" * 5000


def hostile_tree(number: int) -> Tree:
    turn = Turn(1, HOSTILE, HOSTILE, [1], [1], [2], [-0.1], HOSTILE, HOSTILE, False, 0.0)
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
                  episodes=8, reflections=9)  # fmt: skip
    results = {
        "schema": 1, "commit": None, "versions": {"jax": "1"}, "config_hash": "abc", "seed": 0,
        "device": "<b>cpu</b>",
        "methods": {m: {"families": families, "budget": budget, "seconds": 1.0} for m in ("base", "leafe")},
        "explore": {
            "tasks": 3, "solved_tasks": 3, "episodes": 6, "success_episodes": 3,
            "reflections": {"branched": 3}, "branches": 3, "branches_successful": 3,
            "budget": budget, "seconds": 1.0,
        },
        "distill": {"counterfactual_examples": 1, "rehearsal_examples": 2, "target_tokens": 3},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    directory = tmp_path / "explore" / "trees"
    directory.mkdir(parents=True)
    lines = [json.dumps(hostile_tree(i).to_json()) for i in range(trees)]
    (directory / "0000.jsonl").write_text("\n".join(lines) + "\n")
    (directory / "0001.jsonl.partial").write_text(lines[0] + "\n" + lines[0][:100])
    return results


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.data, self.inside = [], "", False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.data += data


def test_hostile_text_never_becomes_markup(tmp_path):
    make_workdir(tmp_path)
    report.write_report(tmp_path)
    parser = Tags()
    parser.feed((tmp_path / "report" / "index.html").read_text())
    assert not [
        t for t, a in parser.tags if t == "img" and not a["src"].startswith("data:image/png")
    ]
    assert not [a for _, a in parser.tags if any(name.startswith("on") for name in a)]
    assert [t for t, _ in parser.tags].count("script") == 2
    assert "<" not in parser.data
    shown = json.loads(parser.data)
    assert len(shown) == 4 and shown[0]["nodes"][0]["turns"][0]["text"] == HOSTILE
    page = (tmp_path / "report" / "index.html").read_text()
    assert "1 unreadable lines" in page and "&lt;b&gt;cpu" in page
    assert "innerHTML" not in page and "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "report" / "pass_at_k.png").stat().st_size > 5000


def test_large_runs_are_capped_on_the_page(tmp_path):
    make_workdir(tmp_path, trees=230)
    report.write_report(tmp_path)
    assert "200 of 231 trees" in (tmp_path / "report" / "index.html").read_text()


def test_console_table(tmp_path):
    table = report.console_table(make_workdir(tmp_path))
    assert "50.0" in table and "1,234" in table and "3 of 3 tasks solved" in table
    assert "second" not in table  # the same run prints the same table


def test_command_line(tmp_path, capsys):
    assert report.main(["--workdir", str(tmp_path)]) == 2
    assert "results.json: missing" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        report.read_results(tmp_path)
