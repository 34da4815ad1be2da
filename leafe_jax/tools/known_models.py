"""Models by directory, by the name that their makers give them, or by shape alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.hf_config import read_config

# Hidden size, intermediate size, layers, heads, key-value heads, vocabulary size, tied head. From each
# config.json on the hub. The paper's models are those of 7B and above.
_QWEN = {
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "Qwen2.5-3B": (2048, 11008, 36, 16, 2, 151936, True),
    "Qwen2.5-7B": (3584, 18944, 28, 28, 4, 152064, False),
    "Qwen2.5-14B": (5120, 13824, 48, 40, 8, 152064, False),
    "Qwen2.5-32B": (5120, 27648, 64, 40, 8, 152064, False),
    "Qwen2.5-72B": (8192, 29568, 80, 64, 8, 152064, False),
}
_LLAMA = {
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256, False),
    "Llama-3-70B": (8192, 28672, 80, 64, 8, 128256, False),
}

# Shapes for tools that make random weights: nobody has trained such a model.
_MADE_UP: dict[str, dict[str, Any]] = {
    "tiny": dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4,
                 num_kv_heads=2),
    "small": dict(vocab_size=32768, hidden_size=1024, intermediate_size=4096, num_layers=8,
                  num_heads=8, num_kv_heads=4),
}  # fmt: skip
_SHORT = {
    "0.5b": "Qwen2.5-0.5B", "1.5b": "Qwen2.5-1.5B", "3b": "Qwen2.5-3B", "7b": "Qwen2.5-7B",
    "8b": "Llama-3.1-8B", "14b": "Qwen2.5-14B", "32b": "Qwen2.5-32B", "70b": "Llama-3-70B",
    "72b": "Qwen2.5-72B",
}  # fmt: skip
SHAPES = (*_MADE_UP, *_SHORT)


def find_model(name: str) -> ModelConfig:
    """The config of a model directory, or of a model that is known by name.

    Raises:
      UserError: there is no such directory with config.json, and no such model.
    """
    if (Path(name) / "config.json").is_file():
        return read_config(name)
    short = Path(name).name.removesuffix("-Instruct")
    known = {**_QWEN, **_LLAMA}
    if short not in known:
        raise UserError(
            f"--model={name}: must be a directory with config.json, or one of {', '.join(known)}"
        )
    hidden, wide, layers, heads, kv_heads, vocabulary, tied = known[short]
    qwen = short in _QWEN
    return ModelConfig(
        model_type="qwen2" if qwen else "llama", vocab_size=vocabulary, hidden_size=hidden,
        intermediate_size=wide, num_layers=layers, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=hidden // heads, rope_theta=1e6 if qwen else 5e5,
        rms_norm_eps=1e-6 if qwen else 1e-5, tie_word_embeddings=tied,
        max_position_embeddings=32768 if qwen else 8192,
    )  # fmt: skip


def shape_config(shape: str) -> ModelConfig:
    """The config of a shape.

    Args:
      shape: one of SHAPES.

    Raises:
      UserError: there is no such shape.
    """
    if shape in _SHORT:
        return find_model(_SHORT[shape])
    if shape not in _MADE_UP:
        raise UserError(f"shape {shape!r}: must be one of {', '.join(SHAPES)}")
    # 128, because JAX's paged attention for TPUs is made for heads of this size.
    return ModelConfig(
        model_type="llama", **_MADE_UP[shape], head_dim=128, rope_theta=1e4, rms_norm_eps=1e-6,
        tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
