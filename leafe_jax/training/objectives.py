"""What training minimises: a loss for each token, from its log-probability and its columns.

The train step computes log-probabilities and knows no method. An objective turns them into losses:

    sft            supervised fine-tuning; LEAFE's L_cf + beta L_reh is this one with a coefficient for each
                   source (packing.mixing_coefficients)
    grpo           PPO's clipped surrogate with a dual clip and an optional KL term (arXiv 2402.03300)
    distillation   reverse KL to a teacher on the student's own samples (arXiv 2306.13649)

Columns are float32 [R, T] arrays of a packed batch. `mass` is always there: the weight of a token, 0 where
none is trained. The others come from Example.columns and are 0 in padding. Behaviour log-probabilities are
those under the model (Turn.logprobs), not under the distribution sampled from. They are exact importance
ratios only if the two are the same: temperature 1, no truncation, no penalty (Sampling.unchanged).

An objective that asks for it (`Objective.entropy`) finds the entropy of each token's distribution in the
column `entropy`. It has a gradient.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from leafe_jax.errors import UserError
from leafe_jax.types import ADVANTAGE, BEHAVIOUR, ENTROPY, REFERENCE, SAMPLER_WEIGHT, TEACHER

_MOST = 20.0  # |log ratio|; exp(89) overflows float32
_MOST_KL = 10.0  # of one token, as in verl

Columns = Mapping[str, Array]
TokenFunction = Callable[[Columns, Array], Array]  # (columns, logprobs [R, T]) -> [R, T]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss for each token, and what the sum of them is divided by.

    Attributes:
      token_loss: (columns, logprobs) -> losses float32 [R, T], already times the mass. `logprobs` are the
        targets' log-probabilities under the model that is trained, at temperature 1.
      columns: names of the columns that token_loss reads beside `mass`.
      denominator: the batch's sum is divided by this constant of the run. It must not depend on the
        batch: an example's weight would depend on its neighbours.
      measurements: name -> quantity of each token, float32 [R, T]; logged as the mean over the batch,
        weighted by the mass.
      entropy: token_loss or a measurement reads the column `entropy`.
      watched: the source whose tokens are measured; None measures all.

    Raises:
      UserError: the denominator is not above 0.
    """

    token_loss: TokenFunction
    columns: tuple[str, ...] = ()
    denominator: float = 1.0
    measurements: Mapping[str, TokenFunction] = dataclasses.field(default_factory=dict)
    entropy: bool = False
    watched: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.denominator < math.inf:
            raise UserError(
                f"objective: denominator = {self.denominator}: must be finite and above 0"
            )


def sft(denominator: float = 1.0) -> Objective:
    """Negative log-likelihood of the targets.

    Args:
      denominator: see Objective; 1 for `trainer.fit`, whose coefficients make a mean of the sum.
    """
    return Objective(lambda columns, logprobs: columns["mass"] * -logprobs, (), denominator)


