"""The optimizer: clipping, AdamW, schedules."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from leafe_jax.training.settings import TrainConfig


def make_optimizer(
    train: TrainConfig, num_steps: int, average: float = 0.0
) -> optax.GradientTransformation:
    """Gradient clipping and AdamW with a warm-up; norms and biases have no weight decay.

    Args:
      train: learning_rate, schedule, warmup_steps, weight_decay, b1, b2, eps and clip_norm of it.
      num_steps: optimizer steps of the run, for the decaying schedules.
      average: share of the new weights in a running average of all, which the state keeps; 0 keeps none.
    """
    warmup = min(train.warmup_steps, max(num_steps - 1, 0))
    rest = max(num_steps - warmup, 1)
    if train.schedule == "constant":
        tail = optax.constant_schedule(train.learning_rate)
    elif train.schedule == "linear":
        tail = optax.linear_schedule(train.learning_rate, 0.0, rest)
    else:
        tail = optax.cosine_decay_schedule(train.learning_rate, rest)
    # Starts at one warm-up step's share, not at 0: a first step without an update would be wasted.
    head = optax.linear_schedule(train.learning_rate / (warmup + 1), train.learning_rate, warmup)
    schedule = optax.join_schedules([head, tail], [warmup]) if warmup else tail
    made = optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.chain(
            optax.scale_by_adam(b1=train.b1, b2=train.b2, eps=train.eps),
            _decay_matrices(train.weight_decay),
            optax.scale_by_learning_rate(schedule),
        ),
    )
    return optax.chain(made, _averaged(average)) if average else made


class Average(NamedTuple):
    """The running average of the weights, a tree like theirs."""

    average: Any


def _averaged(rate: float) -> optax.GradientTransformation:
    """Keeps average += rate * (new weights - average), beginning with the first weights."""

    def update(updates: Any, state: Average, params: Any) -> tuple[Any, Average]:
        kept = jax.tree.map(lambda a, p, u: a + rate * (p + u - a), state.average, params, updates)
        return updates, Average(kept)

    return optax.GradientTransformation(
        lambda params: Average(jax.tree.map(jnp.copy, params)), update
    )


def _decay_matrices(rate: float) -> optax.GradientTransformation:
    """Decoupled weight decay of matrices, the embedding included, as in transformers' Trainer; scales of
    norms and biases are vectors.

    It is optax.adamw's with a mask, but stateless: a state of masks would make checkpoints unreadable
    that were saved before there was one.
    """

    def decay(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, p: u + rate * p if p.ndim >= 2 else u, updates, params)

    return optax.stateless(decay)
