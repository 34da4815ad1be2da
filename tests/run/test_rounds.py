"""Several methods and searches in one workdir: what they share on disk, and what each adds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from leafe_jax.main import main
from leafe_jax.run.presets import find_config

CONFIG = """
from leafe_jax.methods.search import SearchConfig
from leafe_jax.run.config import to_config_dict
from leafe_jax.run.presets import add_rounds, load_config


def get_config():
    c = load_config("quickstart", "smoke")
    # The decay is part of the compiled step: without it, trainings of any length share one.
    c.rft.train.update(schedule="constant", warmup_steps=0)
    {more}
    return c
"""


def call(monkeypatch, directory, more="", *overrides) -> int:
    config = directory / "config.py"
    config.write_text(CONFIG.format(more=more))
    arguments = ["main", f"--config={config}", f"--workdir={directory / 'run'}", *overrides]
    monkeypatch.setattr(sys, "argv", arguments)  # config_flags looks there for overrides
    return main(arguments)


def results(directory) -> dict:
    return json.loads((directory / "run" / "results.json").read_text())


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    subprocess.run(["cp", "-rp", str(finished[0]), str(tmp_path)], check=True)
    return tmp_path


@pytest.mark.slow
def test_a_method_joins_a_finished_run(copy, monkeypatch, capsys):
    """It takes the trees that are there, and changes nothing of the others."""
    before = results(copy)
    trees = sorted((copy / "run" / "trees" / "tree").glob("0???.jsonl"))
    written = [block.stat().st_mtime_ns for block in trees]
    chosen = "--config.methods=('base','rft','leafe')"
    assert call(monkeypatch, copy, "", chosen) == 0
    assert [block.stat().st_mtime_ns for block in trees] == written
    after = results(copy)
    assert list(after["methods"]) == ["base", "rft", "leafe"]
    for name in ("base", "leafe"):
        assert after["methods"][name] == before["methods"][name]
    assert after["fits"]["leafe"] == before["fits"]["leafe"]
    found = [json.loads(line) for block in trees for line in block.read_text().splitlines()]
    assert len(found) == 12
    successes = sum(node["success"] for tree in found for node in tree["nodes"])
    assert after["fits"]["rft"]["examples"] == {"successful sequences": successes}
    assert f"Method rft: trained on {successes} successful sequences" in capsys.readouterr().out
    assert call(monkeypatch, copy, "", chosen) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_second_round_explores_with_the_first_ones_agent(copy, monkeypatch, capsys):
    more = "add_rounds(c, 2)\n    c.search.tree_2.num_tasks = c.search.tree_2.block_size = 3"
    assert call(monkeypatch, copy, more) == 0
    made_of = {
        name: json.loads((copy / "run" / name / "phase.json").read_text())["made_of"]
        for name in ("trees/tree", "trees/tree_2", "leafe", "leafe_2")
    }
    # The second round explores with the model that the first one has made, and trains on from it.
    assert made_of["trees/tree_2"]["model"] == made_of["leafe_2"]["model"]
    assert made_of["trees/tree_2"]["model"] != made_of["trees/tree"]["model"]
    assert made_of["trees/tree_2"]["tasks"] != made_of["trees/tree"]["tasks"]
    assert set(results(copy)["searches"]) == {"tree", "tree_2"}
    assert list(results(copy)["methods"]) == ["base", "leafe", "leafe_2"]
    assert (copy / "run" / "leafe_2" / "model").is_dir()
    # What the first round depends on, the second depends on.
    capsys.readouterr()
    assert call(monkeypatch, copy, more, "--config.leafe.beta=0.5") == 2
    assert "leafe.beta = 0.5, but phase 'leafe'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_method_without_examples_keeps_its_model(copy, monkeypatch, caplog):
    """No task of this search is solved: the table says so, and the run goes on."""
    more = (
        "c.search.short = to_config_dict(SearchConfig(num_tasks=1, block_size=1, max_env_steps=1))\n"
        '    c.rft.trees, c.methods = "short", ("base", "rft")'
    )
    with caplog.at_level("WARNING", logger="leafe_jax"):
        assert call(monkeypatch, copy, more) == 0
    found = results(copy)
    assert found["fits"]["rft"]["examples"] == {"successful sequences": 0}
    assert found["methods"]["rft"]["families"] == found["methods"]["base"]["families"]
    assert not (copy / "run" / "rft" / "model").exists()


def test_a_config_by_name(tmp_path, monkeypatch, capsys):
    """In an empty directory, as after installing the wheel."""
    monkeypatch.chdir(tmp_path)
    for text, message in (
        ("quickstart:huge", "the modes are full and smoke"),
        ("quickfix", "--config=quickfix: must be a file, or one of alfworld, "),
    ):
        arguments = ["main", f"--config={text}", "--workdir=run"]
        monkeypatch.setattr(sys, "argv", arguments)
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    arguments = [
        "main",
        "--config=quickstart:smoke",
        "--workdir=run",
        "--config.phases=('report',)",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main(arguments) == 2
    assert "no phase to report is finished (trees/tree, leafe, " in capsys.readouterr().err
    assert find_config("quickstart").name == "quickstart.py"
