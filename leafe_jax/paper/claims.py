"""Claims of the paper, and what runs say of each: it holds, it does not hold, or it is undecided."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from leafe_jax.run.intervals import SIGNED, seeds_interval
from leafe_jax.run.report.table import points

HOLDS, FAILS, UNDECIDED = "holds here", "does not hold here", "undecided"


@dataclasses.dataclass(frozen=True)
class Claim:
    """That a difference of two rows of a table is positive, or that there is hardly one.

    Attributes:
      text: the claim in words.
      row, minus: the two rows, methods or searches.
      k: of Pass@k; 0 in tables of searches. If there are fewer samples, all of them.
      within: 0: the claim is that the difference is above 0. Else: that it is below this share.
    """

    text: str
    row: str
    minus: str
    k: int = 0
    within: float = 0.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim.

    Attributes:
      claim: the claim.
      outcome: HOLDS, FAILS, UNDECIDED, or "" if a row is missing.
      value, low, high: the difference and its 95% interval, as shares.
      k: the k that it was judged at.
      where: the environments that are in it.
    """

    claim: Claim
    outcome: str
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    k: int = 0
    where: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """One sentence with figure and interval."""
        c = self.claim
        if not self.outcome:
            return f"{c.text}: not measured, {c.row} or {c.minus} has not been run."
        at = f" at Pass@{self.k}" if self.k else ""
        figure = f"{points(self.value)} points [{points(self.low)}, {points(self.high)}]"
        return (
            f"{c.text}: {self.outcome}; {c.row} - {c.minus}{at} is {figure} over"
            f" {', '.join(self.where)}."
        )


def outcome(low: float, high: float, within: float) -> str:
    """What an interval of a difference says of a claim.

    Args:
      low, high: the 95% interval.
      within: see Claim.
    """
    if within:
        return HOLDS if high < within else FAILS if low >= within else UNDECIDED
    return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED


def judge(
    claim: Claim,
    differences: Callable[[str, str, int], tuple[np.ndarray, int, tuple[str, ...]] | None],
) -> Verdict:
    """The verdict on a claim.

    Args:
      claim: the claim.
      differences: (row, minus, k) -> ([seeds, tasks] differences, the k of them, environments), or None
        if a row is missing.
    """
    found = differences(claim.row, claim.minus, claim.k)
    if found is None:
        return Verdict(claim, "")
    values, k, where = found
    low, high = seeds_interval(values, SIGNED)
    return Verdict(
        claim, outcome(low, high, claim.within), float(values.mean()), low, high, k, where
    )
