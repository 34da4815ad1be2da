"""Confidence intervals of a mean over tasks, and over seeds and tasks.

A task's value (Pass@k, or a difference of two) is bounded and may be far from normal: most values 0, or all
of them 1. So the interval assumes nothing but the bounds. docs/STATISTICS.md says why this one, and how
often it covers; leafe_jax/tools/coverage.py measures that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

LEVEL = 0.95  # coverage of every interval that is printed
UNIT, SIGNED = (0.0, 1.0), (-1.0, 1.0)  # ends of the range of Pass@k, and of a difference

_TAIL = 27.0  # the integrand is below exp(-_TAIL) where the quadrature ends


def weighted_mean_cdf(points: np.ndarray, counts: np.ndarray, at: float) -> np.ndarray:
    """Probability that a mean of points with Dirichlet(1, ..., 1) weights is at most `at`.

    Such weights are exponential variables E_i over their sum. So this is P(sum_i E_i (x_i - at) <= 0),
    which Gil-Pelaez's formula gives as one smooth integral. Absolute error: about 1e-11.

    Args:
      points: [v] different values.
      counts: [..., v] how often each occurs; several samples at once share `points` and `at`.
      at: where the distribution function is evaluated.

    Returns:
      [...] probabilities.
    """
    offsets = points - at
    counts = np.asarray(counts, float)
    below = (counts * (offsets > 0)).sum(-1) == 0  # no weight can bring the mean above `at`
    above = (counts * (offsets <= 0)).sum(-1) == 0
    outside = below | above
    if outside.all():
        return np.where(below, 1.0, 0.0)
    scale = float((counts @ np.abs(offsets)).max())

    def log_modulus(u: np.ndarray) -> np.ndarray:
        return -0.5 * (counts @ np.log1p(np.multiply.outer(offsets, u) ** 2))

    # u = exp(t - exp(-t)) / scale, so that both ends of the trapezoidal rule are cut where nothing is left.
    # The phase advances by at most about 7 sqrt(tasks) while t advances by 1.
    coarse = np.arange(0.0, 60.0)
    left = np.where(outside[..., None], -np.inf, log_modulus(np.exp(coarse) / scale)) > -_TAIL
    end = coarse[left.reshape(-1, len(coarse)).any(axis=0)].max(initial=0.0) + 1
    step = min(0.1, 0.4 / math.sqrt(float(counts.sum(-1).max())))
    t = np.arange(-3.5, end, step)
    u = np.exp(t - np.exp(-t)) / scale
    angle = counts @ np.arctan(np.multiply.outer(offsets, u))
    integrand = np.sin(angle) * np.exp(log_modulus(u)) * (1 + np.exp(-t))
    inside = 0.5 - integrand.sum(-1) * step / math.pi
    return np.where(below, 1.0, np.where(above, 0.0, np.clip(inside, 0.0, 1.0)))


def _with_end(values: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(np.append(values, end), return_counts=True)


def _quantile(values: np.ndarray, end: float, share: float) -> float:
    """The `share` quantile of the mean of `values` and `end` under Dirichlet weights."""
    points, counts = _with_end(values, end)
    if len(points) == 1:
        return float(points[0])

    def off(at: float) -> float:
        return float(weighted_mean_cdf(points, counts, at)) - share

    return float(optimize.brentq(off, points[0], points[-1], xtol=1e-10, rtol=1e-10))


def _checked(values: Sequence[float] | np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    found = np.asarray(values, float)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"values of shape {found.shape}: needs one value per task")
    if not (found.min() >= ends[0] and found.max() <= ends[1]):
        raise ValueError(f"values from {found.min()} to {found.max()}: must be within {ends}")
    return np.round(found, 12)  # differences of equal shares are equal, up to rounding


def mean_interval(
    values: Sequence[float] | np.ndarray,
    ends: tuple[float, float] = UNIT,
    level: float = LEVEL,
) -> tuple[float, float]:
    """(low, high): confidence interval of the expectation of bounded values, one per task.

    Gaffke's bounds (2005; Learned-Miller and Thomas 2019, arXiv 1905.06208): the upper one is the
    (1 + level) / 2 quantile of the mean of the values and the upper end of their range, under
    Dirichlet(1, ..., 1) weights; the lower one likewise. Where every value is at an end, these are Clopper
    and Pearson's exact binomial bounds. With many tasks they approach mean +- 1.96 standard errors.

    Args:
      values: one value per task, drawn independently.
      ends: the range of a value.
      level: coverage.

    Raises:
      ValueError: there is no value, one is outside the range, or the level is outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must be between 0 and 1")
    found, miss = _checked(values, ends), (1 - level) / 2
    return _quantile(found, ends[0], miss), _quantile(found, ends[1], 1 - miss)


def zero_p_value(differences: Sequence[float] | np.ndarray) -> float:
    """p of the hypothesis that the mean of differences in [-1, 1] is zero, two-sided.

    It is at most a exactly if `mean_interval` of level 1 - a excludes zero. Values below 1e-9 are rounding.
    """
    found = _checked(differences, SIGNED)
    positive = weighted_mean_cdf(*_with_end(found, SIGNED[0]), 0.0)
    negative = 1.0 - weighted_mean_cdf(*_with_end(found, SIGNED[1]), 0.0)
    return min(1.0, 2.0 * float(min(positive, negative)))


def seeds_interval(
    values: np.ndarray, ends: tuple[float, float] = UNIT, level: float = LEVEL
) -> tuple[float, float]:
    """(low, high): confidence interval of the expectation over tasks and training seeds.

    Tasks: `mean_interval` of each task's mean over seeds. Seeds: Student's t interval of the seeds' means,
    which takes these to be roughly normal; a few seeds allow no less. The distances from the mean add as
    squares (MOVER, Zou and Donner 2008). One seed says nothing about others: then it is the interval over
    tasks alone, for that seed.

    Args:
      values: [seeds, tasks].
      ends, level: see `mean_interval`.

    Raises:
      ValueError: see `mean_interval`.
    """
    values = np.asarray(values, float)
    low, high = mean_interval(values.mean(axis=0), ends, level)
    if len(values) == 1:
        return low, high
    mean, means = float(values.mean()), values.mean(axis=1)
    quantile = special.stdtrit(len(means) - 1, (1 + level) / 2)
    seeds = float(quantile * means.std(ddof=1) / math.sqrt(len(means)))
    return (
        max(mean - math.hypot(mean - low, seeds), ends[0]),
        min(mean + math.hypot(high - mean, seeds), ends[1]),
    )
