"""One decoder for Qwen2, Qwen2.5, Qwen3 (dense) and Llama 3.x (Flax NNX).

The caller decides which keys a query sees: every layer passes its queries, keys and values to an
`Attend` hook. Training plugs in segment masks (`leafe_jax.models.attention`), the sampler its KV
cache. After construction everything is functional, and parameters are a plain nested dict.

Einsum letters: B batch, T query time, S key time, D model, N query heads, K key-value heads, G query
heads per key-value head, H head dim, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from leafe_jax.models.rope import RopeScaling

Attend = Callable[[int, Array, Array, Array], Array]
MODEL_TYPES = ("qwen2", "qwen3", "llama")
PROJECTED = "projected"  # name under which remat policies find the outputs of linear layers


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv 2106.09685): x W + alpha / rank * (x A) B on some projections.

    Attributes:
      rank: columns of A, rows of B.
      alpha: scale of the adapter, before the division by the rank.
      targets: projections that get an adapter: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj,
        down_proj.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of the model; hashable, so it can be a static argument.

    Attributes:
      model_type: "qwen2" (biases on q, k, v), "qwen3" (RMSNorm on every query and key head) or
        "llama".
      vocab_size, hidden_size, intermediate_size, num_layers: sizes.
      num_heads, num_kv_heads, head_dim: attention sizes. num_kv_heads divides num_heads; head_dim
        need not be hidden_size / num_heads.
      rope_theta: base of the rotary frequencies.
      rms_norm_eps: added to the mean square.
      tie_word_embeddings: True if the head is the transposed embedding.
      max_position_embeddings: context limit in tokens; the only field that does not change the logits.
      rope_scaling: how the rotary frequencies are scaled, or None.
      attention_bias: True for biases on q, k, v and o (Qwen3, Llama).
      mlp_bias: True for biases in the MLP (Llama).
      lora: adapters, set only while they are trained; a saved checkpoint never has it.
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
    max_position_embeddings: int
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    lora: LoRA | None = None

    @property
    def qkv_bias(self) -> bool:
        return self.model_type == "qwen2" or self.attention_bias

    @property
    def qk_norm(self) -> bool:
        return self.model_type == "qwen3"


@functools.lru_cache(maxsize=16)
def rope_table(config: ModelConfig) -> tuple[np.ndarray, float]:
    """(frequencies float32 [H/2] in radians per position, factor on cosines and sines)."""
    half = config.head_dim // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(half)
    # Computed on the host in float64 and rounded once, which agrees with torch's float32 powers to
    # one ulp. On the device the power would differ between platforms, and an error of one ulp in the
    # frequency grows with the position.
    period = np.power(np.float64(config.rope_theta), exponent.astype(np.float64))
    period = period.astype(np.float32)
    if config.rope_scaling is None:
        return np.float32(1) / period, 1.0
    scaled = config.rope_scaling.apply(period, config.rope_theta).astype(np.float32)
    return scaled, config.rope_scaling.attention_factor


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """RMSNorm of x over the last axis, in x's dtype; computed in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (scale.astype(jnp.float32) * wide).astype(x.dtype)


def rope(config: ModelConfig, x: Array, positions: Array) -> Array:
    """x [B, T, heads, H] with rotary embedding for positions [B, T]; halves are paired as in Llama.

    Angles are float32 for any dtype of x: bfloat16 cannot tell positions 256 and 257 apart.
    """
    frequency, factor = rope_table(config)
    angle = positions[..., None].astype(jnp.float32) * frequency  # [B, T, H/2]
    cos, sin = (f(angle)[:, :, None] * factor for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return rotated.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Array, kernel: Array, dtype) -> Array:
    """x [..., I] times kernel [I, O], as `dtype`.

    The custom gradient transposes the narrower operand of the kernel's gradient. JAX's default
    transposes the output's gradient. XLA's CPU backend then recomputes what produced that gradient (an
    activation's derivative) in transposed order, which takes a fifth of a training step.
    """
    return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _project_forward(x, kernel, dtype):
    return project(x, kernel, dtype), (x, kernel)


def _project_backward(dtype, kept, of_y):
    x, kernel = kept
    over = functools.partial(jax.lax.dot_general, preferred_element_type=dtype)
    of_x = over(of_y, kernel, (((of_y.ndim - 1,), (1,)), ((), ())))
    rows = tuple(range(x.ndim - 1))
    sums = ((rows, rows), ((), ()))
    if kernel.shape[0] <= kernel.shape[1]:
        of_kernel = over(x, of_y, sums)
    else:
        of_kernel = over(of_y, x, sums).T
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)


