"""Next-token loss without the whole [tokens, vocabulary] logits in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from leafe_jax.models import decoder
from leafe_jax.models.decoder import ModelConfig


def token_nll(config: ModelConfig, params, hidden: Array, targets: Array, chunk: int) -> Array:
    """Negative log-likelihood of each target.

    Args:
      config, params: the model, for its head.
      hidden: [B, T, D].
      targets: int32 [B, T].
      chunk: tokens whose logits exist at the same time; the backward pass computes them again.

    Returns:
      float32 [B, T].
    """

    def nll(block: Array, target: Array) -> Array:
        logits = decoder.head(config, params, block)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    size = targets.size
    if size <= chunk:
        return nll(hidden, targets)
    missing = -size % chunk
    flat = jnp.pad(hidden.reshape(size, -1), ((0, missing), (0, 0)))
    flat_targets = jnp.pad(targets.reshape(size), (0, missing))
    blocks = (flat.reshape(-1, chunk, flat.shape[-1]), flat_targets.reshape(-1, chunk))
    out = jax.lax.map(jax.checkpoint(lambda x: nll(*x)), blocks)
    return out.reshape(-1)[:size].reshape(targets.shape)
