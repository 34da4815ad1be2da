"""Confidence intervals: exact where that is known, and simulated."""

import numpy as np
import pytest
from scipy import stats

from leafe_jax.run.intervals import (
    SIGNED,
    mean_interval,
    seeds_interval,
    weighted_mean_cdf,
    zero_p_value,
)


@pytest.mark.parametrize("tasks", [1, 2, 8, 48, 500])
def test_binary_values_have_clopper_and_pearson_s_interval(tasks):
    for successes in {0, 1, tasks // 3, tasks - 1, tasks}:
        exact = stats.binomtest(successes, tasks).proportion_ci(0.95, "exact")
        found = mean_interval([1.0] * successes + [0.0] * (tasks - successes))
        assert found == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.parametrize("tasks", [3, 20, 200])
def test_the_distribution_function_against_drawn_weights(tasks):
    rng = np.random.default_rng(tasks)
    values = 10.0 ** rng.uniform(-6, 0, tasks)  # of all sizes
    means = rng.dirichlet(np.ones(tasks), 100_000) @ values
    for share in (0.025, 0.5, 0.975):
        at = float(np.quantile(means, share))
        found = float(weighted_mean_cdf(values, np.ones(tasks), at))
        assert found == pytest.approx(share, abs=0.004)
    assert float(weighted_mean_cdf(values, np.ones(tasks), values.max())) == 1.0
    assert float(weighted_mean_cdf(values, np.ones(tasks), values.min() / 2)) == 0.0


def test_several_samples_at_once_equal_one_by_one():
    points, counts = (
        np.array([0.0, 0.2, 1.0]),
        np.array([[5, 3, 1], [0, 8, 1], [500, 0, 1], [0, 0, 1]]),
    )
    together = weighted_mean_cdf(points, counts, 0.25)
    alone = [float(weighted_mean_cdf(points, row, 0.25)) for row in counts]
    assert together.tolist() == pytest.approx(alone, abs=1e-10) and together[3] == 0.0


def test_it_narrows_to_the_normal_interval():
    values = np.random.default_rng(0).beta(2, 2, 2000).round(2)
    half = 1.96 * values.std() / np.sqrt(2000)
    low, high = mean_interval(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.003)
    assert mean_interval(values, level=0.5)[0] > low


def test_a_difference_of_zero_everywhere_is_no_certainty():
    low, high = mean_interval(np.zeros(48), SIGNED)
    assert high == -low == pytest.approx(1 - 0.025 ** (1 / 48)) and zero_p_value(np.zeros(48)) == 1


def test_p_and_interval_agree():
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = rng.choice([-1.0, 0.0, 0.5, 1.0], 30, p=[0.1, 0.3, 0.3, 0.3])
        p = zero_p_value(values)
        low, _ = mean_interval(values, SIGNED, 1 - p)
        assert low == pytest.approx(0, abs=1e-7) and 0 < p < 0.05


def test_seeds_and_tasks():
    rng = np.random.default_rng(0)
    tasks = rng.random(40)
    alike = np.stack([tasks, tasks, tasks])
    assert seeds_interval(alike) == pytest.approx(mean_interval(tasks))
    assert seeds_interval(tasks[None]) == mean_interval(tasks)
    # Tasks alike, seeds not: Student's t of the seeds' means is all there is beside the bounds' own width.
    means = np.array([0.3, 0.5, 0.7])
    apart = np.repeat(means[:, None], 100_000, axis=1)
    half = stats.t.ppf(0.975, 2) * means.std(ddof=1) / np.sqrt(3)
    assert seeds_interval(apart) == pytest.approx((0.5 - half, 0.5 + half), abs=0.001)


def test_what_is_refused():
    for values, arguments in (
        ([], {}), ([[1.0]], {}), ([1.5], {}), ([-0.5], {}), ([float("nan")], {}), ([1.0], {"level": 1.0}),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            mean_interval(values, **arguments)
