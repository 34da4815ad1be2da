"""The sweep runs end to end at smoke size, and a method without data leaves the base as it was."""

import json
import shutil
import sys
from pathlib import Path

from leafe_jax.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_sweep(tmp_path, monkeypatch, capsys):
    moved, tmp_path = tmp_path / "moved", tmp_path / "sweep"
    arguments = ["main", f"--config={ROOT}/configs/unaided_sweep.py:smoke", f"--workdir={tmp_path}"]
    arguments += ["--config.sweep.settings=(0.0,)", "--config.explore.num_tasks=12"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main(arguments) == 0
    (row,) = json.loads((tmp_path / "sweep.json").read_text())
    assert row["value"] == 0.0 and set(row) == {"value", "base", "leafe", "rejection"}
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    last = capsys.readouterr().out.splitlines()[-2:]
    assert "bootstrap.rate_scale" in last[0] and "rejection @1" in last[0]
    budgets = {}
    for name in ("leafe", "rejection"):
        lines = (
            (tmp_path / "0.0" / name / "explore" / "trees" / "0000.jsonl").read_text().splitlines()
        )
        budgets[name] = [json.loads(line)["budget"]["env_steps"] for line in lines]
    assert max(budgets["leafe"]) <= 50
    assert set(budgets["rejection"]) == {50}

    # It may be moved, and what is lost is made again: the base model from its last checkpoint.
    tmp_path.rename(moved)
    bootstrap = moved / "0.0" / "base" / "bootstrap"
    weights = (bootstrap / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(bootstrap / "model")
    lines = (bootstrap / "corpus.jsonl").read_text().splitlines(keepends=True)
    (bootstrap / "corpus.jsonl").write_text("".join(lines[:-1]))
    table = (moved / "sweep.json").read_text()
    (moved / "sweep.json").write_text("")
    arguments[2] = f"--workdir={moved}"
    assert main(arguments) == 0
    assert (bootstrap / "model" / "model.safetensors").read_bytes() == weights
    assert (bootstrap / "corpus.jsonl").read_text() == "".join(lines)
    assert (moved / "sweep.json").read_text() == table
