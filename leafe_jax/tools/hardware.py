"""Accelerators in numbers, and the arithmetic of a model."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a chip.

    Attributes:
      platform: jax's name of the platform.
      memory: bytes that the compiler has for a program.
      flops: bfloat16 operations a second; 0 is unknown.
      bandwidth: of the memory, bytes a second; 0 is unknown.
    """

    platform: str
    memory: int
    flops: float
    bandwidth: float


# cloud.google.com/tpu/docs, "System architecture" of each version; memory as the compiler of libtpu
# 0.0.51 says when a program is too large, less than is published.
CHIPS = {
    "v4": Chip("tpu", round(30.75 * GIB), 275e12, 1228e9),
    "v5e": Chip("tpu", round(15.75 * GIB), 197e12, 819e9),
    "v5p": Chip("tpu", 95 * GIB, 459e12, 2765e9),  # 95.73
    "v6e": Chip("tpu", round(31.24 * GIB), 918e12, 1640e9),
}


def matmul_flops(config, tokens: int, pairs: int) -> float:
    """Operations of one forward pass.

    Args:
      config: the model.
      tokens: tokens that pass through it, each with logits.
      pairs: query-key pairs of a layer's attention.
    """
    c, wide = config, config.num_heads * config.head_dim
    attention = c.hidden_size * (2 * wide + 2 * c.num_kv_heads * c.head_dim)
    layer = attention + 3 * c.hidden_size * c.intermediate_size
    weights = c.num_layers * layer + c.hidden_size * c.vocab_size
    return 2.0 * weights * tokens + 4.0 * wide * pairs * c.num_layers


def train_flops(config, tokens: int, pairs: int, remat: str, adapters: int | None) -> float:
    """Operations of one train step.

    A matrix takes one pass forwards and two backwards, for the gradients of its input and of itself;
    a frozen one has no gradient of its own. Attention has two operands and takes two backwards either
    way. With remat = "full" the forward pass is done twice. So with F of `matmul_flops` and r = 1 for
    "full", otherwise 0:

      all trained:  (3 + r) F(tokens, pairs)
      adapters:     (2 + r) F(tokens, 0) + (3 + r) (F(0, pairs) + 2 tokens adapters)

    Args:
      config, tokens, pairs: as of `matmul_flops`.
      remat: train.remat.
      adapters: parameters of the adapters; None where the weights are trained.
    """
    again = 1 if remat == "full" else 0
    if adapters is None:
        return (3 + again) * matmul_flops(config, tokens, pairs)
    own = matmul_flops(config, 0, pairs) + 2.0 * tokens * adapters
    return (2 + again) * matmul_flops(config, tokens, 0) + (3 + again) * own
