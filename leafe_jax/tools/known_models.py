"""Models by directory, or by the name that the paper gives them."""

from __future__ import annotations

from pathlib import Path

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.hf_config import read_config

# The paper's models: hidden size, intermediate size, layers, heads, key-value heads, vocabulary size. From
# each config.json on the hub. head_dim is 128.
_QWEN = {
    "Qwen2.5-7B": (3584, 18944, 28, 28, 4, 152064),
    "Qwen2.5-14B": (5120, 13824, 48, 40, 8, 152064),
    "Qwen2.5-32B": (5120, 27648, 64, 40, 8, 152064),
    "Qwen2.5-72B": (8192, 29568, 80, 64, 8, 152064),
}
_LLAMA = {
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256),
    "Llama-3-70B": (8192, 28672, 80, 64, 8, 128256),
}


def find_model(name: str) -> ModelConfig:
    """The config of a model directory, or of one of the paper's models.

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
    hidden, wide, layers, heads, kv_heads, vocabulary = known[short]
    qwen = short in _QWEN
    return ModelConfig(
        model_type="qwen2" if qwen else "llama", vocab_size=vocabulary, hidden_size=hidden,
        intermediate_size=wide, num_layers=layers, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=128, rope_theta=1e6 if qwen else 5e5, rms_norm_eps=1e-6 if qwen else 1e-5,
        tie_word_embeddings=False, max_position_embeddings=32768 if qwen else 8192,
    )  # fmt: skip
