"""Published figures of accelerators, and the number of operations of a model's passes."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

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
    # From NVIDIA's data sheets: dense operations, SXM modules where there are several. `memory` is the
    # whole; jax takes 75% of it unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
    "t4": Chip("gpu", 16 * GIB, 0.0, 320e9),  # has no bfloat16
    "l4": Chip("gpu", 24 * GIB, 121e12, 300e9),
    "a100-40": Chip("gpu", 40 * GIB, 312e12, 1555e9),
    "a100-80": Chip("gpu", 80 * GIB, 312e12, 2039e9),
    "h100": Chip("gpu", 84_942_979_072, 989e12, 3350e9),  # as XLA describes it
    "h200": Chip("gpu", 141 * 10**9, 989e12, 4800e9),
}

# What jax calls them: Device.device_kind.
_KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
    "TPU v6 lite": "v6e", "TPU v6e": "v6e", "Tesla T4": "t4", "NVIDIA L4": "l4",
    "NVIDIA A100-SXM4-40GB": "a100-40", "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200",
}  # fmt: skip


def chip_at_hand(device: Any) -> Chip:
    """The figures of a device of this machine.

    Published ones, as far as they are known. The memory is what jax may use of it; on a CPU it is the
    machine's.

    Args:
      device: one of jax.local_devices().
    """
    chip = CHIPS.get(_KINDS.get(device.device_kind, ""), Chip(device.platform, 0, 0.0, 0.0))
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu":
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return chip if limit is None else dataclasses.replace(chip, memory=limit)


def compute_dtype() -> str:
    """The dtype that a run on this machine's devices would compute in."""
    import jax

    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return "float32"
    return "bfloat16" if _capability(device) >= (8, 0) else "float32"


def _capability(device: Any) -> tuple[int, ...]:
    """Compute capability of an NVIDIA GPU; (99,) for other devices."""
    text = str(getattr(device, "compute_capability", "99"))
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


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
