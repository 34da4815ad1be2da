"""Measures how often confidence intervals contain the truth, on simulated evaluations.

    python -m leafe_jax.tools.coverage --trials=2000

A task's success rate is drawn from a distribution, n samples are drawn from the rate, and Pass@k is
estimated as a run does it. The truth is the expectation of Pass@k over the distribution, in closed form.
The run's interval (leafe_jax/run/intervals.py) stands beside others that could have been taken.
docs/STATISTICS.md has the tables that this prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterator

import numpy as np
from scipy import special

from leafe_jax.run.intervals import (
    LEVEL,
    SIGNED,
    UNIT,
    mean_interval,
    seeds_interval,
    weighted_mean_cdf,
)
from leafe_jax.run.passk import pass_at_k
from leafe_jax.run.report.table import text_table
from leafe_jax.runtime import console, sources

_MISS = 1 - LEVEL
_WIDTHS = 6  # simulated evaluations whose width is taken, where an interval has to be solved for
_RESAMPLES, _RESAMPLED = 200, 200  # of the bootstrap, and the evaluations that it is made for


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A distribution of success rates: (weight, a, b) of beta distributions; b = 0 is the rate 1, and a = 0
    the rate 0."""

    parts: tuple[tuple[float, float, float], ...]

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Success rates."""
        weights = [weight for weight, _, _ in self.parts]
        which = rng.choice(len(weights), size=shape, p=weights)
        rates = np.zeros(shape)
        for number, (_, a, b) in enumerate(self.parts):
            drawn = rng.beta(a, b, shape) if a and b else np.full(shape, float(b == 0))
            rates = np.where(which == number, drawn, rates)
        return rates

    def pass_at_k(self, k: int) -> float:
        """The expectation of 1 - (1 - rate)^k."""
        total = 0.0
        for weight, a, b in self.parts:
            if a and b:
                total += weight * -math.expm1(special.betaln(a, b + k) - special.betaln(a, b))
            else:
                total += weight * float(b == 0)
        return total


DISTRIBUTIONS = {
    "base-like (mean 0.5%)": Mixture(((0.6, 0.0, 1.0), (0.4, 0.8, 63.2))),
    "middle": Mixture(((1.0, 0.8, 0.8),)),
    "near 100": Mixture(((0.8, 1.0, 0.0), (0.2, 4.0, 1.0))),
    "rare failures": Mixture(((0.97, 1.0, 0.0), (0.03, 1.0, 9.0))),
    "bimodal": Mixture(((0.4, 0.8, 20.0), (0.6, 20.0, 0.8))),
}
TASKS = (8, 24, 48, 100, 500)
SAMPLES = {1: (1,), 4: (1, 4), 8: (1, 8), 32: (1, 8, 32), 128: (1, 8, 128)}  # n -> k

# Method -> (share that contains the truth, mean width), of values [trials, tasks] in [0, 1].
Result = tuple[float, float]


# -- the run's interval ----------------------------------------------------------------------------
def measure_exact(values: np.ndarray, truth: float, ends: tuple[float, float] = UNIT) -> Result:
    """Of `mean_interval`. Whether it contains the truth needs no root finding: two distribution functions
    at the truth say it, for all trials together."""
    points, where = np.unique(np.append(values.ravel(), ends), return_inverse=True)
    places = where[: values.size].reshape(values.shape)
    counts = np.zeros((len(values), len(points)))
    np.add.at(counts, (np.arange(len(values))[:, None], places), 1)
    last = np.zeros_like(counts[0])
    last[where[-1]] = 1
    first = np.zeros_like(last)
    first[where[-2]] = 1
    too_high = weighted_mean_cdf(points, counts + first, truth) < _MISS / 2
    too_low = weighted_mean_cdf(points, counts + last, truth) > 1 - _MISS / 2
    widths = [np.diff(mean_interval(row, ends))[0] for row in values[:_WIDTHS]]
    return float(1 - (too_high | too_low).mean()), float(np.mean(widths))


# -- others ----------------------------------------------------------------------------------------
def _judge(low: np.ndarray, high: np.ndarray, truth: float) -> Result:
    """A truth that a table would print as the bound (0.05 points off) is contained: where the truth is
    99.9999%, nobody is misled by [100, 100]."""
    low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    near = 5e-4
    return float(((low <= truth + near) & (truth - near <= high)).mean()), float(
        (high - low).mean()
    )


def measure_bootstrap(values: np.ndarray, truth: float) -> Result:
    """Of the percentile bootstrap over tasks."""
    rng, lows, highs = np.random.default_rng(0), [], []
    for row in values[:_RESAMPLED]:
        points, counts = np.unique(row, return_counts=True)
        resampled = rng.multinomial(len(row), counts / len(row), _RESAMPLES) @ points / len(row)
        low, high = np.quantile(resampled, [_MISS / 2, 1 - _MISS / 2])
        lows.append(low)
        highs.append(high)
    return _judge(np.array(lows), np.array(highs), truth)


def measure_student(values: np.ndarray, truth: float) -> Result:
    """Of Student's t."""
    m = values.shape[1]
    half = special.stdtrit(m - 1, 1 - _MISS / 2) * values.std(axis=1, ddof=1) / math.sqrt(m)
    mean = values.mean(axis=1)
    return _judge(mean - half, mean + half, truth)