def grpo(
    denominator: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    kl_coefficient: float = 0.0,
    entropy_coefficient: float = 0.0,
    sequence_ratios: bool = False,
    truncated_weights: bool = False,
) -> Objective:
    """The clipped surrogate of PPO and GRPO, with exact importance ratios.

    With r = exp(logprob - behaviour_logprob) and the advantage A, the loss of a token is

        mass * (w L + kl_coefficient * k3 - entropy_coefficient * H)
        L = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))

    and, if A < 0, L = min(L, -A dual_clip): a bad token that has become likely pulls no harder than
    that. k3 = exp(d) - d - 1 with d = reference_logprob - logprob is the usual unbiased estimate of the
    KL divergence from the reference (at most 10 a token). As in verl's core_algos.py.

    Args:
      denominator: see Objective. With mass 1 a token it is the number of tokens that a batch usually has;
        with masses that share 1 among the tokens of an episode, the number of its episodes.
      clip_low, clip_high: r counts within [1 - clip_low, 1 + clip_high]; larger values allow larger steps.
      dual_clip: above 1; most of the ratio where the advantage is negative.
      kl_coefficient: weight of the KL term; 0 leaves it out, and reads no reference.
      entropy_coefficient: weight of the entropy H, which larger values keep higher.
      sequence_ratios: r is that of a whole reply, exp(mean of logprob - behaviour_logprob over its
        tokens), the same for each of its tokens (GSPO, arXiv 2507.18071). A reply is a run of tokens with
        mass.
      truncated_weights: w is the column `sampler_weight`; otherwise it is 1. Behaviour is then the
        trainer's own before its first step.

    Raises:
      UserError: a value is out of range.
    """
    _check_range("clip_low", clip_low, 0 <= clip_low < 1, "at least 0 and below 1")
    _check_range("clip_high", clip_high, 0 <= clip_high < math.inf, "at least 0")
    _check_range("dual_clip", dual_clip, 1 < dual_clip < math.inf, "above 1")
    for name, value in (
        ("kl_coefficient", kl_coefficient), ("entropy_coefficient", entropy_coefficient),
    ):  # fmt: skip
        _check_range(name, value, 0 <= value < math.inf, "at least 0")

    def ratios(columns: Columns, logprobs: Array) -> Array:
        gap = -_gap(columns, BEHAVIOUR, logprobs)
        return jnp.exp(_reply_means(columns, gap) if sequence_ratios else gap)

    def both(columns: Columns, logprobs: Array) -> tuple[Array, Array]:
        ratio, advantage = ratios(columns, logprobs), columns[ADVANTAGE]
        return -advantage * ratio, -advantage * jnp.clip(ratio, 1 - clip_low, 1 + clip_high)

    def token_loss(columns: Columns, logprobs: Array) -> Array:
        advantage = columns[ADVANTAGE]
        loss = jnp.maximum(*both(columns, logprobs))
        loss = jnp.where(advantage < 0, jnp.minimum(loss, -advantage * dual_clip), loss)
        if truncated_weights:
            loss = columns[SAMPLER_WEIGHT] * loss
        if kl_coefficient:
            loss = loss + kl_coefficient * _k3(columns, logprobs)
        if entropy_coefficient:
            loss = loss - entropy_coefficient * columns[ENTROPY]
        return columns["mass"] * loss

    def clipped(columns: Columns, logprobs: Array) -> Array:
        free, limited = both(columns, logprobs)
        return (limited > free).astype(jnp.float32)

    measurements: dict[str, TokenFunction] = {
        **_SAMPLER_AND_ENTROPY,
        "clip_fraction": clipped,
        "ratio": ratios,
        "ratio_squared": lambda columns, logprobs: ratios(columns, logprobs) ** 2,
    }
    if kl_coefficient:
        measurements["reference_kl"] = _k3
    names: tuple[str, ...] = (ADVANTAGE, BEHAVIOUR)
    names += ((REFERENCE,) if kl_coefficient else ()) + (SAMPLER_WEIGHT,) * truncated_weights
    return Objective(token_loss, names, denominator, measurements, entropy=True)


def _check_range(name: str, value: float, fits: bool, text: str) -> None:
    if not fits:
        raise UserError(f"grpo.{name} = {value}: must be {text}")


