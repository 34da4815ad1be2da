"""Published figures of accelerators, and the number of operations of a model's passes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it would start jax, which tools.plan must configure first
    from leafe_jax.models.decoder import ModelConfig

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of a chip.

    Attributes:
      platform: jax's name for the platform.
      memory: bytes that the compiler can give to a program.
      flops: bfloat16 operations per second; 0 means unknown.
      bandwidth: memory bandwidth in bytes per second; 0 means unknown.
    """

    platform: str
    memory: int
    flops: float
    bandwidth: float


# From cloud.google.com/tpu/docs, "System architecture" of each version. `memory` is less than published: it
# is what the compiler of libtpu 0.0.51 names when a program is too large.
CHIPS = {
    "v4": Chip("tpu", round(30.75 * GIB), 275e12, 1228e9),
    "v5e": Chip("tpu", round(15.75 * GIB), 197e12, 819e9),
    "v5p": Chip("tpu", 95 * GIB, 459e12, 2765e9),  # 95.73
    "v6e": Chip("tpu", round(31.24 * GIB), 918e12, 1640e9),
}


def matmul_flops(config: ModelConfig, tokens: int, pairs: int) -> float:
    """Number of operations in one forward pass.

    Args:
      config: the model.
      tokens: number of tokens; logits are computed for each.
      pairs: number of query-key pairs in one layer's attention.
    """
    c, wide = config, config.num_heads * config.head_dim
    attention = c.hidden_size * (2 * wide + 2 * c.num_kv_heads * c.head_dim)
    layer = attention + 3 * c.hidden_size * c.intermediate_size
    weights = c.num_layers * layer + c.hidden_size * c.vocab_size
    return 2.0 * weights * tokens + 4.0 * wide * pairs * c.num_layers


def train_flops(
    config: ModelConfig, tokens: int, pairs: int, remat: str, adapters: int | None
) -> float:
    """Number of operations in one train step.

    A trained matrix needs three products: one forward, and two backward for the gradients of its input
    and of itself. A frozen matrix needs two, because it has no gradient itself. Attention always needs
    three, because both operands have gradients. With remat = "full" the forward pass runs twice. With F =
    `matmul_flops` and r = 1 for "full", else 0:

      all weights trained:  (3 + r) F(tokens, pairs)
      adapters trained:     (2 + r) F(tokens, 0) + (3 + r) (F(0, pairs) + 2 tokens adapters)

    Args:
      config, tokens, pairs: as for `matmul_flops`.
      remat: train.remat.
      adapters: number of parameters of the adapters; None if all weights are trained.
    """
    again = 1 if remat == "full" else 0
    if adapters is None:
        return (3 + again) * matmul_flops(config, tokens, pairs)
    own = matmul_flops(config, 0, pairs) + 2.0 * tokens * adapters
    return (2 + again) * matmul_flops(config, tokens, 0) + (3 + again) * own
