"""Pass@k: the unbiased estimator of Chen et al. 2021, and bootstrap intervals over tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np


def pass_at_k(n: int, c: int | Sequence[int] | np.ndarray, k: int) -> float | np.ndarray:
    """Probability that at least one of k samples is correct, if they are drawn without replacement from n
    samples of which c are correct.

    It is 1 - C(n - c, k) / C(n, k), computed as a product that does not overflow (Chen et al. 2021, section
    2.1).

    Args:
      n: samples per task.
      c: number of correct ones; one number, or one per task.
      k: number of samples drawn.

    Returns:
      A float if c is one number, else an array of c's shape.

    Raises:
      ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    counts = np.asarray(c, int)
    if not (1 <= k <= n and np.all((0 <= counts) & (counts <= n))):
        raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}): needs 0 <= c <= n and 1 <= k <= n")
    # misses[c] = product of 1 - k / i over i = n, n - 1, ..., n - c + 1. The factor of i = k is exactly
    # zero, so fewer than k wrong samples (n - c < k) need no special case: they give 1.
    factors = 1.0 - k / (n - np.arange(counts.max(initial=0)))
    misses = np.concatenate([[1.0], np.cumprod(factors)])
    values = 1.0 - misses[counts]
    return float(values) if counts.ndim == 0 else values


def ks_up_to(n: int) -> list[int]:
    """The powers of two up to n: 1, 2, 4, ..."""
    return [2**i for i in range(n.bit_length()) if 2**i <= n]


def bootstrap_interval(
    per_task: Sequence[float], num_resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """(low, high): percentile bootstrap interval of the mean over tasks.

    Tasks are resampled, not samples, because samples of one task say nothing about another task. If all
    tasks have the same value (all 0 or all 1), all resamples are equal and the interval is a point. This is
    a blind spot of the bootstrap, not certainty: if m of m tasks fail, a true rate of up to about 3 / m is
    still compatible with that (the rule of three).

    Args:
      per_task: one value per task.
      num_resamples, seed: of the bootstrap.
      level: coverage.

    Raises:
      ValueError: there is no task or no resample, or the level is outside (0, 1).
    """
    values = np.asarray(per_task, float)
    if values.ndim != 1 or not len(values) or num_resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap_interval: values of shape {values.shape}, num_resamples={num_resamples},"
            f" level={level}: needs one value per task, num_resamples >= 1 and 0 < level < 1"
        )
    draws = np.random.default_rng(seed).integers(0, len(values), (num_resamples, len(values)))
    means = values[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Estimate(TypedDict):
    """Pass@k, and its 95% bootstrap interval over tasks."""

    value: float
    low: float
    high: float


class FamilySummary(TypedDict):
    """Pass@k of a group of tasks."""

    tasks: int  # number of tasks
    samples: int  # n, episodes per task
    pass_at_k: dict[str, Estimate]  # k, as text -> Pass@k, for the powers of two up to n


def summarise(
    successes: Mapping[str, Sequence[bool]],
    families: Mapping[str, str],
    num_resamples: int,
    seed: int,
) -> dict[str, FamilySummary]:
    """Pass@k with intervals for all tasks ("all") and for each family, in the format of results.json
    (docs/FORMATS.md).

    Args:
      successes: task -> its n outcomes.
      families: task -> its family.
      num_resamples, seed: of the bootstrap.

    Raises:
      ValueError: there is no task, or tasks have different numbers of samples.
    """
    sizes = {len(outcomes) for outcomes in successes.values()}
    if len(sizes) != 1:
        raise ValueError(f"summarise: every task needs the same number of samples: {sorted(sizes)}")
    (n,) = sizes
    groups = {"all": sorted(successes)}
    for family in sorted({families[task] for task in successes} - {"all"}):
        groups[family] = [task for task in groups["all"] if families[task] == family]
    summary: dict[str, FamilySummary] = {}
    for name, tasks in groups.items():
        counts = [sum(map(bool, successes[task])) for task in tasks]
        curve: dict[str, Estimate] = {}
        for k in ks_up_to(n):
            values = np.atleast_1d(pass_at_k(n, counts, k))
            low, high = bootstrap_interval(values.tolist(), num_resamples, seed)
            curve[str(k)] = {"value": float(np.mean(values)), "low": low, "high": high}
        summary[name] = {"tasks": len(counts), "samples": n, "pass_at_k": curve}
    return summary