def measure_wilson(values: np.ndarray, truth: float) -> Result:
    """Of Wilson's score interval with the effective number of tasks, mean (1 - mean) / variance of it."""
    m, mean = values.shape[1], values.mean(axis=1)
    variance = values.var(axis=1, ddof=1) / m
    size = np.divide(
        mean * (1 - mean), variance, out=np.full(len(mean), float(m)), where=variance > 0
    )
    size = np.maximum(size, m)
    z = special.ndtri(1 - _MISS / 2)
    middle = (mean + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * np.sqrt(mean * (1 - mean) / size + (z / (2 * size)) ** 2) / (1 + z**2 / size)
    return _judge(middle - half, middle + half, truth)


def measure_bernstein(values: np.ndarray, truth: float) -> Result:
    """Of the empirical Bernstein bound (Maurer and Pontil 2009)."""
    m, mean = values.shape[1], values.mean(axis=1)
    log = math.log(4 / _MISS)
    half = np.sqrt(2 * values.var(axis=1, ddof=1) * log / m) + 7 * log / (3 * (m - 1))
    return _judge(mean - half, mean + half, truth)


def measure_betting(values: np.ndarray, truth: float) -> Result:
    """Of the hedged capital process (Waudby-Smith and Ramdas 2024, theorem 3, predictable plug-in bets)."""
    m = values.shape[1]
    number = np.arange(1, m + 1)
    means = (0.5 + values.cumsum(axis=1)) / (number + 1)
    variances = (0.25 + ((values - means) ** 2).cumsum(axis=1)) / (number + 1)
    before = np.concatenate([np.full((len(values), 1), 0.25), variances[:, :-1]], axis=1)
    bets = np.sqrt(2 * math.log(2 / _MISS) / (before * m))

    def refused(rows: slice, at: np.ndarray) -> np.ndarray:
        """[rows, at] whether a mean is refused; at [a]."""
        off = values[rows, None, :] - at[:, None]
        up = np.minimum(bets[rows, None, :], 0.5 / at[:, None])
        down = np.minimum(bets[rows, None, :], 0.5 / (1 - at[:, None]))
        gain = np.maximum(np.log1p(up * off).cumsum(-1), np.log1p(-down * off).cumsum(-1))
        return gain.max(axis=-1) >= math.log(2 / _MISS)

    whole = slice(0, len(values))
    coverage = 1 - refused(whole, np.array([min(max(truth, 1e-9), 1 - 1e-9)])).mean()
    grid = (np.arange(500) + 0.5) / 500
    width = (~refused(slice(0, 10), grid)).mean(axis=1).mean()
    return float(coverage), float(width)


METHODS: dict[str, Callable[[np.ndarray, float], Result]] = {
    "taken: Gaffke": measure_exact,
    "percentile bootstrap": measure_bootstrap,
    "Student's t": measure_student,
    "Wilson, effective size": measure_wilson,
    "empirical Bernstein": measure_bernstein,
    "betting": measure_betting,
}


# -- simulations -----------------------------------------------------------------------------------
def settings() -> Iterator[tuple[str, int, int, int]]:
    """(distribution, tasks, n, k) of every simulated evaluation."""
    for name, tasks, (n, ks) in itertools.product(DISTRIBUTIONS, TASKS, SAMPLES.items()):
        for k in ks:
            yield name, tasks, n, k


def evaluations(
    rng: np.random.Generator, name: str, tasks: int, n: int, k: int, trials: int
) -> tuple[np.ndarray, float]:
    """([trials, tasks] estimates of Pass@k, the truth)."""
    mixture = DISTRIBUTIONS[name]
    counts = rng.binomial(n, mixture.draw(rng, (trials, tasks)))
    return np.asarray(pass_at_k(n, counts, k)), mixture.pass_at_k(k)


def pairs() -> Iterator[tuple[str, str, int, int, int]]:
    """(distribution, that of the other method, tasks, n, k) of every simulated difference."""
    names = [
        ("base-like (mean 0.5%)", "middle"), ("base-like (mean 0.5%)", "base-like (mean 0.5%)"),
        ("middle", "middle"), ("rare failures", "near 100"), ("rare failures", "rare failures"),
    ]  # fmt: skip
    for (one, other), tasks, n in itertools.product(names, TASKS, SAMPLES):
        for k in dict.fromkeys((1, n)):
            yield one, other, tasks, n, k


def differences(
    rng: np.random.Generator, pair: tuple[str, str, int, int, int], trials: int
) -> tuple[np.ndarray, float]:
    """([trials, tasks] paired differences, the truth): half of the tasks keep their rate."""
    one, other, tasks, n, k = pair
    rates = DISTRIBUTIONS[one].draw(rng, (trials, tasks))
    changed = DISTRIBUTIONS[other].draw(rng, (trials, tasks))
    changed = np.where(rng.random(rates.shape) < 0.5, rates, changed)
    first, second = (pass_at_k(n, rng.binomial(n, r), k) for r in (rates, changed))
    truth = 0.5 * (DISTRIBUTIONS[other].pass_at_k(k) - DISTRIBUTIONS[one].pass_at_k(k))
    return np.round(np.asarray(second) - np.asarray(first), 12), truth


@dataclasses.dataclass(frozen=True)
class Seeds:
    """Training seeds on common tasks: logit of a rate = centre + task + seed + their interaction."""

    centre: float
    task: float  # standard deviations
    seed: float
    both: float

    def rates(self, rng: np.random.Generator, seeds: int, tasks: int) -> np.ndarray:
        """[seeds, tasks] success rates."""
        logits = self.centre + self.task * rng.standard_normal(tasks)
        logits = logits + self.seed * rng.standard_normal((seeds, 1))
        return special.expit(logits + self.both * rng.standard_normal((seeds, tasks)))

    def truth(self, k: int) -> float:
        """Expectation of 1 - (1 - rate)^k: the logit is normal."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(200)
        spread = math.sqrt(self.task**2 + self.seed**2 + self.both**2)
        misses = special.expit(-(self.centre + spread * nodes)) ** k
        return float(1 - (weights * misses).sum() / weights.sum())


SEEDS = {
    "base-like, seeds alike": Seeds(-6.0, 1.5, 0.0, 0.5),
    "middle, seeds alike": Seeds(0.0, 1.5, 0.0, 0.5),
    "middle, seeds differ": Seeds(0.0, 1.5, 0.5, 0.5),
    "middle, seeds differ much": Seeds(0.5, 1.5, 1.0, 0.5),
    "near 100, seeds differ": Seeds(4.0, 1.5, 0.5, 0.5),
}


def measure_seeds(setting: Seeds, seeds: int, tasks: int, k: int, trials: int) -> dict[str, Result]:
    """Of the interval over seeds and tasks, and of that over tasks alone; 32 samples a task."""
    rng, truth, n = np.random.default_rng(0), setting.truth(k), 32
    bounds: dict[str, list[tuple[float, float]]] = {"seeds and tasks": [], "tasks alone": []}
    for _ in range(trials):
        counts = rng.binomial(n, setting.rates(rng, seeds, tasks))
        values = np.asarray(pass_at_k(n, counts, k))
        bounds["seeds and tasks"].append(seeds_interval(values))
        bounds["tasks alone"].append(mean_interval(values.mean(axis=0)))
    return {name: _judge(*np.array(found).T, truth) for name, found in bounds.items()}


# -- tables ----------------------------------------------------------------------------------------
def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def single_tables(trials: int) -> str:
    """Coverage and width of every method by number of tasks; then of the taken one by distribution."""
    rng = np.random.default_rng(0)
    found: dict[tuple[str, str, int], list[Result]] = {}
    for name, tasks, n, k in settings():
        values, truth = evaluations(rng, name, tasks, n, k, trials)
        for method, measure in METHODS.items():
            found.setdefault((method, name, tasks), []).append(measure(values, truth))
    rows = []
    for method in METHODS:
        row = [method]
        for tasks in TASKS:
            results = [
                r for (m, _, t), rs in found.items() if (m, t) == (method, tasks) for r in rs
            ]
            row.append(
                f"{_percent(min(c for c, _ in results))} / {_percent(np.mean([w for _, w in results]))}"
            )
        rows.append(row)
    taken = next(iter(METHODS))
    by_distribution = [
        [name, *[_percent(min(c for c, _ in found[taken, name, tasks])) for tasks in TASKS]]
        for name in DISTRIBUTIONS
    ]
    header = [f"{tasks} tasks" for tasks in TASKS]
    return "\n\n".join(
        [
            "Pass@k: lowest coverage over distributions, n and k / mean width, percent",
            text_table(["interval", *header], rows),
            f"Pass@k, {taken}: lowest coverage over n and k, percent",
            text_table(["success rates", *header], by_distribution),
        ]
    )


def pair_table(trials: int) -> str:
    """Coverage and width of paired differences."""
    rng = np.random.default_rng(1)
    found: dict[tuple[str, int], list[Result]] = {}
    for pair in pairs():
        values, truth = differences(rng, pair, trials)
        found.setdefault((f"{pair[1]} - {pair[0]}", pair[2]), []).append(
            measure_exact(values, truth, SIGNED)
        )
    names = dict.fromkeys(name for name, _ in found)
    rows = [
        [
            name,
            *[
                f"{_percent(min(c for c, _ in found[name, tasks]))}"
                f" / {_percent(np.mean([w for _, w in found[name, tasks]]))}"
                for tasks in TASKS
            ],
        ]
        for name in names
    ]
    title = "Paired differences: lowest coverage over n and k / mean width, percent"
    header = ["success rates", *[f"{tasks} tasks" for tasks in TASKS]]
    return f"{title}\n\n{text_table(header, rows)}"


def seeds_table(trials: int) -> str:
    """Coverage and width over seeds and tasks."""
    rows = []
    for name, number, tasks, k in itertools.product(SEEDS, (3, 5), (48,), (1, 32)):
        results = measure_seeds(SEEDS[name], number, tasks, k, trials)
        shown = [f"{_percent(c)} / {_percent(w)}" for c, w in results.values()]
        rows.append([name, str(number), str(tasks), str(k), *shown])
    title = "Seeds and tasks: coverage / mean width, percent"
    header = ["success rates", "seeds", "tasks", "k", "seeds and tasks", "tasks alone"]
    return f"{title}\n\n{text_table(header, rows)}"


def main(argv: list[str] | None = None) -> int:
    """Simulates evaluations and prints how often each interval contains the truth."""
    parser = argparse.ArgumentParser(
        prog="python -m leafe_jax.tools.coverage", description=main.__doc__
    )
    parser.add_argument("--trials", type=int, default=2000, help="simulated evaluations a setting")
    console.set_up()
    flags = parser.parse_args(argv)
    console.say(f"{flags.trials} evaluations a setting; {sources.told(sources.code())}")
    console.say(single_tables(flags.trials))
    console.say(pair_table(flags.trials))
    console.say(seeds_table(max(flags.trials // 10, 1)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
