"""One decoder for the Qwen2 and Llama shapes (Flax NNX).

The decoder projects, rotates and mixes; which keys a query sees is the caller's business: every
layer hands its queries, keys and values to an `Attend` hook. Training hooks in segment masks, the
sampler its KV cache. After construction everything is functional: parameters are a plain nested dict.

Einsum letters: B batch, T query time, S key time, D model, N query heads, K key-value heads, G query
heads per key-value head, H head dim, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

Attend = Callable[[int, Array, Array, Array], Array]
MODEL_TYPES = ("qwen2", "llama")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of the model; hashable, so it can be a static argument.

    Attributes:
      model_type: "qwen2" or "llama": what config.json says on export.
      vocab_size, hidden_size, intermediate_size, num_layers: sizes.
      num_heads, num_kv_heads, head_dim: attention sizes; num_kv_heads divides num_heads.
      rope_theta: base of the rotary frequencies.
      rms_norm_eps: added to the mean square.
      tie_word_embeddings: the head is the embedding, transposed.
      qkv_bias: biases on q, k and v (Qwen2).
      max_position_embeddings: context limit, in tokens.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    max_position_embeddings: int


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """RMSNorm over the last axis, in float32; returns x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    # As transformers does: back to the input's dtype first, then the scale.
    return scale * wide.astype(x.dtype)


def rope(x: Array, positions: Array, theta: float) -> Array:
    """Rotary embedding of x [B, T, heads, H] at positions [B, T]; halves rotated as in Llama.

    Angles are float32 whatever the dtype: in bfloat16 positions 256 and 257 are the same.
    """
    half = x.shape[-1] // 2
    frequency = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency  # [B, T, H/2]
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return rotated.astype(x.dtype)


def attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Reference attention with grouped heads.

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H].
      mask: bool [B, T, S], True where a query sees a key.

    Returns:
      [B, T, N, H]; rows that see nothing are finite and meaningless.
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
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("BKTS,BKSH->BKTH", weights.reshape(batch, kv_heads, group * time, -1), v)
    out = out.reshape(batch, kv_heads, group, time, dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, time, heads, dim)


def segment_attend(segment_ids: Array) -> Attend:
    """The training hook: causal, and only within a segment of a packed row.

    Args:
      segment_ids: int [B, T]; 0 is padding.
    """
    time = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    mask = same & jnp.tril(jnp.ones((time, time), bool))
    return lambda layer, q, k, v: attention(q, k, v, mask)


class _Norm(nnx.Module):
    def __init__(self, size: int, eps: float, dtype):
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.scale[...], self.eps)


class _Linear(nnx.Module):
    def __init__(self, size_in: int, size_out: int, bias: bool, *, rngs: nnx.Rngs, dtype):
        normal = jax.random.normal(rngs.params(), (size_in, size_out), jnp.float32)
        self.kernel = nnx.Param((0.02 * normal).astype(dtype))
        self.bias = nnx.Param(jnp.zeros((size_out,), dtype)) if bias else None

    def __call__(self, x: Array) -> Array:
        y = x @ self.kernel[...]
        return y if self.bias is None else y + self.bias[...]


class _Embed(nnx.Module):
    def __init__(self, vocab_size: int, size: int, *, rngs: nnx.Rngs, dtype):
        normal = jax.random.normal(rngs.params(), (vocab_size, size), jnp.float32)
        self.embedding = nnx.Param((0.02 * normal).astype(dtype))


class _Attention(nnx.Module):
    def __init__(self, c: ModelConfig, layer: int, *, rngs: nnx.Rngs, dtype):
        self.config, self.layer = c, layer
        wide, narrow = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.q_proj = _Linear(c.hidden_size, wide, c.qkv_bias, rngs=rngs, dtype=dtype)
        self.k_proj = _Linear(c.hidden_size, narrow, c.qkv_bias, rngs=rngs, dtype=dtype)
        self.v_proj = _Linear(c.hidden_size, narrow, c.qkv_bias, rngs=rngs, dtype=dtype)
        self.o_proj = _Linear(wide, c.hidden_size, False, rngs=rngs, dtype=dtype)

    def __call__(self, x: Array, positions: Array, attend: Attend) -> Array:
        c, lead = self.config, x.shape[:2]
        q = self.q_proj(x).reshape(*lead, c.num_heads, c.head_dim)
        k = self.k_proj(x).reshape(*lead, c.num_kv_heads, c.head_dim)
        v = self.v_proj(x).reshape(*lead, c.num_kv_heads, c.head_dim)
        q, k = rope(q, positions, c.rope_theta), rope(k, positions, c.rope_theta)
        return self.o_proj(attend(self.layer, q, k, v).reshape(*lead, -1))


