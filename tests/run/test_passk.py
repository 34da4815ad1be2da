"""Pass@k against enumeration of all subsets."""

import itertools

import numpy as np
import pytest

from leafe_jax.run.intervals import mean_interval
from leafe_jax.run.passk import differences, ks_up_to, pass_at_k, summarise


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


def test_summary_by_family():
    successes = {"a": [True, False], "b": [False, False], "c": [True, True]}
    summary = summarise(successes, {"a": "x", "b": "x", "c": "y"})
    assert list(summary) == ["all", "x", "y"]
    assert summary["all"]["pass_at_k"]["1"]["value"] == pytest.approx(0.5)
    assert summary["x"]["pass_at_k"]["2"]["value"] == pytest.approx(0.5)
    assert summary["y"]["tasks"] == 1 and summary["y"]["samples"] == 2
    assert set(summary["all"]["pass_at_k"]["1"]) == {"value", "low", "high"}
    with pytest.raises(ValueError, match="same number of samples"):
        summarise({"a": [True], "b": [True, False]}, {"a": "x", "b": "x"})
    with pytest.raises(ValueError):
        summarise({}, {})


def test_eight_tasks_that_all_succeed_are_no_certainty():
    """Clopper and Pearson: a true rate of 0.631 gives eight successes of eight with probability 2.5%."""
    tasks = [f"t{i}" for i in range(8)]
    families = dict.fromkeys(tasks, "x")
    for outcome, low, high in ((True, 0.025 ** (1 / 8), 1.0), (False, 0.0, 1 - 0.025 ** (1 / 8))):
        found = summarise({t: [outcome] * 4 for t in tasks}, families)["all"]["pass_at_k"]
        for k in ("1", "2", "4"):
            assert (found[k]["low"], found[k]["high"]) == pytest.approx((low, high), abs=1e-9)


def test_paired_differences_by_family():
    before = {"a": [False, False], "b": [True, False], "c": [False, False]}
    after = {"a": [True, True], "b": [True, False], "c": [True, False]}
    families = {"a": "x", "b": "x", "c": "y"}
    found = differences(after, before, families)
    assert list(found) == ["all", "x", "y"] and found["all"]["tasks"] == 3
    one = found["all"]["pass_at_k"]["1"]
    assert one["value"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert (one["low"], one["high"]) == mean_interval([1, 0, 0.5], (-1, 1))
    assert found["all"]["pass_at_k"]["2"]["value"] == pytest.approx(2 / 3)
    opposite = differences(before, after, families)["all"]["pass_at_k"]["1"]
    assert (opposite["low"], opposite["p"]) == pytest.approx((-one["high"], one["p"]))
    with pytest.raises(ValueError, match="1 were played by one of the two only"):
        differences(after, {t: before[t] for t in "ab"}, families)


def test_pairs_are_narrower_than_two_intervals_of_their_own():
    """Tasks differ a lot, methods a little, the same way on every task."""
    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 0.5, 200) * 0.8
    one, other = ({f"{i}": rng.random(64) < r for i, r in enumerate(rates + d)} for d in (0, 0.06))
    families = dict.fromkeys(one, "x")
    found = differences(other, one, families)["all"]["pass_at_k"]["1"]
    alone = [summarise(s, families)["all"]["pass_at_k"]["1"] for s in (one, other)]
    assert alone[0]["high"] > alone[1]["low"], "the intervals of their own overlap"
    assert found["low"] > 0.03 and found["p"] < 1e-3
