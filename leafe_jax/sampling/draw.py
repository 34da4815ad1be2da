"""From logits to a token: the distribution that the options ask for, and a draw from it.

Order, as in transformers' generate: logit bias, repetition penalty, temperature, top-k, top-p, min-p.
Tokens that tie with the last one kept are kept, whatever the order they stand in.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.types import Sampling

# Rows of one batch: always "temperature"; the others only in an engine that offers them, so that a run
# that uses none of them compiles and computes none of them.
Options = dict[str, jax.Array]
MAX_BIAS = 64  # token ids that one request may bias


def make_options(
    samplings: Sequence[Sampling | None],
    contexts: Sequence[Sequence[int]],
    vocab_size: int,
    full: bool,
) -> Options:
    """Arrays for the device.

    Args:
      samplings: one a row; None for an idle row.
      contexts: all ids of each row's session, for the repetition penalty.
      vocab_size: V.
      full: all options; else temperatures only.

    Returns:
      temperature float32 [B]; if full: top_k int32 [B], top_p and min_p float32 [B]; penalty float32
      [B] and seen bool [B, V]; bias_ids int32 [B, MAX_BIAS] (V where there is none) and bias float32
      [B, MAX_BIAS].
    """
    rows = [s or Sampling(temperature=0.0) for s in samplings]
    options = {"temperature": np.asarray([s.temperature for s in rows], np.float32)}
    if not full:
        return options
    # 0 keeps all tokens, as V does.
    options["top_k"] = np.asarray([s.top_k or vocab_size for s in rows], np.int32)
    options["top_p"] = np.asarray([s.top_p for s in rows], np.float32)
    options["min_p"] = np.asarray([s.min_p for s in rows], np.float32)
    options["penalty"] = np.asarray([s.repetition_penalty for s in rows], np.float32)
    options["seen"] = np.zeros((len(rows), vocab_size), bool)
    options["bias_ids"] = np.full((len(rows), MAX_BIAS), vocab_size, np.int32)
    options["bias"] = np.zeros((len(rows), MAX_BIAS), np.float32)
    for row, (sampling, ids) in enumerate(zip(rows, contexts, strict=True)):
        if sampling.repetition_penalty != 1:
            options["seen"][row, list(ids)] = True
        for column, (token, bias) in enumerate(sampling.logit_bias):
            options["bias_ids"][row, column] = token
            options["bias"][row, column] = bias
    return options


def adjust(logits: jax.Array, options: Options) -> jax.Array:
    """Logits [B, V] of the distribution to sample from; -inf where a token is ruled out."""
    rows = jnp.arange(logits.shape[0])[:, None]
    if "bias" in options:
        logits = logits.at[rows, options["bias_ids"]].add(options["bias"], mode="drop")
    if "penalty" in options:
        penalty = options["penalty"][:, None]
        lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
        logits = jnp.where(options["seen"], lowered, logits)
    temperature = options["temperature"][:, None]
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)
    return _truncate(logits, options) if "top_k" in options else logits


def _truncate(logits: jax.Array, options: Options) -> jax.Array:
    """Top-k, then top-p of what is left, then min-p."""
    vocab = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)  # falling
    last = jnp.clip(options["top_k"], 1, vocab)[:, None] - 1
    kth = jnp.take_along_axis(ordered, last, axis=-1)
    ordered = jnp.where(ordered >= kth, ordered, -jnp.inf)
    share = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(share, axis=-1) - share  # mass of the likelier tokens
    top_p = options["top_p"][:, None]
    # Sums reach 1 early, and shares underflow: a row that keeps everything is not asked.
    kept = ((before < top_p) | (top_p >= 1)) & (ordered > -jnp.inf)
    kept &= share >= options["min_p"][:, None] * share[:, :1]
    kept = kept.at[:, 0].set(True)
    # The smallest logit that any rule kept: every rule keeps a head of the falling order.
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def sample(
    logits: jax.Array, options: Options, seeds: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws one token a row by the Gumbel-max trick.

    Args:
      logits: float32 [B, V].
      options: from `make_options`.
      seeds: uint32 [B]; positions: int32 [B]. The key is fold_in(seed, position).

    Returns:
      ids int32 [B]; float32 [B] log-probabilities under the model; and under the distribution sampled
      from (0 for a greedy row).
    """

    def gumbel(seed, position):
        key = jax.random.fold_in(jax.random.PRNGKey(seed), position)
        return jax.random.gumbel(key, logits.shape[-1:], jnp.float32)

    warm = options["temperature"] > 0
    adjusted = adjust(logits, options)
    # Noise costs more than the rest together; a batch of greedy rows draws none.
    noisy = jax.lax.cond(
        jnp.any(warm),
        lambda: adjusted + jax.vmap(gumbel)(seeds, positions) * warm[:, None],
        lambda: adjusted,
    )
    ids = jnp.argmax(noisy, axis=-1).astype(jnp.int32)

    def of_ids(table):
        chosen = jnp.take_along_axis(table, ids[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(table, axis=-1)

    return ids, of_ids(logits), jnp.where(warm, of_ids(adjusted), 0.0)


def note(options: Options, ids: jax.Array) -> Options:
    """The options after `ids` [B] have been sampled: the penalty has seen them."""
    if "seen" not in options:
        return options
    rows = jnp.arange(ids.shape[0])
    return {**options, "seen": options["seen"].at[rows, ids].set(True)}
