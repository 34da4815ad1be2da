"""The sampler's device programs: pages in, prefill and decode, pages out.

Static shapes throughout; `leafe_jax.sampling.engine` decides what to run. A call gathers the pages of its
rows into contiguous buffers, where attention is cheapest, and writes the new pages back at its end:
copy-on-write comes with it, since a page is read at one place and written at another. Rows that share a
long prefix may form groups, whose prefix is gathered and attended to once.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from leafe_jax.models import decoder
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling import methods


class KVCache(NamedTuple):
    """Keys and values, one array a layer: the pool [pages, kv_heads, page_size, head_dim], or the rows of
    a call [rows, kv_heads, positions, head_dim].

    The time axis lies next to head_dim: on XLA's CPU backend this order made decoding attention
    several times cheaper than the one with heads innermost.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


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


def _write(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes new [B, K, T, H] into cache [B, K, S, H] at time start [B] of each row."""
    return jax.vmap(lambda c, n, s: jax.lax.dynamic_update_slice(c, n, (0, s, 0)))(
        cache, new.astype(cache.dtype), start
    )


def _scores(q: jax.Array, keys: jax.Array, visible: jax.Array) -> jax.Array:
    """q [B, K, G, T, H] against keys [B, K, S, H]: [B, K, G, T, S], -1e30 where not visible."""
    batch, kv_heads, group, time, head_dim = q.shape
    flat = q.reshape(batch, kv_heads, group * time, head_dim)
    scores = jnp.einsum("bkth,bksh->bkts", flat, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, group, time, -1) * head_dim**-0.5
    return jnp.where(visible, scores, -1e30)


def _mix(weights: jax.Array, values: jax.Array) -> jax.Array:
    """weights [B, K, G, T, S] of values [B, K, S, H]: [B, K, G, T, H]."""
    batch, kv_heads, group, time, _ = weights.shape
    flat = weights.reshape(batch, kv_heads, group * time, -1).astype(values.dtype)
    out = jnp.einsum("bkts,bksh->bkth", flat, values)
    return out.reshape(batch, kv_heads, group, time, -1)


def _by_group(x: jax.Array, groups: int) -> jax.Array:
    """[B, K, G, T, X] -> [groups, K, members * G, T, X]: members stand beside the query heads."""
    batch, kv_heads, group, *rest = x.shape
    x = x.reshape(groups, batch // groups, kv_heads, group, *rest).swapaxes(1, 2)
    return x.reshape(groups, kv_heads, -1, *rest)


def _by_row(x: jax.Array, rows: int) -> jax.Array:
    """The inverse of `_by_group`."""
    groups, kv_heads, both, *rest = x.shape
    members = rows // groups
    x = x.reshape(groups, kv_heads, members, both // members, *rest).swapaxes(1, 2)
    return x.reshape(rows, kv_heads, -1, *rest)


def _attend_cached(
    cache: KVCache, common: KVCache, base: jax.Array, start: jax.Array, written: list
) -> decoder.Attend:
    """Attention hook: writes each layer's new keys and values at `start` [B], then attends to the group's
    positions and to the row's up to and including the query's own. The new layers are appended to
    `written`."""

    def attend(layer, q, k, v):  # q [B, T, N, H], k and v [B, T, K, H]
        batch, num_new, num_heads, head_dim = q.shape
        kv_heads = k.shape[2]
        keys = _write(cache.k[layer], k.transpose(0, 2, 1, 3), start - base)
        values = _write(cache.v[layer], v.transpose(0, 2, 1, 3), start - base)
        written.append((keys, values))
        group = num_heads // kv_heads
        q = q.reshape(batch, num_new, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
        position = (start - base)[:, None] + jnp.arange(num_new)  # [B, T], in the row's own buffer
        visible = jnp.arange(keys.shape[2]) <= position[..., None]  # [B, T, S]
        # What lies beyond a row's length is stale; the mask is all that keeps it out.
        own = _scores(q, keys, visible[:, None, None])
        groups, held = common.k[layer].shape[0], common.k[layer].shape[2]
        if held == 0:
            out = _mix(jax.nn.softmax(own, axis=-1), values)
        else:
            seen = jnp.arange(held) < base.reshape(groups, -1)[:, :1]  # [groups, S]
            first = _scores(_by_group(q, groups), common.k[layer], seen[:, None, None, None])
            both = jnp.concatenate((_by_row(first, batch), own), axis=-1)
            weights = jax.nn.softmax(both, axis=-1)
            out = _mix(weights[..., held:], values)
            first = _mix(_by_group(weights[..., :held], groups), common.v[layer])
            out = out + _by_row(first, batch)
        return out.transpose(0, 3, 1, 2, 4).reshape(batch, num_new, num_heads, head_dim)

    return attend


def _of_heads(layer: jax.Array, pages: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pool as [pages * K, page_size, H], and where in it pages [B, P] have their heads: [B, K, P].

    So heads come out before pages in one go; pages first would have to be turned in a second one.
    """
    kv_heads = layer.shape[1]
    index = pages[:, None] * kv_heads + jnp.arange(kv_heads)[:, None]
    return layer.reshape(-1, *layer.shape[2:]), index


def _gather(pool: KVCache, table: jax.Array) -> KVCache:
    """The pages of table [B, P] side by side: [B, K, P * page_size, H] a layer."""

    def rows(layer):
        flat, index = _of_heads(layer, table)
        return flat[index].reshape(*index.shape[:2], -1, layer.shape[-1])

    return jax.tree.map(rows, pool)


def _scatter(pool: KVCache, rows: KVCache, pages: Pages) -> KVCache:
    """Writes the pages from `start` on back into the pool."""
    size = pool.k[0].shape[2]
    width = pages.target.shape[1]
    held = rows.k[0].shape[2] // size
    # Whole pages, the first with what stood before `start` in it: that is the copy-on-write. Past the
    # row's end there is nothing to keep, and the target is nobody's page.
    first = (pages.start - pages.base) // size
    index = jnp.minimum(first[:, None] + jnp.arange(width), held - 1)  # [B, W]

    def back(layer, row):
        row = row.reshape(*row.shape[:2], held, size, -1)  # [B, K, P, page_size, H]
        cut = jnp.take_along_axis(row, index[:, None, :, None, None], axis=2)
        flat, place = _of_heads(layer, pages.target)
        return flat.at[place].set(cut).reshape(layer.shape)

    return jax.tree.map(back, pool, rows)


def _forward(config, params, cache, common, base, tokens, start):
    """Runs tokens [B, T] at positions start.. and returns (hidden [B, T, D], cache)."""
    written: list = []
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    attend = _attend_cached(cache, common, base, start, written)
    hidden = decoder.hidden(config, params, tokens, positions, attend)
    return hidden, KVCache(tuple(k for k, _ in written), tuple(v for _, v in written))


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("pool",))
def prefill(config: ModelConfig, params, pool: KVCache, pages: Pages, tokens):
    """Computes keys and values of tokens [B, T] behind each row's context."""
    cache, common = _gather(pool, pages.table), _gather(pool, pages.shared)
    _, rows = _forward(config, params, cache, common, pages.base, tokens, pages.start)
    return _scatter(pool, rows, pages)


