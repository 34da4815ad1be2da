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
    if config.vocab_size // mesh.shape["tensor"] <= chunk:
        return _nll(decoder.head(config, params, hidden), targets)
    axis, kernel = _head(config, params)
    return _chunked(axis, chunk, mesh, False, hidden, kernel, targets)[0]


def token_nll_entropy(
    config: ModelConfig, params: Any, hidden: Array, targets: Array, chunk: int, mesh: Mesh
) -> tuple[Array, Array]:
    """(negative log-likelihood of each target, entropy in nats of each distribution), float32 [B, T] both.

    Both have gradients. Arguments and memory are those of `token_nll`.
    """
    if config.vocab_size // mesh.shape["tensor"] <= chunk:
        return _nll_entropy(decoder.head(config, params, hidden), targets)
    axis, kernel = _head(config, params)
    nll, entropy = _chunked(axis, chunk, mesh, True, hidden, kernel, targets)
    return nll, entropy


def _head(config: ModelConfig, params: Any) -> tuple[int, Array]:
    """(axis of the vocabulary, kernel) of the model's head."""
    if config.tie_word_embeddings:
        return 0, params["embed"]["embedding"]
    return 1, params["lm_head"]["kernel"]


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


@jax.custom_vjp
def _nll_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """`_nll`, and the entropy, whose gradient is of the same pass."""
    return _nll_entropy_forward(logits, targets)[0]


def _nll_entropy_forward(
    logits: Array, targets: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    nll, kept = _nll_forward(logits, targets)
    share = jnp.exp(logits - kept[2][..., None])
    entropy = kept[2] - jnp.sum(share * logits, axis=-1)
    return (nll, entropy), (*kept, entropy)


def _nll_entropy_backward(
    kept: tuple[Array, ...], scales: tuple[Array, Array]
) -> tuple[Array, None]:
    logits, targets, log_total, entropy = kept
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    logprobs = logits - log_total[..., None]
    share = jnp.exp(logprobs)
    own = share * (logprobs + entropy[..., None])
    return (share - hit) * scales[0][..., None] - own * scales[1][..., None], None


_nll_entropy.defvjp(_nll_entropy_forward, _nll_entropy_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _chunked(
    axis: int, chunk: int, mesh: Mesh, entropy: bool, hidden: Array, kernel: Array, targets: Array
) -> tuple[Array, ...]:
    """(nll,), or with `entropy` (nll, entropy). kernel [V, D] (axis 0) or [D, V] (axis 1)."""
    return _forward(axis, chunk, mesh, entropy, hidden, kernel, targets)[0]


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
    axis: int, chunk: int, mesh: Mesh, entropy: bool, hidden: Array, kernel: Array, targets: Array
) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
    rows, weights = _specs(axis)

    def local(hidden: Array, kernel: Array, targets: Array) -> tuple[Array, ...]:
        def body(carry: Any, begin: Array, fresh: Array) -> Any:
            top, total, chosen, *weighted = carry
            _, logits, hit = _piece(axis, hidden, kernel, targets, begin, fresh)
            new = jnp.maximum(top, logits.max(-1))
            shrink, share = jnp.exp(top - new), jnp.exp(logits - new[..., None])
            if entropy:  # of logits that are -inf, the share is 0
                own = jnp.sum(share * jnp.where(fresh, logits, 0.0), axis=-1)
                weighted = [weighted[0] * shrink + own]
            chosen += jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
            return new, total * shrink + share.sum(-1), chosen, *weighted

        zero = jnp.zeros(targets.shape, jnp.float32)
        carry = (zero - jnp.inf, zero, zero, *[zero] * entropy)
        top, total, chosen, *weighted = _over_pieces(kernel.shape[axis], chunk, body, carry)
        most = jax.lax.pmax(top, "tensor")
        shrink = jnp.exp(top - most)
        total = jax.lax.psum(total * shrink, "tensor")
        log_total = most + jnp.log(total)
        found = [log_total - jax.lax.psum(chosen, "tensor"), log_total]
        if entropy:
            found.append(log_total - jax.lax.psum(weighted[0] * shrink, "tensor") / total)
        return tuple(found)

    run = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, weights, rows), out_specs=(rows,) * (2 + entropy),
        check_vma=False,
    )  # fmt: skip
    nll, log_total, *measured = run(hidden, kernel, targets)
    return (nll, *measured), (hidden, kernel, targets, log_total, *measured)


def _backward(
    axis: int, chunk: int, mesh: Mesh, entropy: bool, kept: tuple[Array, ...],
    scales: tuple[Array, ...],
) -> tuple[Array, Array, None]:  # fmt: skip
    """Gradients of hidden and kernel, given d loss / d nll and d loss / d entropy, [B, T] each."""
    rows, weights = _specs(axis)

    def local(
        hidden: Array, kernel: Array, targets: Array, log_total: Array, *rest: Array
    ) -> tuple[Array, Array]:
        def body(carry: Any, begin: Array, fresh: Array) -> Any:
            of_hidden, of_kernel = carry
            part, logits, hit = _piece(axis, hidden, kernel, targets, begin, fresh)
            share = jnp.exp(logits - log_total[..., None])
            error = (share - hit) * rest[-1 - entropy][..., None]
            if entropy:
                measured, scale = rest[0], rest[-1]
                own = jnp.where(fresh, logits, 0.0) - log_total[..., None] + measured[..., None]
                error -= share * own * scale[..., None]
            error = error.astype(hidden.dtype)
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

    others = (rows,) * (len(kept) - 2 + len(scales))
    run: Callable[..., tuple[Array, Array]] = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, weights, *others), out_specs=(rows, weights),
        check_vma=False,
    )  # fmt: skip
    of_hidden, of_kernel = run(*kept, *scales)
    return of_hidden, of_kernel, None


_chunked.defvjp(_forward, _backward)
