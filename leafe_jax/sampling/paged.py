"""Storage that reads and writes pages in place.

On a TPU the kernel for ragged paged attention reads them. Other platforms and tests use plain jnp. See
`leafe_jax.sampling.gathered` for the methods of a storage.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from leafe_jax.models import decoder
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling.cache import Pages, attention_scores, mix_values


def attend_reference(q, layer, table, lengths, *, sm_scale):
    """Attention output [B, T, N, H], computed in plain jnp: the reference for `attend_kernel`.

    Args:
      q: [B, T, N, H] queries for the last T positions of each row.
      layer: [pages, page_size, 2 * K, H], keys at even indices of the third axis and values at odd ones.
      table: int32 [B, P] pages of each row.
      lengths: int32 [B] positions of each row, the new ones included.
      sm_scale: factor on the scores.
    """
    batch, time, num_heads, head_dim = q.shape
    rows = layer[table].reshape(batch, -1, *layer.shape[2:])  # [B, S, 2K, H]
    keys, values = rows[:, :, 0::2].transpose(0, 2, 3, 1), rows[:, :, 1::2].swapaxes(1, 2)
    kv_heads = keys.shape[1]
    q = q.reshape(batch, time, kv_heads, num_heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    position = (lengths - time)[:, None] + jnp.arange(time)
    visible = jnp.arange(values.shape[2]) <= position[..., None]
    scores = attention_scores(q * (sm_scale * head_dim**0.5), keys, visible[:, None, None])
    out, total = mix_values(scores, jnp.max(scores, axis=-1, keepdims=True), values)
    out = (out / total).astype(values.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, num_heads, head_dim)


def attend_kernel(q, layer, table, lengths, *, sm_scale):
    """As `attend_reference`, by JAX's Pallas kernel for TPUs (jax.experimental.pallas.ops.tpu)."""
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    batch, time, num_heads, head_dim = q.shape
    pages, size = table.shape[1], layer.shape[1]
    out = ragged_paged_attention(
        q.reshape(batch * time, num_heads, head_dim),
        layer,
        lengths,
        table,
        # Every row has T queries. Those past a prompt's end are wasted, and no real query sees their keys.
        time * jnp.arange(batch + 1, dtype=jnp.int32),
        jnp.full((1,), batch, jnp.int32),
        sm_scale=sm_scale,
        # Blocks of 256 positions and at most 32 queries. The kernel's default block sizes depend on the
        # device at hand, which is not the target when compiling ahead of time.
        num_kv_pages_per_block=max(1, min(pages, 256 // size)),
        num_queries_per_block=min(32, batch * time),
        vmem_limit_bytes=64 * 2**20,
    )
    return out.reshape(batch, time, num_heads, head_dim)


@dataclasses.dataclass(frozen=True)
class Paged:
    """Storage that reads and writes pages in place; a layer of the pool is [pages, page_size, 2 * K, H].

    Attributes:
      kernel: True attends with the TPU kernel, False with the reference.
      mesh: devices of a tensor-parallel model, or None.
    """

    kernel: bool
    mesh: Mesh | None = None

    spec = P(None, None, "tensor")

    def empty(self, config: ModelConfig, num_pages: int, page_size: int, dtype):
        """A pool of zeros."""
        shape = (num_pages, page_size, 2 * config.num_kv_heads, config.head_dim)
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

    def begin(self, pool, pages: Pages):
        """(the pool, in which each row's first target page is a copy of the page it continues; the rows'
        tables with their target pages)."""
        size = pool[0].shape[1]
        rows = jnp.arange(len(pages.start))
        first = pages.start // size
        columns = first[:, None] + jnp.arange(pages.target.shape[1])
        table = pages.table.at[rows[:, None], columns].set(pages.target, mode="drop")
        source = pages.table[rows, first]
        copied = tuple(layer.at[pages.target[:, 0]].set(layer[source]) for layer in pool)
        return copied, table

    def attend(self, cache, table, start: jax.Array, written: list) -> decoder.Attend:
        """The hook for the decoder's layers: writes new keys and values into the pages, then attends."""
        spare = cache[0].shape[0] - 1

        def attend(layer, q, k, v):  # q [B, T, N, H], k and v [B, T, K, H]
            batch, time, kv_heads, head_dim = k.shape
            pages = cache[layer]
            size = pages.shape[1]
            position = start[:, None] + jnp.arange(time)  # [B, T]
            column = position // size
            page = jnp.take_along_axis(table, jnp.minimum(column, table.shape[1] - 1), axis=1)
            page = jnp.where(column < table.shape[1], page, spare)
            both = jnp.stack((k, v), axis=3).reshape(batch, time, 2 * kv_heads, head_dim)
            pages = pages.at[page, position % size].set(both.astype(pages.dtype))
            written.append(pages)
            return self._attention(q, pages, table, start + time)

        return attend

    def _attention(self, q, pages, table, lengths):
        def call(q, pages, table, lengths):
            how = attend_kernel if self.kernel else attend_reference
            return how(q, pages, table, lengths, sm_scale=q.shape[-1] ** -0.5)

        if self.mesh is None or not self.kernel:
            return call(q, pages, table, lengths)
        heads = P(None, None, "tensor")
        return jax.shard_map(
            call, mesh=self.mesh, in_specs=(heads, heads, P(), P()), out_specs=heads,
            check_vma=False,
        )(q, pages, table, lengths)  # fmt: skip

    def carry(self, written: list):
        return tuple(written)

    def end(self, pool, carry, pages: Pages):
        return carry
