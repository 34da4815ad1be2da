"""Pass@k against enumeration of all subsets."""

import itertools

import numpy as np
import pytest

from leafe_jax.run.passk import bootstrap_interval, ks_up_to, pass_at_k, summarise


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_equals_the_share_of_subsets_with_a_success(n):
    for c in range(n + 1):
        outcomes = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(outcomes, k))
            expected = sum(any(s) for s in subsets) / len(subsets)
            assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_a_whole_benchmark_at_once_equals_task_by_task():
    counts = np.array([[0, 3, 128], [64, 1, 127]])
    for k in (1, 2, 100, 128):
        together = pass_at_k(128, counts, k)
        alone = [[pass_at_k(128, int(c), k) for c in row] for row in counts]
        assert together.shape == counts.shape and together.tolist() == alone
    assert isinstance(pass_at_k(4, np.int64(2), 2), float)
    with pytest.raises(ValueError):
        pass_at_k(4, [0, 5], 1)


def test_edges():
    assert pass_at_k(128, 0, 128) == 0.0 and pass_at_k(128, 1, 128) == 1.0
    assert pass_at_k(128, 1, 1) == pytest.approx(1 / 128)
    assert pass_at_k(10**6, 3, 10) == pytest.approx(3e-5, rel=1e-3)
    for n, c, k in ((4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)):
        with pytest.raises(ValueError):
            pass_at_k(n, c, k)
    assert ks_up_to(1) == [1] and ks_up_to(100) == [1, 2, 4, 8, 16, 32, 64]


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.random(40), 400, trial)
        hits += low <= 0.5 <= high
    assert 175 <= hits <= 199
    assert bootstrap_interval([0.25] * 9, 100, 0) == (0.25, 0.25)
    assert bootstrap_interval([0, 1, 1], 50, 3) == bootstrap_interval([0, 1, 1], 50, 3)
    narrow, wide = (bootstrap_interval(rng.random(40), 400, 0, level) for level in (0.5, 0.95))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    for bad in (([], 10, 0), ([1.0], 0, 0), ([1.0], 10, 0, 1.0), ([[1.0]], 10, 0)):
        with pytest.raises(ValueError):
            bootstrap_interval(*bad)


def test_summary_by_family():
    successes = {"a": [True, False], "b": [False, False], "c": [True, True]}
    summary = summarise(successes, {"a": "x", "b": "x", "c": "y"}, 100, 0)
    assert list(summary) == ["all", "x", "y"]
    assert summary["all"]["pass_at_k"]["1"]["value"] == pytest.approx(0.5)
    assert summary["x"]["pass_at_k"]["2"]["value"] == pytest.approx(0.5)
    assert summary["y"]["tasks"] == 1 and summary["y"]["samples"] == 2
    assert set(summary["all"]["pass_at_k"]["1"]) == {"value", "low", "high"}
    with pytest.raises(ValueError, match="same number of samples"):
        summarise({"a": [True], "b": [True, False]}, {"a": "x", "b": "x"}, 10, 0)
    with pytest.raises(ValueError):
        summarise({}, {}, 10, 0)
