"""Next-token loss in pieces of the vocabulary: the [tokens, vocabulary] logits never exist."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from leafe_jax.models import decoder
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.sharding import BATCH


def token_nll(
    config: ModelConfig, params: Any, hidden: Array, targets: Array, chunk: int, mesh: Mesh
) -> Array:
    """Negative log-likelihood of each target.

    A vocabulary of at most `chunk` entries is handled at once. A larger one goes piece by piece, with
    a running maximum and sum, and the backward pass computes the logits of each piece again: memory
    is that of one piece, whatever the vocabulary.

    Args:
      config, params: the model, for its head.
      hidden: [B, T, D].
      targets: int32 [B, T].
      chunk: vocabulary entries (of each device's share) whose logits exist at the same time.
      mesh: devices; B is divided over data and fsdp, the vocabulary over tensor.

    Returns:
      float32 [B, T].
    """
    tied = config.tie_word_embeddings
    if config.vocab_size // mesh.shape["tensor"] <= chunk:
        return _nll(decoder.head(config, params, hidden), targets)
    kernel = params["embed"]["embedding"] if tied else params["lm_head"]["kernel"]
    return _chunked_nll(0 if tied else 1, chunk, mesh, hidden, kernel, targets)


@jax.custom_vjp
def _nll(logits: Array, targets: Array) -> Array:
    """Of logits [B, T, V]. The gradient in one pass over them: through the target's logit alone JAX
    would add into a second array of that size."""
    return _nll_forward(logits, targets)[0]


def _nll_forward(logits: Array, targets: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_total = jax.nn.logsumexp(logits, axis=-1)
    return log_total - chosen, (logits, targets, log_total)


def _nll_backward(kept: tuple[Array, Array, Array], scale: Array) -> tuple[Array, None]:
    logits, targets, log_total = kept
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    return (jnp.exp(logits - log_total[..., None]) - hit) * scale[..., None], None


_nll.defvjp(_nll_forward, _nll_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked_nll(
    axis: int, chunk: int, mesh: Mesh, hidden: Array, kernel: Array, targets: Array
) -> Array:
    """kernel [V, D] (axis 0) or [D, V] (axis 1)."""
    return _forward(axis, chunk, mesh, hidden, kernel, targets)[0]


def _specs(axis: int) -> tuple[P, P]:
    """Of rows and of the kernel; the latter as in sharding.RULES."""
    return BATCH, P("tensor", "fsdp") if axis == 0 else P("fsdp", "tensor")


def _over_pieces(size: int, chunk: int, body: Callable[..., Any], carry: Any) -> Any:
    """body(carry, begin, fresh) over [0, size) in pieces of `chunk` entries.

    The last piece is moved back so that it ends with the vocabulary; `fresh` [chunk] tells which of a
    piece's entries no earlier one had. A shorter last piece after the loop would cost a second copy of
    the kernel's gradient.
    """

    def step(i: Array, carry: Any) -> Any:
        begin = jnp.minimum(i * chunk, size - chunk)
        return body(carry, begin, begin + jnp.arange(chunk) >= i * chunk)

    return jax.lax.fori_loop(0, -(-size // chunk), step, carry)


def _piece(
    axis: int, hidden: Array, kernel: Array, targets: Array, begin: Array, fresh: Array
) -> tuple[Array, Array, Array]:
    """Of a piece's entries from `begin` on (counted on this device): their part of the kernel, logits
    float32 [B, T, chunk] (-inf where not fresh), and which of them is each target [B, T, chunk]."""
    if axis == 0:
        # Rows by index, not as a slice: the product below wants them transposed, and through a slice
        # XLA's CPU backend passes that on to the whole kernel, as a copy of it.
        rows = begin + jnp.arange(fresh.size)
        part = jnp.take(kernel, rows, axis=0, mode="clip", indices_are_sorted=True)
    else:
        part = jax.lax.dynamic_slice_in_dim(kernel, begin, fresh.size, axis)
    part = jax.lax.all_gather(part, "fsdp", axis=1 - axis, tiled=True)
    logits = jax.lax.dot_general(
        hidden, part, (((2,), (1 - axis,)), ((), ())), preferred_element_type=jnp.float32
    )
    place = targets - begin - jax.lax.axis_index("tensor") * kernel.shape[axis]
    hit = (place[..., None] == jnp.arange(fresh.size)) & fresh
    return part, jnp.where(fresh, logits, -jnp.inf), hit


def _forward(
    axis: int, chunk: int, mesh: Mesh, hidden: Array, kernel: Array, targets: Array
) -> tuple[Array, tuple[Array, ...]]:
    rows, weights = _specs(axis)

    def local(hidden: Array, kernel: Array, targets: Array) -> tuple[Array, Array]:
        def body(carry: Any, begin: Array, fresh: Array) -> Any:
            top, total, chosen = carry
            _, logits, hit = _piece(axis, hidden, kernel, targets, begin, fresh)
            new = jnp.maximum(top, logits.max(-1))
            total = total * jnp.exp(top - new) + jnp.exp(logits - new[..., None]).sum(-1)
            return new, total, chosen + jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)

        zero = jnp.zeros(targets.shape, jnp.float32)
        carry = (zero - jnp.inf, zero, zero)
        top, total, chosen = _over_pieces(kernel.shape[axis], chunk, body, carry)
        most = jax.lax.pmax(top, "tensor")
        total = jax.lax.psum(total * jnp.exp(top - most), "tensor")
        log_total = most + jnp.log(total)
        return log_total - jax.lax.psum(chosen, "tensor"), log_total

    run = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, weights, rows), out_specs=(rows, rows), check_vma=False
    )
    nll, log_total = run(hidden, kernel, targets)
    return nll, (hidden, kernel, targets, log_total)


def _backward(
    axis: int, chunk: int, mesh: Mesh, kept: tuple[Array, ...], scale: Array
) -> tuple[Array, Array, None]:
    """Gradients of hidden and kernel, given d loss / d nll = `scale` [B, T]."""
    rows, weights = _specs(axis)

    def local(
        hidden: Array, kernel: Array, targets: Array, log_total: Array, scale: Array
    ) -> tuple[Array, Array]:
        def body(carry: Any, begin: Array, fresh: Array) -> Any:
            of_hidden, of_kernel = carry
            part, logits, hit = _piece(axis, hidden, kernel, targets, begin, fresh)
            error = jnp.exp(logits - log_total[..., None]) - hit
            error = (error * scale[..., None]).astype(hidden.dtype)
            back = (((2,), (axis,)), ((), ()))
            of_hidden += jax.lax.dot_general(error, part, back, preferred_element_type=jnp.float32)
            pair = (error, hidden) if axis == 0 else (hidden, error)
            new = jnp.einsum("BTI,BTJ->IJ", *pair, preferred_element_type=jnp.float32)
            new = jax.lax.psum(new, "data")
            new = jax.lax.psum_scatter(new, "fsdp", scatter_dimension=1 - axis, tiled=True)
            # Entries that an earlier piece had are kept, not written over by these zeros.
            old = jax.lax.dynamic_slice_in_dim(of_kernel, begin, fresh.size, axis)
            keep = jnp.expand_dims(fresh, 1 - axis)
            new = jnp.where(keep, new.astype(kernel.dtype), old)
            of_kernel = jax.lax.dynamic_update_slice_in_dim(of_kernel, new, begin, axis)
            return of_hidden, of_kernel

        carry = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(kernel))
        of_hidden, of_kernel = _over_pieces(kernel.shape[axis], chunk, body, carry)
        return jax.lax.psum(of_hidden, "tensor").astype(hidden.dtype), of_kernel

    run: Callable[..., tuple[Array, Array]] = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, weights, rows, rows, rows), out_specs=(rows, weights),
        check_vma=False,
    )  # fmt: skip
    of_hidden, of_kernel = run(*kept, scale)
    return of_hidden, of_kernel, None


_chunked_nll.defvjp(_forward, _backward)