@jax.custom_vjp
def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up, in gate's dtype.

    It is computed in float32, because in bfloat16 XLA also rounds inside silu. The backward pass keeps
    only gate and up and recomputes the rest.
    """
    wide = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return wide.astype(gate.dtype)


def _swiglu_backward(kept, of_y):
    gate, up, of_y = (x.astype(jnp.float32) for x in (*kept, of_y))
    share = jax.nn.sigmoid(gate)
    of_gate = of_y * up * share * (1 + gate * (1 - share))
    return of_gate.astype(kept[0].dtype), (of_y * gate * share).astype(kept[1].dtype)


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), _swiglu_backward)


def _normal(shape: tuple[int, ...], rngs: nnx.Rngs | None, dtype) -> Array:
    if rngs is None:  # only shapes are needed, and tracing hundreds of random draws is slow
        return jnp.zeros(shape, dtype)
    return (0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype)


class _Norm(nnx.Module):
    def __init__(self, size: int, eps: float, dtype):
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.scale[...], self.eps)


class _Linear(nnx.Module):
    def __init__(
        self, size_in: int, size_out: int, bias: bool, *, rngs: nnx.Rngs | None, dtype,
        lora: LoRA | None = None,
    ):  # fmt: skip
        self.kernel = nnx.Param(_normal((size_in, size_out), rngs, dtype))
        self.bias = nnx.Param(jnp.zeros((size_out,), dtype)) if bias else None
        self.scale = 0.0 if lora is None else lora.alpha / lora.rank
        own = nnx.Rngs(0) if rngs is None else rngs  # nnx.LoRA requires one even for shapes
        self.lora = nnx.data(
            nnx.LoRA(size_in, lora.rank, size_out, param_dtype=dtype, rngs=own) if lora else None
        )

    def __call__(self, x: Array) -> Array:
        y = self._dense(x)
        if self.lora is not None:
            y = y + (self.scale * self.lora(x)).astype(x.dtype)
        # Named, because remat policies cannot see the matmul inside project's custom gradient.
        return checkpoint_name(y, PROJECTED)

    def _dense(self, x: Array) -> Array:
        if self.bias is None:
            return project(x, self.kernel[...], x.dtype)
        # float32 until the bias is added, so that bfloat16 rounds only once.
        y = project(x, self.kernel[...], jnp.float32)
        return (y + self.bias[...].astype(jnp.float32)).astype(x.dtype)


def _projection(c: ModelConfig, name: str, size_in: int, size_out: int, bias: bool, **made):
    """A linear layer, with an adapter if `c.lora` targets `name`."""
    wanted = c.lora is not None and name in c.lora.targets
    return _Linear(size_in, size_out, bias, lora=c.lora if wanted else None, **made)


class _Embed(nnx.Module):
    def __init__(self, vocab_size: int, size: int, *, rngs: nnx.Rngs | None, dtype):
        self.embedding = nnx.Param(_normal((vocab_size, size), rngs, dtype))


class _Attention(nnx.Module):
    def __init__(self, c: ModelConfig, layer: int, *, rngs: nnx.Rngs | None, dtype):
        self.config, self.layer = c, layer
        wide, narrow = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        size, made = c.hidden_size, {"rngs": rngs, "dtype": dtype}
        self.q_proj = _projection(c, "q_proj", size, wide, c.qkv_bias, **made)
        self.k_proj = _projection(c, "k_proj", size, narrow, c.qkv_bias, **made)
        self.v_proj = _projection(c, "v_proj", size, narrow, c.qkv_bias, **made)
        self.o_proj = _projection(c, "o_proj", wide, size, c.attention_bias, **made)
        self.q_norm = _Norm(c.head_dim, c.rms_norm_eps, dtype) if c.qk_norm else None
        self.k_norm = _Norm(c.head_dim, c.rms_norm_eps, dtype) if c.qk_norm else None

    def __call__(self, x: Array, positions: Array, attend: Attend) -> Array:
        c, lead = self.config, x.shape[:2]
        q = self.q_proj(x).reshape(*lead, c.num_heads, c.head_dim)
        k = self.k_proj(x).reshape(*lead, c.num_kv_heads, c.head_dim)
        v = self.v_proj(x).reshape(*lead, c.num_kv_heads, c.head_dim)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rope(c, q, positions), rope(c, k, positions)
        return self.o_proj(attend(self.layer, q, k, v).reshape(*lead, -1))


class _MLP(nnx.Module):
    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs | None, dtype):
        size, wide, bias = c.hidden_size, c.intermediate_size, c.mlp_bias
        made = {"rngs": rngs, "dtype": dtype}
        self.gate_proj = _projection(c, "gate_proj", size, wide, bias, **made)
        self.up_proj = _projection(c, "up_proj", size, wide, bias, **made)
        self.down_proj = _projection(c, "down_proj", wide, size, bias, **made)

    def __call__(self, x: Array) -> Array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class _Block(nnx.Module):
    def __init__(self, c: ModelConfig, layer: int, *, rngs: nnx.Rngs | None, dtype):
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
      config: its shape.
      rngs: `params` stream. Matrices are drawn from a normal distribution with standard deviation
        0.02; without rngs they are zeros.
      param_dtype: dtype of all parameters and of the computation.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs | None, param_dtype=jnp.float32):
        c = self.config = config
        self.embed = _Embed(c.vocab_size, c.hidden_size, rngs=rngs, dtype=param_dtype)
        self.layers = nnx.Dict(
            {str(i): _Block(c, i, rngs=rngs, dtype=param_dtype) for i in range(c.num_layers)}
        )
        self.final_norm = _Norm(c.hidden_size, c.rms_norm_eps, param_dtype)
        if not c.tie_word_embeddings:
            self.lm_head = _Linear(c.hidden_size, c.vocab_size, False, rngs=rngs, dtype=param_dtype)

    def hidden(self, tokens: Array, positions: Array, attend: Attend) -> Array:
        """Hidden states [B, T, D] after the final norm, for tokens [B, T] at positions [B, T]."""
        x = _rows(self.embed.embedding[...], tokens)
        for i in range(self.config.num_layers):
            x = self.layers[str(i)](x, positions, attend)
        return self.final_norm(x)

    def head(self, hidden: Array) -> Array:
        """float32 logits [..., V] from hidden states [..., D]."""
        if self.config.tie_word_embeddings:
            kernel = self.embed.embedding[...].T
        else:
            kernel = self.lm_head.kernel[...]
        return project(hidden, kernel, jnp.float32)


# -- functional interface --------------------------------------------------------------------------
@functools.lru_cache(maxsize=16)
def _graphdef(config: ModelConfig):
    model = nnx.eval_shape(lambda: Decoder(config, rngs=None))
    return nnx.split(model)


@functools.lru_cache(maxsize=16)
def _block_graphdef(config: ModelConfig):
    return nnx.split(nnx.eval_shape(lambda: _Block(config, 0, rngs=None, dtype=jnp.float32)))


def _merge(config: ModelConfig, params) -> Decoder:
    graphdef, state = _graphdef(config)
    state = jax.tree.map(lambda x: x, state)  # copied, because replace_by_pure_dict works in place
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def init_params(config: ModelConfig, key: Array, param_dtype=jnp.float32) -> dict:
    """Random parameters, as a nested dict of arrays whose layer keys are strings."""

    def make(key):
        return nnx.to_pure_dict(
            nnx.state(Decoder(config, rngs=nnx.Rngs(key), param_dtype=param_dtype))
        )

    return jax.jit(make)(key)


def abstract_params(config: ModelConfig, dtype=jnp.float32) -> dict:
    """The tree of `init_params` with ShapeDtypeStructs as leaves."""
    shapes = nnx.to_pure_dict(_graphdef(config)[1])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)


def hidden(config: ModelConfig, params, tokens: Array, positions: Array, attend: Attend) -> Array:
    """`Decoder.hidden` as a function of the parameters."""
    return _merge(config, params).hidden(tokens, positions, attend)


def head(config: ModelConfig, params, hidden: Array) -> Array:
    """`Decoder.head` as a function of the parameters."""
    return _merge(config, params).head(hidden)


def block(config: ModelConfig, params, x: Array, positions: Array, attend: Attend) -> Array:
    """The output [B, T, D] of one layer for x [B, T, D].

    `embed`, `block` for every layer, and `final_norm` together are `hidden`. Callers use them to remat
    or scan over layers.

    Args:
      params: of this layer only.
      attend: is called with layer number 0, whichever layer this is.
    """
    graphdef, state = _block_graphdef(config)
    state = jax.tree.map(lambda x: x, state)  # copied, because replace_by_pure_dict works in place
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)(x, positions, attend)


def embed(params, tokens: Array) -> Array:
    """Embeddings [B, T, D] of tokens [B, T]."""
    return _rows(params["embed"]["embedding"], tokens)


@jax.custom_vjp
def _rows(table: Array, indices: Array) -> Array:
    """table[indices], with a gradient that is summed in float32.

    In bfloat16 the sum for a token that occurs a thousand times in a batch would stop growing at 256
    times one of its terms.
    """
    return table[indices]


def _rows_backward(kept, of_y):
    table, indices = kept
    sums = jnp.zeros(table.shape, jnp.float32).at[indices].add(of_y.astype(jnp.float32))
    return sums.astype(table.dtype), None


_rows.defvjp(lambda table, indices: (_rows(table, indices), (table, indices)), _rows_backward)


def final_norm(config: ModelConfig, params, x: Array) -> Array:
    """Hidden states [B, T, D] after the final norm, from the last layer's output x [B, T, D]."""
    return rms_norm(x, params["final_norm"]["scale"], config.rms_norm_eps)
