"""Causal attention within the segments of packed rows: one function, three backends.

jnp      the reference: any platform, any dtype; materializes the causal half of the scores
splash   JAX's Pallas kernel for TPUs; memory is linear in the sequence length
cudnn    cuDNN's fused attention: GPUs of compute capability 8.0 or higher, 16-bit dtypes
"""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import Attend, ModelConfig

BACKENDS = ("jnp", "splash", "cudnn")
_LANES = 128  # splash needs a sequence length that is a multiple of this
_log = logging.getLogger(__name__)


def choose_backend(requested: str, config: ModelConfig, dtype, mesh: Mesh) -> str:
    """The attention backend for a model on a mesh. Logs the choice and its reason once.

    Args:
      requested: "auto" or one of BACKENDS.
      config, dtype: the model and its compute dtype.
      mesh: devices, with axes data, fsdp and tensor.

    Raises:
      UserError: the requested backend does not exist, or does not support this model on this mesh.
    """
    if requested not in ("auto", *BACKENDS):
        raise UserError(
            f"train.attention = {requested!r}: must be one of auto, {', '.join(BACKENDS)}"
        )
    device = mesh.devices.flat[0]
    refusals = {
        "jnp": None,
        "splash": _splash_refusal(config, device.platform, mesh),
        "cudnn": _cudnn_refusal(config, np.dtype(dtype).name, device),
    }
    if requested == "auto":
        preferred = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform, "jnp")
        chosen = preferred if refusals[preferred] is None else "jnp"
        why = refusals[preferred] or f"default for platform {device.platform!r}"
    else:
        chosen, why = requested, "set by train.attention"
        if refusals[requested] is not None:
            raise UserError(f"train.attention = {requested!r}: {refusals[requested]}")
    _announce(chosen, why)
    return chosen


@functools.cache
def _announce(chosen: str, why: str) -> None:
    _log.info("attention backend: %s (%s)", chosen, why)


def _splash_refusal(config: ModelConfig, platform: str, mesh: Mesh) -> str | None:
    if platform != "tpu":
        return f"splash runs on TPUs, not on {platform!r}"
    tensor = mesh.shape["tensor"]
    if config.num_kv_heads % tensor:
        return (
            f"splash needs train.mesh.tensor = {tensor} to divide the model's"
            f" {config.num_kv_heads} key-value heads"
        )
    return None


def _cudnn_refusal(config: ModelConfig, dtype: str, device) -> str | None:
    if device.platform != "gpu":
        return f"cudnn runs on GPUs, not on {device.platform!r}"
    capability = str(getattr(device, "compute_capability", "0.0"))
    if tuple(int(part) for part in capability.split(".")) < (8, 0):
        return f"cudnn needs compute capability 8.0, this GPU has {capability}"
    if dtype not in ("bfloat16", "float16"):
        return f"cudnn needs a 16-bit compute dtype, not {dtype}"
    if config.head_dim % 8 or config.head_dim > 128:
        return (
            f"cudnn needs a head_dim that is a multiple of 8 and at most 128, not {config.head_dim}"
        )
    return None


def attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Grouped-query attention, the reference.

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H].
      mask: bool [B, T, S], True where a query sees a key.

    Returns:
      [B, T, N, H]. Queries that see no key get finite, meaningless values.
    """
    batch, time, heads, dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    q = q.reshape(batch, time, kv_heads, group, dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, kv_heads, group * time, dim)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("BKTH,BKSH->BKTS", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, group, time, -1) * dim**-0.5
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    # Divide after the product with v: one division per query and channel, not one per query and key.
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    flat = weights.reshape(batch, kv_heads, group * time, -1).astype(v.dtype)
    out = jnp.einsum("BKTS,BKSH->BKTH", flat, v, preferred_element_type=jnp.float32)
    out = out.reshape(batch, kv_heads, group, time, dim)
    out = (out / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, dim)


def segment_mask(segment_ids: Array) -> Array:
    """bool [B, T, T] from segment_ids [B, T]: causal within each segment, False across segments."""
    time = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same & jnp.tril(jnp.ones((time, time), bool))


def segment_attend(segment_ids: Array, backend: str = "jnp", mesh: Mesh | None = None) -> Attend:
    """An `Attend` hook for whole sequences: causal attention within each segment of a packed row.

    Args:
      segment_ids: int [B, T]; 0 is padding.
      backend: one of BACKENDS, from `choose_backend`.
      mesh: devices. Only splash needs it: the compiler does not partition a Pallas kernel.
    """
    if backend == "splash":
        return lambda layer, q, k, v: _splash(q, k, v, segment_ids, mesh)
    mask = segment_mask(segment_ids)
    if backend == "cudnn":
        return lambda layer, q, k, v: jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None], implementation="cudnn"
        )
    return lambda layer, q, k, v: _causal(q, k, v, mask)


def _causal(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """`attention` in at most 8 blocks of queries. Each block sees only the keys up to its own end,
    because the mask hides later ones anyway."""
    time = q.shape[1]
    size = max(64, -(-time // 8))
    blocks = []
    for begin in range(0, time, size):
        rows, seen = slice(begin, begin + size), slice(0, begin + size)
        blocks.append(attention(q[:, rows], k[:, seen], v[:, seen], mask[:, rows, seen]))
    return jnp.concatenate(blocks, axis=1)


def _splash(
    q: Array, k: Array, v: Array, segment_ids: Array, mesh: Mesh, interpret: bool = False
) -> Array:
    """Splash attention on [B, T, heads, H] arrays, sharded: rows over data and fsdp, heads over
    tensor."""
    # Imported here: half a second that runs without a TPU are spared.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    padding = -q.shape[1] % _LANES

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))

    def local(q, k, v, segment_ids):
        # The kernel takes one row, heads before time. It does not scale the scores.
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * q.shape[-1] ** -0.5, k, v))
        heads, time = q.shape[1:3]
        block = next(size for size in (512, 256, 128) if time % size == 0)
        names = (
            "block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq",
        )  # fmt: skip
        kernel = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([splash.CausalMask((time, time))] * heads),
            block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
            interpret=interpret,
        )
        run = jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(s, s)))
        return run(q, k, v, segment_ids).transpose(0, 2, 1, 3)

    rows, heads = P(("data", "fsdp")), P(("data", "fsdp"), None, "tensor")
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    out = sharded(pad(q), pad(k), pad(v), pad(segment_ids))
    return out[:, : q.shape[1]]
