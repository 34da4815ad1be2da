"""What is watched: means over an iteration, and the warnings that name a field."""

import numpy as np
import pytest
from test_grpo import episode, group

from leafe_jax.methods import watch
from leafe_jax.methods.base import find


def test_means_over_groups_by_hand():
    groups = [
        group(episode(1.0, 2, invalid=(1,), lengths=[1, 3]), episode(0.0, 2, lengths=[4, 4])),
        group(episode(0.0, 1), episode(0.0, 1)),
    ]
    found = watch.rollout_measurements(groups, num_dropped=2)
    assert found["reward"] == found["success"] == 0.25
    assert found["signal"] == 0.25, "one of four groups, with the two that were dropped"
    assert found["invalid"] == pytest.approx(1 / 6)
    assert found["reply_tokens"] == pytest.approx((1 + 3 + 4 + 4 + 2 + 2) / 6)
    assert found["episode_steps"] == 1.5 and found["dropped_groups"] == 2
    assert "second_success" not in found


def test_means_over_steps():
    steps = [
        {"loss": 1.0, "ratio": 1.0, "ratio_squared": 1.0, "behaviour_gap": 0.01, "loss_x": np.nan},
        {"loss": 3.0, "ratio": 1.2, "ratio_squared": 1.6, "behaviour_gap": 0.5, "loss_x": 2.0},
    ]
    found = watch.training_measurements(steps)
    assert found["loss"] == 2 and found["loss_x"] == 2 and found["optimizer_steps"] == 2
    assert found["ratio"] == pytest.approx(1.1)
    assert found["ratio_std"] == pytest.approx(np.sqrt(1.3 - 1.21))
    assert found["sampler_gap"] == 0.01, "of the first step"
    assert watch.training_measurements([]) == {"optimizer_steps": 0}


FINE = {"entropy": 1.0, "reference_kl": 0.1, "invalid": 0.1, "reply_tokens": 10.0, "signal": 0.5,
        "sampler_gap": 0.01}  # fmt: skip


@pytest.mark.parametrize(
    "kind, change, words",
    [
        ("entropy", {"entropy": 0.1}, "entropy 0.1, 1 in the first iterations"),
        ("kl", {"reference_kl": 0.7}, "KL to the reference 0.7 nats a token"),
        ("invalid", {"invalid": 0.4}, "invalid actions 40%, 10% in the first iterations"),
        ("length", {"reply_tokens": 30.0}, "replies of 30.0 tokens, 10.0 in the first iterations"),
        ("gap", {"sampler_gap": 0.2}, "sampler and trainer differ by 0.2 nats a token"),
    ],
)
def test_signs_of_collapse(kind, change, words):
    baseline: dict[str, float] = {}
    for iteration in range(8):
        baseline = watch.update_baseline(baseline, FINE, iteration)
    assert not watch.signs_of_collapse(FINE, baseline)
    assert watch.signs_of_collapse({**FINE, **change}, baseline) == {kind: words}


def test_groups_without_signal_warn_after_some_iterations():
    baseline: dict[str, float] = {}
    seen = []
    for iteration in range(15):
        measured = {**FINE, "signal": 0.0}
        baseline = watch.update_baseline(baseline, measured, iteration)
        seen.append("signal" in watch.signs_of_collapse(measured, baseline))
    assert not any(seen[:8]) and all(seen[-4:])


@pytest.mark.parametrize("name", ["grpo", "gigpo", "sdpo", "erl"])
def test_every_remedy_names_fields_that_the_method_has(name):
    made = find(name)(find(name).Config())
    assert made.remedies.keys() == watch.REMEDIES.keys()
    for text in made.remedies.values():
        own = [w.strip(",()") for w in text.split()]
        named = [w for w in own if "_" in w and "." not in w]
        assert all(hasattr(made.config, w) for w in named), (name, named)
