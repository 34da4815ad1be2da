"""Verdicts on claims, by hand: the side that an interval lies on, and what is said of it."""

import numpy as np
import pytest

from leafe_jax.paper.claims import FAILS, HOLDS, UNDECIDED, Claim, judge, outcome
from leafe_jax.run.intervals import SIGNED, seeds_interval

CLAIM = Claim("A beats B", "a", "b", 128)


@pytest.mark.parametrize(
    ("low", "high", "within", "wanted"),
    [
        (0.01, 0.2, 0, HOLDS), (-0.2, -0.01, 0, FAILS), (-0.1, 0.1, 0, UNDECIDED), (0.0, 0.1, 0, UNDECIDED),
        (-0.1, 0.0, 0, UNDECIDED),
        # "hardly raises": below 5 points.
        (-0.2, 0.04, 0.05, HOLDS), (0.06, 0.2, 0.05, FAILS), (0.01, 0.1, 0.05, UNDECIDED),
        (0.05, 0.1, 0.05, FAILS),
    ],
)  # fmt: skip
def test_the_side_of_the_interval_decides(low, high, within, wanted):
    assert outcome(low, high, within) == wanted


def test_a_verdict_has_figure_interval_and_place():
    values = np.array([[1.0] * 30 + [0.0] * 10, [1.0] * 30 + [0.0] * 10])
    verdict = judge(CLAIM, lambda row, minus, k: (values, 32, ("household", "code")))
    low, high = seeds_interval(values, SIGNED)
    assert (verdict.outcome, verdict.low, verdict.high) == (HOLDS, low, high)
    assert verdict.sentence == (
        f"A beats B: holds here; a - b at Pass@32 is +75.0 points [+{100 * low:.1f}, +{100 * high:.1f}]"
        " over household, code."
    )
    worse = judge(CLAIM, lambda *_: (-values, 32, ("code",)))
    assert "A beats B: does not hold here; a - b at Pass@32 is -75.0 points [-" in worse.sentence


def test_what_was_not_run_is_said():
    verdict = judge(CLAIM, lambda *_: None)
    assert verdict.outcome == ""
    assert verdict.sentence == "A beats B: not measured, a or b has not been run."
