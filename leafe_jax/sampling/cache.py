"""The KV cache as data: pages of the pool or contiguous rows, and the arithmetic of attention on either."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Pages(NamedTuple):
    """Where the rows of a call read and write.

    Attributes:
      shared: int32 [G, S] first pages of the context of each group of B / G consecutive rows; S may be 0.
      base: int32 [B] number of positions in the group's pages, a multiple of the page size.
      table: int32 [B, P] pages of each row's context from position base on, in order.
      start: int32 [B] number of positions already computed, shared ones included.
      target: int32 [B, W] pages to write the positions from start on to, in order. Where nothing is to be
        kept, it is the pool's last page, which nobody reads.
    """

    shared: jax.Array
    base: jax.Array
    table: jax.Array
    start: jax.Array
    target: jax.Array


class KVCache(NamedTuple):
    """Keys and values, one array per layer.

    In the pool, keys are [pages, kv_heads, head_dim, page_size] and values [pages, kv_heads, page_size,
    head_dim]. In the rows of a call, the first axis is rows and page_size is the number of positions.

    With these layouts both products of attention run along the last axis. If keys had the layout of
    values, XLA's CPU backend would transpose a copy of all keys at every step, which takes seven times as
    long as the product.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


def attention_scores(q: jax.Array, keys: jax.Array, visible: jax.Array) -> jax.Array:
    """float32 scores [B, K, G, T, S] of q [B, K, G, T, H] and keys [B, K, H, S]; -1e30 where `visible` is
    False."""
    batch, kv_heads, group, time, head_dim = q.shape
    flat = (q * head_dim**-0.5).reshape(batch, kv_heads, group * time, head_dim)
    scores = jnp.einsum("bkth,bkhs->bkts", flat, keys, preferred_element_type=jnp.float32)
    return jnp.where(visible, scores.reshape(batch, kv_heads, group, time, -1), -1e30)


def mix_values(
    scores: jax.Array, highest: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Values weighted by w = exp(scores - highest), and the sum of the weights; not normalized.

    The caller divides at the end: one division per query and channel, not one per query and key. On CPU
    every pass over the scores costs as much as the products.

    Args:
      scores: [B, K, G, T, S].
      highest: [B, K, G, T, 1].
      values: [B, K, S, H].

    Returns:
      (w @ values float32 [B, K, G, T, H], sum of w [B, K, G, T, 1]).
    """
    batch, kv_heads, group, time, _ = scores.shape
    weights = jnp.exp(scores - highest)
    flat = weights.reshape(batch, kv_heads, group * time, -1).astype(values.dtype)
    out = jnp.einsum("bkts,bksh->bkth", flat, values, preferred_element_type=jnp.float32)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return out.reshape(batch, kv_heads, group, time, -1), total
