"""What is watched while a method trains on its own rollouts, and the signs that it collapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from leafe_jax.methods.groups import Group

_FIRST = 5  # iterations that the later ones are compared with
# What a warning compares, by kind.
_LOW_ENTROPY = 0.2  # of the first iterations'
_HIGH_KL = 0.5  # nats a token
_MORE_INVALID = 0.2  # above the first iterations' share
_LONGER = 2.0  # times the first iterations' reply length
_LITTLE_SIGNAL = 0.1  # of the groups
_KEPT = 0.8  # of the mean over the last iterations, when one more is added
_GAP = 0.1  # nats a token between sampler and trainer

# Kind of warning -> the fields that help; a method may name others.
REMEDIES = {
    "entropy": "raise entropy_coefficient or clip_high, or lower train.learning_rate",
    "kl": "raise kl_coefficient or lower train.learning_rate",
    "invalid": "raise invalid_penalty, or lower train.learning_rate",
    "length": "set loss_mean = 'constant', or lower sampler.max_action_tokens",
    "signal": "raise group_size, set drop_flat_groups = True, or start from a better model (start)",
    "gap": "set sampler_weight_cap = 2.0, or train.compute_dtype and model.dtype = 'float32'",
}


def rollout_measurements(groups: Sequence[Group], num_dropped: int) -> dict[str, float]:
    """Means over an iteration's groups: reward, success, signal, invalid actions, lengths.

    `signal` is the share of groups whose episodes differ in their return, dropped ones counted as flat.
    """
    episodes = [e for g in groups for e in g.episodes]
    turns = [t for e in episodes for t in e.turns]
    lengths = np.array([len(t.action_ids) for t in turns] or [0])
    signal = sum(len({e.return_ for e in g.episodes}) > 1 for g in groups)
    again = [e.again.success for e in episodes if e.again is not None]
    return {
        **({"second_success": float(np.mean(again))} if again else {}),
        "reward": float(np.mean([e.return_ for e in episodes])),
        "success": float(np.mean([e.success for e in episodes])),
        "signal": signal / (len(groups) + num_dropped),
        "dropped_groups": float(num_dropped),
        "invalid": float(np.mean([float(not t.valid) for t in turns] or [0.0])),
        "reply_tokens": float(lengths.mean()),
        "episode_steps": float(np.mean([len(e.turns) for e in episodes])),
        "out_of_context": float(np.mean([e.stop == "context" for e in episodes])),
    }


def training_measurements(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over an iteration's optimizer steps; `sampler_gap` and `sampler_kl` are of the first one.

    Before that, trainer and sampler have the same weights.

    Steps that were skipped, or have no loss of a source, leave the means they would spoil alone.
    """
    found: dict[str, float] = {"optimizer_steps": float(len(steps))}
    if not steps:
        return found
    for name in steps[0]:
        values = [step[name] for step in steps if np.isfinite(step[name])]
        if values:
            found[name] = float(np.mean(values))
    if "ratio_squared" in found:
        variance = found.pop("ratio_squared") - found["ratio"] ** 2
        found["ratio_std"] = float(np.sqrt(max(variance, 0.0)))
    for name, source in (("sampler_gap", "behaviour_gap"), ("sampler_kl", "behaviour_kl")):
        if source in steps[0]:
            found[name] = float(steps[0][source])
    return found


def update_baseline(
    baseline: Mapping[str, float], measured: Mapping[str, float], iteration: int
) -> dict[str, float]:
    """Means over the first iterations of what warnings compare; and `signal`, a mean over the last ones.

    Args:
      baseline: over the iterations before.
      measured: of this one.
      iteration: its number, from 0.
    """
    recent = _KEPT * baseline.get("signal", 1.0) + (1 - _KEPT) * measured["signal"]
    if iteration >= _FIRST:
        return {**baseline, "signal": recent}
    return {
        "signal": recent,
        **{
            name: baseline.get(name, 0.0)
            + (measured[name] - baseline.get(name, 0.0)) / (iteration + 1)
            for name in ("entropy", "invalid", "reply_tokens")
            if name in measured
        },
    }


def signs_of_collapse(
    measured: Mapping[str, float], baseline: Mapping[str, float]
) -> dict[str, str]:
    """Kind of warning -> what is the matter, in words.

    Args:
      measured: of an iteration.
      baseline: of the first ones, from `update_baseline`.
    """
    found = {}

    def compare(kind: str, name: str, bad: bool, words: str) -> None:
        if name in measured and bad:
            found[kind] = words

    now, first = dict(measured), dict(baseline)
    entropy, length = first.get("entropy", 0.0), first.get("reply_tokens", 0.0)
    compare(
        "entropy", "entropy", now.get("entropy", 0.0) < _LOW_ENTROPY * entropy,
        f"entropy {now.get('entropy', 0.0):.3g}, {entropy:.3g} in the first iterations",
    )  # fmt: skip
    compare(
        "kl", "reference_kl", now.get("reference_kl", 0.0) > _HIGH_KL,
        f"KL to the reference {now.get('reference_kl', 0.0):.3g} nats a token",
    )  # fmt: skip
    compare(
        "invalid", "invalid", now.get("invalid", 0.0) > first.get("invalid", 1.0) + _MORE_INVALID,
        f"invalid actions {now.get('invalid', 0.0):.0%}, {first.get('invalid', 0.0):.0%} in the first"
        " iterations",
    )  # fmt: skip
    compare(
        "length", "reply_tokens", 0 < _LONGER * length < now.get("reply_tokens", 0.0),
        f"replies of {now.get('reply_tokens', 0.0):.1f} tokens, {length:.1f} in the first iterations",
    )  # fmt: skip
    compare(
        "signal", "signal", first.get("signal", 1.0) < _LITTLE_SIGNAL,
        f"{first.get('signal', 1.0):.0%} of the last groups have episodes of different return",
    )  # fmt: skip
    compare(
        "gap", "sampler_gap", now.get("sampler_gap", 0.0) > _GAP,
        f"sampler and trainer differ by {now.get('sampler_gap', 0.0):.3g} nats a token",
    )  # fmt: skip
    return found
