"""Pass@k: the unbiased estimator of Chen et al. 2021, its intervals over tasks, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from leafe_jax.run.intervals import SIGNED, mean_interval, zero_p_value


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


class Estimate(TypedDict):
    """A mean over tasks, and its 95% interval (leafe_jax/run/intervals.py)."""

    value: float
    low: float
    high: float


class Difference(Estimate):
    """A mean of paired differences; `p` is that of no difference, two-sided."""

    p: float


class FamilySummary(TypedDict):
    """Pass@k of a group of tasks."""

    tasks: int  # number of tasks
    samples: int  # n, episodes per task
    pass_at_k: dict[str, Estimate]  # k, as text -> Pass@k, for the powers of two up to n


class FamilyDifference(TypedDict):
    """Pass@k of one method minus that of another, on the same tasks."""

    tasks: int
    pass_at_k: dict[str, Difference]


Outcomes = Mapping[str, Sequence[bool]]  # task -> its n outcomes


def number_of_samples(successes: Outcomes) -> int:
    """n, the same for all tasks.

    Raises:
      ValueError: there is no task, or tasks have different numbers of samples.
    """
    sizes = {len(outcomes) for outcomes in successes.values()}
    if len(sizes) != 1:
        raise ValueError(f"every task needs the same number of samples: {sorted(sizes)}")
    return sizes.pop()


def values_of(successes: Outcomes, tasks: Sequence[str], k: int) -> np.ndarray:
    """[tasks] Pass@k of each task."""
    counts = [sum(map(bool, successes[task])) for task in tasks]
    return np.atleast_1d(pass_at_k(number_of_samples(successes), counts, k))


def groups_of(families: Mapping[str, str]) -> dict[str, list[str]]:
    """Family -> its tasks, sorted; first "all", with all tasks."""
    groups = {"all": sorted(families)}
    for family in sorted(set(families.values()) - {"all"}):
        groups[family] = [task for task in groups["all"] if families[task] == family]
    return groups


def summarise(successes: Outcomes, families: Mapping[str, str]) -> dict[str, FamilySummary]:
    """Pass@k with intervals for all tasks ("all") and for each family, in the format of results.json
    (docs/FORMATS.md).

    Args:
      successes: task -> its n outcomes.
      families: task -> its family, of the same tasks.

    Raises:
      ValueError: there is no task, or tasks have different numbers of samples.
    """
    n = number_of_samples(successes)
    summary: dict[str, FamilySummary] = {}
    for name, tasks in groups_of(families).items():
        curve: dict[str, Estimate] = {}
        for k in ks_up_to(n):
            values = values_of(successes, tasks, k)
            low, high = mean_interval(values)
            curve[str(k)] = {"value": float(np.mean(values)), "low": low, "high": high}
        summary[name] = {"tasks": len(tasks), "samples": n, "pass_at_k": curve}
    return summary


def differences(
    successes: Outcomes, minus: Outcomes, families: Mapping[str, str]
) -> dict[str, FamilyDifference]:
    """Pass@k of one method minus that of another, task by task, with intervals: "all" and each family.

    Args:
      successes, minus: task -> its outcomes, of the two methods.
      families: task -> its family, of the same tasks.

    Raises:
      ValueError: there is no task, or the methods were not evaluated on the same ones.
    """
    if not successes.keys() == minus.keys() == families.keys():
        odd = sorted(successes.keys() ^ minus.keys())
        raise ValueError(f"needs the same tasks: {len(odd)} were played by one of the two only")
    ks = ks_up_to(min(number_of_samples(successes), number_of_samples(minus)))
    found: dict[str, FamilyDifference] = {}
    for name, tasks in groups_of(families).items():
        curve: dict[str, Difference] = {}
        for k in ks:
            values = values_of(successes, tasks, k) - values_of(minus, tasks, k)
            low, high = mean_interval(values, SIGNED)
            curve[str(k)] = {
                "value": float(np.mean(values)), "low": low, "high": high,
                "p": zero_p_value(values),
            }  # fmt: skip
        found[name] = {"tasks": len(tasks), "pass_at_k": curve}
    return found
