"""Draws tokens from logits, with the sampling options of transformers' generate.

Options apply in this order: logit bias, repetition penalty, temperature, top-k, top-p, min-p. All tokens
that tie with the last one kept are kept, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.types import Sampling

# Options of the rows of a batch. "temperature" is always present. The others are present only if the engine
# supports them, so that a run without them neither compiles nor computes them.
Options = dict[str, jax.Array]
MAX_BIAS = 64  # token ids that one request may bias


def make_options(
    samplings: Sequence[Sampling | None],
    contexts: Sequence[Sequence[int]],
    vocab_size: int,
    full: bool,
) -> Options:
    """Sampling options as arrays.

    Args:
      samplings: one per row; None for an idle row.
      contexts: all ids of each row's session, for the repetition penalty.
      vocab_size: V.
      full: True for all options, False for temperatures only.

    Returns:
      temperature float32 [B]. If full, also: top_k int32 [B]; top_p and min_p float32 [B]; penalty float32
      [B]; seen bool [B, V]; bias_ids int32 [B, MAX_BIAS], V where unused; bias float32 [B, MAX_BIAS].
    """
    rows = [s or Sampling(temperature=0.0) for s in samplings]
    options = {"temperature": np.asarray([s.temperature for s in rows], np.float32)}
    if not full:
        return options
    # top_k = 0 keeps all tokens, like V.
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
    """Logits [B, V] of the distribution to sample from; -inf for tokens that are excluded."""
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
    """Logits after top-k, then top-p of the rest, then min-p; -inf for tokens that are excluded."""
    vocab = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)  # descending
    last = jnp.clip(options["top_k"], 1, vocab)[:, None] - 1
    kth = jnp.take_along_axis(ordered, last, axis=-1)
    ordered = jnp.where(ordered >= kth, ordered, -jnp.inf)
    share = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(share, axis=-1) - share  # mass of the likelier tokens
    top_p = options["top_p"][:, None]
    # With top_p >= 1 the test is skipped: rounded sums can reach 1 before the last token.
    kept = ((before < top_p) | (top_p >= 1)) & (ordered > -jnp.inf)
    kept &= share >= options["min_p"][:, None] * share[:, :1]
    kept = kept.at[:, 0].set(True)
    # Every rule keeps a prefix of the descending order, so the smallest kept logit is a threshold.
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def sample(
    logits: jax.Array, options: Options, seeds: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One token per row, drawn by the Gumbel-max trick.

    Args:
      logits: float32 [B, V].
      options: from `make_options`.
      seeds: uint32 [B].
      positions: int32 [B]. The key of a row is fold_in(seed, position).

    Returns:
      (ids int32 [B], log-probabilities under the model float32 [B], log-probabilities under the
      distribution sampled from float32 [B], 0 for a greedy row).
    """

    def gumbel(seed, position):
        key = jax.random.fold_in(jax.random.PRNGKey(seed), position)
        return jax.random.gumbel(key, logits.shape[-1:], jnp.float32)

    warm = options["temperature"] > 0
    adjusted = adjust(logits, options)
    # Noise costs more than everything else here together, so a batch of greedy rows draws none.
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
    """The options after `ids` [B] have been sampled: the repetition penalty now covers them."""
    if "seen" not in options:
        return options
    rows = jnp.arange(ids.shape[0])
    return {**options, "seen": options["seen"].at[rows, ids].set(True)}
