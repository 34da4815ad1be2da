"""A method on its own rollouts, as a user runs it: report, resuming, refusals, and what starts from it."""

import json
import sys
from pathlib import Path

import pytest

from leafe_jax.main import main

ROOT = Path(__file__).resolve().parents[2]


def call(monkeypatch, workdir, *overrides) -> int:
    arguments = ["main", f"--config={ROOT / 'configs' / 'grpo.py'}:smoke", f"--workdir={workdir}"]
    arguments += ["--config.grpo.episodes=8", "--config.grpo.num_tasks=4", *overrides]
    monkeypatch.setattr(sys, "argv", arguments)  # config_flags looks there for overrides
    return main(arguments)


@pytest.mark.slow
def test_a_run_and_what_starts_from_it(tmp_path, monkeypatch, capsys):
    """GRPO, then rejection sampling from its weights on trees that its agent has grown."""
    fit = ["--config.methods=('grpo','rft')", "--config.phases=('explore','fit','report')"]
    fit += ["--config.rft.start=grpo", "--config.search.tree.agent=grpo"]
    fit += ["--config.search.tree.num_tasks=2", "--config.search.tree.block_size=2"]
    assert call(monkeypatch, tmp_path, *fit) == 0
    out = capsys.readouterr().out
    assert "Method grpo: trained on 16 episodes, 4 groups" in out and "2 iterations" in out
    assert "training grpo" in out and "best probe after iteration" in out
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["fits"]["grpo"]
    assert found["budget"]["episodes"] == 16 and found["probe_budget"]["episodes"] == 8
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = max((x for x in lines if "grpo/env_steps" in x), key=lambda x: x["step"])
    assert last["grpo/env_steps"] == found["budget"]["env_steps"]
    assert any("grpo/probe/pass_at_1_low" in x for x in lines)
    for name in ("model", "best/model"):
        assert (tmp_path / "grpo" / name / "config.json").is_file()
    assert call(monkeypatch, tmp_path, *fit) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert call(monkeypatch, tmp_path, *fit, "--config.grpo.clip_high=0.3") == 2
    assert "grpo.clip_high = 0.3, but phase" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.grpo.group_size=1", "grpo.group_size = 1: must be at least 2"),
        ("--config.grpo.group_size=3", "grpo.episodes = 8: must be a multiple of group_size = 3"),
        ("--config.grpo.reference=none", "grpo.kl_coefficient = 0.01: must be 0 where grpo.reference"),
        ("--config.grpo.probe_split=test", "grpo.probe_split = 'test': must not be the split that is"),
        ("--config.grpo.probe_split=train", "grpo.probe_split = 'train': must not be the split it"),
        ("--config.sampler.temperature=0.5", "grpo: sampler.temperature must be 1"),
        ("--config.grpo.num_tasks=1", "grpo.episodes = 8: must be at most 1 tasks times"),
        ("--config.grpo.train.seq_len=100", "grpo.train.seq_len = 100: must be at least 383"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_before_any_work(
    tmp_path, monkeypatch, capsys, override, message
):
    assert call(monkeypatch, tmp_path / "run", override) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert line.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()
