"""Small random checkpoints made with transformers, for every switch of the architecture and every model
family, and their logits in torch."""

import jax
import jax.numpy as jnp
import numpy as np
from lazily import torch, transformers

from leafe_jax.models import decoder
from leafe_jax.models.attention import segment_attend

jax.config.update("jax_default_matmul_precision", "float32")

VOCAB = 97
SIZES = dict(
    vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
    num_attention_heads=6, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
)  # fmt: skip


def config_class(name: str):
    """A config class of transformers, which is imported when it is called."""
    return lambda **fields: getattr(transformers, name)(**fields)


QWEN2, QWEN3, LLAMA = map(config_class, ("Qwen2Config", "Qwen3Config", "LlamaConfig"))


def rope(kind: str, theta: float = 1e4, **fields) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **fields}}


LLAMA3 = rope(
    "llama3", 5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip
YARN = rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=128)
CASES = {
    "qwen2-0.5b": (QWEN2, dict(num_key_value_heads=2, tie_word_embeddings=True, **rope("default", 1e6))),
    "qwen2-7b": (QWEN2, dict(num_key_value_heads=3, **rope("default", 1e6), rms_norm_eps=1e-5)),
    "qwen2-yarn": (QWEN2, dict(num_key_value_heads=2, **YARN)),
    "qwen2-yarn-options": (
        QWEN2,
        dict(
            num_key_value_heads=2,
            **rope(
                "yarn", 1e4, factor=3.0, original_max_position_embeddings=64, beta_fast=20.0,
                beta_slow=0.5, truncate=False, attention_factor=1.7,
            ),
        ),
    ),
    "qwen2-window-disabled": (
        QWEN2,
        dict(num_key_value_heads=6, use_sliding_window=True, sliding_window=4, max_window_layers=3),
    ),
    "qwen3-0.6b": (QWEN3, dict(num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)),
    "qwen3-8b": (QWEN3, dict(num_key_value_heads=3, head_dim=8, **rope("default", 1e6))),
    "qwen3-bias": (QWEN3, dict(num_key_value_heads=1, head_dim=24, attention_bias=True)),
    "qwen3-yarn-mscale": (
        QWEN3,
        dict(
            num_key_value_heads=2, head_dim=16,
            **rope(
                "yarn", 1e6, factor=4.0, original_max_position_embeddings=128, mscale=0.7,
                mscale_all_dim=1.3,
            ),
        ),
    ),
    "llama3-8b": (LLAMA, dict(num_key_value_heads=2, **rope("default", 5e5), rms_norm_eps=1e-5)),
    "llama3.1-8b": (LLAMA, dict(num_key_value_heads=3, **LLAMA3)),
    "llama3.2-1b": (LLAMA, dict(num_key_value_heads=2, tie_word_embeddings=True, **LLAMA3)),
    "llama-wide-heads": (LLAMA, dict(num_key_value_heads=2, head_dim=16)),
    "llama-biases": (LLAMA, dict(num_key_value_heads=6, attention_bias=True, mlp_bias=True)),
    "llama-yarn": (LLAMA, dict(num_key_value_heads=1, **YARN)),
}  # fmt: skip


def make_torch(case: str, seed: int = 0):
    """A random model. Norms and biases are random too, so that a lost one shows in the logits."""
    kind, changes = CASES[case]
    torch.manual_seed(seed)
    # A deep copy of the rotary settings: the config class writes into them.
    changes = {k: dict(v) if isinstance(v, dict) else v for k, v in changes.items()}
    model = transformers.AutoModelForCausalLM.from_config(kind(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (parameter.dim() == 1))
    return model


def tokens(seed: int, length: int = 29, rows: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length))


def logits(config, params, ids, positions=None, segment_ids=None) -> np.ndarray:
    """Our logits, from the training path; float32 [B, T, V]."""
    ids = jnp.asarray(ids)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    segment_ids = jnp.ones_like(ids) if segment_ids is None else jnp.asarray(segment_ids)
    attend = segment_attend(segment_ids)
    states = decoder.hidden(config, params, ids, jnp.asarray(positions), attend)
    return np.asarray(decoder.head(config, params, states))


def torch_logits(model, ids, positions=None) -> np.ndarray:
    """Logits of transformers. Without a mask it would take a jump in positions for a new sequence."""
    more = {} if positions is None else {"position_ids": torch.tensor(positions)}
    mask = torch.ones(ids.shape, dtype=torch.long)
    with torch.no_grad():
        return model(torch.tensor(ids), attention_mask=mask, **more).logits.float().numpy()
