"""Pass@k: the unbiased estimator of Chen et al. 2021 and bootstrap intervals over tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples drawn from n, of which c are right, is right.

    1 - C(n - c, k) / C(n, k), as the product that does not overflow (Chen et al. 2021, section 2.1).

    Raises:
      ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}): needs 0 <= c <= n and 1 <= k <= n")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def ks_up_to(n: int) -> list[int]:
    """1, 2, 4, ... up to n."""
    return [2**i for i in range(n.bit_length()) if 2**i <= n]


def bootstrap_interval(
    per_task: Sequence[float], num_resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of the mean over tasks.

    Tasks are the unit that is resampled: samples of one task are not independent evidence about
    another. When all tasks have the same value the interval is a point, which says nothing about
    tasks not drawn: with few tasks read it with that in mind.

    Args:
      per_task: one value a task.
      num_resamples, seed: of the bootstrap.
      level: coverage.

    Returns:
      (low, high).
    """
    values = np.asarray(per_task, float)
    draws = np.random.default_rng(seed).integers(0, len(values), (num_resamples, len(values)))
    means = values[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(
    successes: Mapping[str, Sequence[bool]],
    families: Mapping[str, str],
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Pass@k with intervals, over all tasks and per family (docs/FORMATS.md, results.json).

    Args:
      successes: n outcomes a task.
      families: family of each task.
      num_resamples, seed: of the bootstrap.
    """
    groups = {"all": sorted(successes)}
    for family in sorted(set(families.values())):
        groups[family] = [t for t in groups["all"] if families[t] == family]
    summary = {}
    for name, tasks in groups.items():
        n = len(successes[tasks[0]])
        curve = {}
        for k in ks_up_to(n):
            values = [pass_at_k(n, sum(successes[t]), k) for t in tasks]
            low, high = bootstrap_interval(values, num_resamples, seed)
            curve[str(k)] = {"value": float(np.mean(values)), "low": low, "high": high}
        summary[name] = {"tasks": len(tasks), "samples": n, "pass_at_k": curve}
    return summary