def distillation(denominator: float, ratio_clip: float = 2.0, alpha: float = 1.0) -> Objective:
    """A divergence of the student from a teacher, estimated on tokens that the student sampled.

    With w = min(exp(logprob - behaviour_logprob), ratio_clip) and g = alpha log(student / m), where
    m = alpha student + (1 - alpha) teacher, both without gradient, the loss of a token has the value
    mass * w * g and the gradient mass * w * g * d logprob. That is the gradient of

        alpha KL(student || m) + (1 - alpha) KL(teacher || m)

    unbiased as long as no ratio is clipped: the reverse KL divergence D(student || teacher) for alpha = 1,
    where m is taken as the teacher, and the generalised Jensen-Shannon divergence below it. Distilling on a
    teacher's tokens instead is `sft`.

    Args:
      denominator: see Objective and `grpo`.
      ratio_clip: most of a token's importance ratio; larger values have less bias and more variance.
      alpha: share of the student in the mixture; 1 is the reverse KL divergence.

    Raises:
      UserError: ratio_clip is below 1, or alpha outside (0, 1].
    """
    if not 1 <= ratio_clip < math.inf:
        raise UserError(f"distillation.ratio_clip = {ratio_clip}: must be at least 1")
    if not 0 < alpha <= 1:
        raise UserError(f"distillation.alpha = {alpha}: must be above 0 and at most 1")

    def token_loss(columns: Columns, logprobs: Array) -> Array:
        fixed = jax.lax.stop_gradient(logprobs)
        ratio = jnp.minimum(_ratio(columns, fixed), ratio_clip)
        gap = -_gap(columns, TEACHER, fixed)  # log(student / teacher)
        if alpha < 1:
            gap = -alpha * jnp.logaddexp(math.log(alpha), math.log1p(-alpha) - gap)
        # exp(0) is 1, and its derivative that of logprobs.
        return columns["mass"] * ratio * gap * jnp.exp(logprobs - fixed)

    return Objective(
        token_loss,
        (TEACHER, BEHAVIOUR),
        denominator,
        {
            **_SAMPLER_AND_ENTROPY,
            "teacher_kl": lambda columns, logprobs: -_gap(columns, TEACHER, logprobs),
        },
        entropy=True,
    )


def with_targets(policy: Objective, targets: Mapping[int, float]) -> Objective:
    """An objective of a policy's own tokens, and supervised fine-tuning on those of other sources.

    Args:
      policy: the objective of source 0; what it measures is measured of that source alone.
      targets: source -> weight of its negative log-likelihood.
    """

    def token_loss(columns: Columns, logprobs: Array) -> Array:
        loss = policy.token_loss(columns, logprobs)
        for source, weight in targets.items():
            own = weight * columns["mass"] * -logprobs
            loss = jnp.where(columns["source"] == source, own, loss)
        return loss

    return dataclasses.replace(policy, token_loss=token_loss, watched=0)


def _gap(columns: Columns, name: str, logprobs: Array) -> Array:
    """column - logprobs, bounded; 0 where nothing is trained: padding has no log-probability there."""
    other = jnp.where(columns["mass"] > 0, columns[name], logprobs)
    return jnp.clip(other - logprobs, -_MOST, _MOST)


def _ratio(columns: Columns, logprobs: Array) -> Array:
    """Importance ratio of each token: the model that is trained to the one that sampled it."""
    return jnp.exp(-_gap(columns, BEHAVIOUR, logprobs))


def _reply_means(columns: Columns, values: Array) -> Array:
    """The mean of `values` over the reply that each token belongs to; a reply is a run of tokens with
    mass within a segment."""
    trained, segments = columns["mass"] > 0, columns["segment_ids"]
    after = jnp.pad(trained[:, :-1], ((0, 0), (1, 0)))
    same = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (1, 0)))
    reply = jnp.cumsum(trained & ~(after & same), axis=1)

    def means(trained: Array, reply: Array, values: Array) -> Array:
        def add(x: Array) -> Array:
            return jax.ops.segment_sum(x, reply, num_segments=trained.size + 1)

        total, count = add(jnp.where(trained, values, 0.0)), add(trained.astype(jnp.float32))
        return (total / jnp.maximum(count, 1.0))[reply]

    return jax.vmap(means)(trained, reply, values)


def _k3(columns: Columns, logprobs: Array) -> Array:
    """k3 estimate of KL(model || reference); http://joschu.net/blog/kl-approx.html"""
    gap = _gap(columns, REFERENCE, logprobs)
    return jnp.minimum(jnp.exp(gap) - gap - 1, _MOST_KL)


# What an objective of sampled tokens measures: how far the model is from the one that sampled, and entropy.
_SAMPLER_AND_ENTROPY: Mapping[str, TokenFunction] = {
    "behaviour_kl": lambda columns, logprobs: _gap(columns, BEHAVIOUR, logprobs),
    "behaviour_gap": lambda columns, logprobs: jnp.abs(_gap(columns, BEHAVIOUR, logprobs)),
    "entropy": lambda columns, logprobs: columns[ENTROPY],
}