@functools.partial(
    jax.jit,
    static_argnames=("config", "max_new", "stop_ids", "max_len"),
    donate_argnames=("pool",),
)
def turn(
    config: ModelConfig,
    params,
    pool: KVCache,
    pages: Pages,
    tokens,
    num_tokens,
    budget,
    options,
    seeds,
    *,
    max_new: int,
    stop_ids: tuple[int, ...],
    max_len: int,
):
    """One turn for every row: prefill tokens [B, T], then sample until all rows have stopped.

    Args:
      config, params, pool: the model and the pool (donated).
      pages: where each row reads and writes.
      tokens: int32 [B, T] prompt tokens, `num_tokens` [B] of them real (0: the row is idle).
      budget: int32 [B] most tokens to sample, at most max_new.
      options: see methods.make_options.
      seeds: uint32 [B].
      max_new, stop_ids, max_len: static.

    Returns:
      (pool, ids int32 [B, max_new], logprobs float32 [2, B, max_new] under the model and under the
      distribution sampled from, count int32 [B]).
    """
    start = pages.start
    cache, common = _gather(pool, pages.table), _gather(pool, pages.shared)
    rows = jnp.arange(tokens.shape[0])
    stops = jnp.asarray(stop_ids, jnp.int32)
    hidden, cache = _forward(config, params, cache, common, pages.base, tokens, start)
    hidden = hidden[rows, jnp.maximum(num_tokens - 1, 0)]  # [B, D]
    length = start + num_tokens
    active = num_tokens > 0

    def emit(hidden, length, active, options, ids, logprobs, count):
        logits = decoder.head(config, params, hidden)
        new, *pair = methods.sample(logits, options, seeds, length)
        # Idle rows write to their own last column again, which `count` leaves out.
        column = jnp.where(active, count, max_new)
        ids = ids.at[rows, column].set(new, mode="drop")
        logprobs = logprobs.at[:, rows, column].set(jnp.stack(pair), mode="drop")
        count = count + active
        active = active & ~jnp.isin(new, stops) & (count < budget) & (length + 1 < max_len)
        return new, active, methods.note(options, new), ids, logprobs, count

    ids = jnp.zeros((tokens.shape[0], max_new), jnp.int32)
    logprobs = jnp.zeros((2, tokens.shape[0], max_new), jnp.float32)
    count = jnp.zeros_like(length)
    last, active, options, ids, logprobs, count = emit(
        hidden, length, active, options, ids, logprobs, count
    )

    def step(carry):
        cache, last, length, active, options, ids, logprobs, count = carry
        # A stopped row computes along and writes at its own end, where nothing valid lies.
        hidden, cache = _forward(config, params, cache, common, pages.base, last[:, None], length)
        length = length + active
        last, active, options, ids, logprobs, count = emit(
            hidden[:, 0], length, active, options, ids, logprobs, count
        )
        return cache, last, length, active, options, ids, logprobs, count

    carry = (cache, last, length, active, options, ids, logprobs, count)
    cache, *_, ids, logprobs, count = jax.lax.while_loop(lambda c: jnp.any(c[3]), step, carry)
    return _scatter(pool, cache, pages), ids, logprobs, count
