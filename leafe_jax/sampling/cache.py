"""The KV cache: pages in the pool, contiguous rows, and attention over either."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Pages(NamedTuple):
    """Where the rows of a call read and write.

    Attributes:
      shared: int32 [G, S] pages that begin the context of a group of B / G consecutive rows; S may be 0.
      base: int32 [B] positions that the group's pages hold: whole pages, so table begins there.
      table: int32 [B, P] pages of the rest of each row's context, in order.
      start: int32 [B] positions that are computed already, the shared ones included.
      target: int32 [B, W] pages that take the positions from start on, page by page; the pool's last
        page, which nobody reads, where nothing is to be kept.
    """

    shared: jax.Array
    base: jax.Array
    table: jax.Array
    start: jax.Array
    target: jax.Array


class KVCache(NamedTuple):
    """Keys and values, one array a layer. The pool: keys [pages, kv_heads, head_dim, page_size], values
    [pages, kv_heads, page_size, head_dim]; the rows of a call have `rows` in place of pages and
    `positions` in place of page_size.

    Both products of attention then run along the last axis. With keys like values XLA's CPU backend
    copies all keys at every step to turn them: seven times the time of the product.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


def attention_scores(q: jax.Array, keys: jax.Array, visible: jax.Array) -> jax.Array:
    """q [B, K, G, T, H] against keys [B, K, H, S]: [B, K, G, T, S], -1e30 where not visible."""
    batch, kv_heads, group, time, head_dim = q.shape
    flat = (q * head_dim**-0.5).reshape(batch, kv_heads, group * time, head_dim)
    scores = jnp.einsum("bkth,bkhs->bkts", flat, keys, preferred_element_type=jnp.float32)
    return jnp.where(visible, scores.reshape(batch, kv_heads, group, time, -1), -1e30)


def mix_values(
    scores: jax.Array, highest: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """exp(scores - highest) [B, K, G, T, S] of values [B, K, S, H], not normalised, and their sum.

    The division is left for the end, where it is one per query and not one per key: on CPU every pass
    over the scores costs as much as the products.
    """
    batch, kv_heads, group, time, _ = scores.shape
    weights = jnp.exp(scores - highest)
    flat = weights.reshape(batch, kv_heads, group * time, -1).astype(values.dtype)
    out = jnp.einsum("bkts,bksh->bkth", flat, values, preferred_element_type=jnp.float32)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return out.reshape(batch, kv_heads, group, time, -1), total
