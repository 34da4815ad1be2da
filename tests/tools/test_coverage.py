"""The coverage that docs/STATISTICS.md prints, on a few of its settings."""

import numpy as np
import pytest

from leafe_jax.run.intervals import SIGNED
from leafe_jax.tools import coverage

TRIALS = 1500  # three standard errors of a coverage of 94% are 1.8%


@pytest.mark.parametrize(
    "setting",
    [
        ("base-like (mean 0.5%)", 8, 128, 1), ("base-like (mean 0.5%)", 48, 8, 8),
        ("middle", 24, 8, 1), ("near 100", 48, 32, 1), ("near 100", 8, 128, 8),
        ("rare failures", 48, 4, 1), ("bimodal", 100, 32, 8),
    ],
)  # fmt: skip
def test_intervals_contain_the_truth(setting):
    values, truth = coverage.evaluations(np.random.default_rng(0), *setting, TRIALS)
    assert values.mean() == pytest.approx(truth, abs=0.02)  # the closed form is right
    share, width = coverage.measure_exact(values, truth)
    assert share >= 0.94 and 0 < width < 0.8
    others = (coverage.measure_bernstein, coverage.measure_betting)  # they are sure to cover, too
    assert all(width < other(values, truth)[1] for other in others)


@pytest.mark.parametrize(
    ("setting", "most"),
    [(("base-like (mean 0.5%)", 8, 128, 1), 0.82), (("rare failures", 8, 8, 1), 0.5)],
)
def test_the_simulation_finds_out_an_interval_that_does_not_cover(setting, most):
    values, truth = coverage.evaluations(np.random.default_rng(0), *setting, TRIALS)
    assert coverage.measure_bootstrap(values, truth)[0] < most
    assert coverage.measure_student(values, truth)[0] < most


@pytest.mark.parametrize("pair", [0, 25, 60])
def test_paired_intervals_contain_the_truth(pair):
    chosen = list(coverage.pairs())[pair]
    values, truth = coverage.differences(np.random.default_rng(0), chosen, TRIALS)
    assert coverage.measure_exact(values, truth, SIGNED)[0] >= 0.94


def test_intervals_over_seeds_contain_the_truth_where_those_over_tasks_do_not():
    found = coverage.measure_seeds(coverage.SEEDS["middle, seeds differ much"], 3, 48, 1, 100)
    assert found["seeds and tasks"][0] >= 0.93 and found["tasks alone"][0] < 0.85


def test_the_command_prints_every_interval(monkeypatch, capsys):
    for name in ("_WIDTHS", "_RESAMPLED"):
        monkeypatch.setattr(coverage, name, 1)
    monkeypatch.setattr(coverage, "TASKS", (8,))
    monkeypatch.setattr(coverage, "SAMPLES", {4: (1, 4)})
    monkeypatch.setattr(coverage, "SEEDS", {"one": coverage.Seeds(0.0, 1.0, 0.5, 0.5)})
    assert coverage.main(["--trials=8"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*coverage.METHODS, *coverage.DISTRIBUTIONS, "one"])
