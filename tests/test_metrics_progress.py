import json

from leafe_jax.metrics import Metrics
from leafe_jax.progress import Progress


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_phase_replaces_its_own_later_lines(tmp_path):
    with Metrics(tmp_path) as metrics:
        for step in range(3):
            metrics.scalars(step, {"explore/solved": step})
            metrics.scalars(step, {"distill/loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "torn')
    with Metrics(tmp_path) as metrics:
        metrics.scalars(1, {"explore/solved": 5.0})
    kept = lines(tmp_path)
    assert [r["explore/solved"] for r in kept if "explore/solved" in r] == [0.0, 5.0]
    assert sum("distill/loss" in r for r in kept) == 3
    assert list((tmp_path / "tensorboard").iterdir())


def test_plain_lines_without_a_terminal(capsys):
    with Progress(10, "tree", "explore") as bar:
        bar.update(4)
        bar.to(10, 10)
    text = capsys.readouterr().err
    assert "explore: 10/10 trees" in text and "\r" not in text
