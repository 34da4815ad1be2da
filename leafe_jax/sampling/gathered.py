"""Storage that gathers the pages of a call's rows into contiguous buffers.

XLA's attention is cheapest on contiguous buffers. `Gathered` copies the pages at the start of a program and
writes new pages back at the end. This makes every write copy-on-write, because a page is read from one
place and written to another. Rows that share a long prefix may form groups: the prefix is then gathered and
attended to once per group.

A storage (`Gathered`, or `leafe_jax.sampling.paged.Paged`, which reads pages in place) offers:

empty   a pool
begin   (carry, fixed) at the start of a program
attend  the hook that the decoder's layers call
carry   what the hook wrote, as input of the next `attend`
end     the pool at the end of a program
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from leafe_jax.models import decoder
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling.cache import KVCache, Pages, attention_scores, mix_values


def _write(cache: jax.Array, new: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    """`cache` with `new` written at position start [B] of each row. `axis` is the axis of positions."""

    def row(cache, new, start):
        return jax.lax.dynamic_update_slice_in_dim(cache, new, start, axis - 1)

    return jax.vmap(row)(cache, new.astype(cache.dtype), start)


def _by_group(x: jax.Array, groups: int) -> jax.Array:
    """[B, K, G, T, X] -> [groups, K, members * G, T, X]: a group's members join the query-head axis."""
    batch, kv_heads, group, *rest = x.shape
    x = x.reshape(groups, batch // groups, kv_heads, group, *rest).swapaxes(1, 2)
    return x.reshape(groups, kv_heads, -1, *rest)


def _by_row(x: jax.Array, rows: int) -> jax.Array:
    """The inverse of `_by_group`."""
    groups, kv_heads, both, *rest = x.shape
    members = rows // groups
    x = x.reshape(groups, kv_heads, members, both // members, *rest).swapaxes(1, 2)
    return x.reshape(rows, kv_heads, -1, *rest)


def _of_heads(layer: jax.Array, pages: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A layer's values as [pages * K, page_size, H], and the index [B, K, P] of pages [B, P] in it.

    Indexing with it puts heads before pages directly. Indexing by page would need a transpose afterwards.
    """
    kv_heads = layer.shape[1]
    index = pages[:, None] * kv_heads + jnp.arange(kv_heads)[:, None]
    return layer.reshape(-1, *layer.shape[2:]), index


def _of_dims(layer: jax.Array, pages: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`_of_heads` for keys: a layer as [pages * K * H, page_size], and the index [B, K, H, P]."""
    _, kv_heads, head_dim, size = layer.shape
    index = pages[:, None, None] * kv_heads + jnp.arange(kv_heads)[:, None, None]
    index = index * head_dim + jnp.arange(head_dim)[:, None]
    return layer.reshape(-1, size), index


@dataclasses.dataclass(frozen=True)
class Gathered:
    """Storage whose programs work on contiguous rows, gathered from the pool.

    Attributes:
      mesh: devices of a tensor-parallel model, or None.
    """

    mesh: Mesh | None = None

    spec = P(None, "tensor")  # sharding of a layer of the pool, by heads

    def empty(self, config: ModelConfig, num_pages: int, page_size: int, dtype) -> KVCache:
        """A pool of zeros."""
        layers, shape = range(config.num_layers), (num_pages, config.num_kv_heads)
        return KVCache(
            tuple(jnp.zeros((*shape, config.head_dim, page_size), dtype) for _ in layers),
            tuple(jnp.zeros((*shape, page_size, config.head_dim), dtype) for _ in layers),
        )

    def begin(self, pool: KVCache, pages: Pages) -> tuple[KVCache, Any]:
        """(carry: the rows; fixed: the groups' shared rows and their length, which are only read)."""
        own, common = self._gather(pool, pages.table), self._gather(pool, pages.shared)
        return own, (common, pages.base)

    def _gather(self, pool: KVCache, table: jax.Array) -> KVCache:
        """Rows of P * page_size positions, gathered from the pages of table [B, P]."""
        rows = table.shape[0]

        def keys(layer):
            _, kv_heads, head_dim, _ = layer.shape
            if self.mesh is None:
                flat, index = _of_dims(layer, table)
                taken = flat[index]
            else:  # heads are sharded, so they must stay an axis of their own
                taken = layer[table].transpose(0, 2, 3, 1, 4)
            return taken.reshape(rows, kv_heads, head_dim, -1)

        def values(layer):
            _, kv_heads, _, head_dim = layer.shape
            if self.mesh is None:
                flat, index = _of_heads(layer, table)
                taken = flat[index]
            else:
                taken = layer[table].swapaxes(1, 2)
            return taken.reshape(rows, kv_heads, -1, head_dim)

        return KVCache(tuple(map(keys, pool.k)), tuple(map(values, pool.v)))

    def attend(self, cache: KVCache, fixed, start: jax.Array, written: list) -> decoder.Attend:
        """The hook for the decoder's layers.

        It writes a layer's new keys and values at positions `start` [B] and appends the result to
        `written`. Each query attends to the group's positions, and to the row's up to and including its
        own.
        """
        common, base = fixed

        def attend(layer, q, k, v):  # q [B, T, N, H], k and v [B, T, K, H]
            batch, num_new, num_heads, head_dim = q.shape
            kv_heads = k.shape[2]
            keys = _write(cache.k[layer], k.transpose(0, 2, 3, 1), start - base, 3)
            values = _write(cache.v[layer], v.transpose(0, 2, 1, 3), start - base, 2)
            written.append((keys, values))
            group = num_heads // kv_heads
            q = q.reshape(batch, num_new, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
            position = (start - base)[:, None] + jnp.arange(num_new)  # [B, T], in the row's buffer
            # Only this mask keeps queries from the stale values beyond a row's length.
            visible = jnp.arange(values.shape[2]) <= position[..., None]  # [B, T, S]
            own = attention_scores(q, keys, visible[:, None, None])
            highest = jnp.max(own, axis=-1, keepdims=True)
            groups, held = common.v[layer].shape[0], common.v[layer].shape[2]
            if held == 0:
                out, total = mix_values(own, highest, values)
            else:
                seen = jnp.arange(held) < base.reshape(groups, -1)[:, :1]  # [groups, S]
                first = attention_scores(
                    _by_group(q, groups), common.k[layer], seen[:, None, None, None]
                )
                of_first = _by_row(jnp.max(first, axis=-1, keepdims=True), batch)
                highest = jnp.maximum(highest, of_first)
                out, total = mix_values(own, highest, values)
                parts = mix_values(first, _by_group(highest, groups), common.v[layer])
                out, total = out + _by_row(parts[0], batch), total + _by_row(parts[1], batch)
            out = (out / total).astype(values.dtype)
            return out.transpose(0, 3, 1, 2, 4).reshape(batch, num_new, num_heads, head_dim)

        return attend

    def carry(self, written: list) -> KVCache:
        """What the layers wrote, as input of the next `attend`."""
        return KVCache(tuple(k for k, _ in written), tuple(v for _, v in written))

    def end(self, pool: KVCache, rows: KVCache, pages: Pages) -> KVCache:
        """The pool, with the rows' pages from `start` on written back."""
        size = pool.v[0].shape[2]
        width = pages.target.shape[1]
        held = rows.v[0].shape[2] // size
        # Whole pages are written. The first also holds the positions before `start`, copied from the page
        # it was read from: this is the copy-on-write. Past the row's end the target is the spare page.
        first = (pages.start - pages.base) // size
        index = jnp.minimum(first[:, None] + jnp.arange(width), held - 1)  # [B, W]

        def keys(layer, row):
            row = row.reshape(*row.shape[:3], held, size)  # [B, K, H, P, page_size]
            cut = jnp.take_along_axis(row, index[:, None, None, :, None], axis=3)
            if self.mesh is not None:
                return layer.at[pages.target].set(cut.transpose(0, 3, 1, 2, 4))
            flat, place = _of_dims(layer, pages.target)
            return flat.at[place].set(cut).reshape(layer.shape)

        def values(layer, row):
            row = row.reshape(*row.shape[:2], held, size, -1)  # [B, K, P, page_size, H]
            cut = jnp.take_along_axis(row, index[:, None, :, None, None], axis=2)
            if self.mesh is not None:
                return layer.at[pages.target].set(cut.swapaxes(1, 2))
            flat, place = _of_heads(layer, pages.target)
            return flat.at[place].set(cut).reshape(layer.shape)

        return KVCache(
            tuple(map(keys, pool.k, rows.k)),
            tuple(map(values, pool.v, rows.v)),
        )