class _MLP(nnx.Module):
    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs, dtype):
        self.gate_proj = _Linear(c.hidden_size, c.intermediate_size, False, rngs=rngs, dtype=dtype)
        self.up_proj = _Linear(c.hidden_size, c.intermediate_size, False, rngs=rngs, dtype=dtype)
        self.down_proj = _Linear(c.intermediate_size, c.hidden_size, False, rngs=rngs, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class _Block(nnx.Module):
    def __init__(self, c: ModelConfig, layer: int, *, rngs: nnx.Rngs, dtype):
        self.input_norm = _Norm(c.hidden_size, c.rms_norm_eps, dtype)
        self.attn = _Attention(c, layer, rngs=rngs, dtype=dtype)
        self.post_norm = _Norm(c.hidden_size, c.rms_norm_eps, dtype)
        self.mlp = _MLP(c, rngs=rngs, dtype=dtype)

    def __call__(self, x: Array, positions: Array, attend: Attend) -> Array:
        with jax.named_scope("attention"):
            x = x + self.attn(self.input_norm(x), positions, attend)
        with jax.named_scope("mlp"):
            return x + self.mlp(self.post_norm(x))


class Decoder(nnx.Module):
    """The transformer.

    Args:
      config: shape.
      rngs: `params` stream; matrices are normal with standard deviation 0.02.
      param_dtype: dtype of all parameters, which is also the compute dtype.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
        c = self.config = config
        self.embed = _Embed(c.vocab_size, c.hidden_size, rngs=rngs, dtype=param_dtype)
        self.layers = nnx.Dict(
            {str(i): _Block(c, i, rngs=rngs, dtype=param_dtype) for i in range(c.num_layers)}
        )
        self.final_norm = _Norm(c.hidden_size, c.rms_norm_eps, param_dtype)
        if not c.tie_word_embeddings:
            self.lm_head = _Linear(c.hidden_size, c.vocab_size, False, rngs=rngs, dtype=param_dtype)

    def hidden(self, tokens: Array, positions: Array, attend: Attend) -> Array:
        """Final-norm states [B, T, D] of tokens [B, T] at positions [B, T]."""
        x = self.embed.embedding[...][tokens]
        for i in range(self.config.num_layers):
            x = self.layers[str(i)](x, positions, attend)
        return self.final_norm(x)

    def head(self, hidden: Array) -> Array:
        """float32 logits [..., V] of hidden [..., D]; a tied head is the embedding itself."""
        if self.config.tie_word_embeddings:
            kernel = self.embed.embedding[...].T
        else:
            kernel = self.lm_head.kernel[...]
        return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)


# -- functional face -------------------------------------------------------------------------------
@functools.lru_cache(maxsize=16)
def _graphdef(config: ModelConfig):
    model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    return nnx.split(model)


def _merge(config: ModelConfig, params) -> Decoder:
    graphdef, state = _graphdef(config)
    state = jax.tree.map(lambda x: x, state)  # a copy: replace_by_pure_dict works in place
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def init_params(config: ModelConfig, key: Array, param_dtype=jnp.float32) -> dict:
    """Random parameters as a nested dict of arrays; layer keys are strings."""

    def make(key):
        return nnx.to_pure_dict(
            nnx.state(Decoder(config, rngs=nnx.Rngs(key), param_dtype=param_dtype))
        )

    return jax.jit(make)(key)


def abstract_params(config: ModelConfig, dtype=jnp.float32) -> dict:
    """The same tree as ShapeDtypeStructs."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))


def hidden(config: ModelConfig, params, tokens: Array, positions: Array, attend: Attend) -> Array:
    """`Decoder.hidden` as a function of the parameters."""
    return _merge(config, params).hidden(tokens, positions, attend)


def head(config: ModelConfig, params, hidden: Array) -> Array:
    """`Decoder.head` as a function of the parameters."""
    return _merge(config, params).head(hidden)
