"""Reads config.json of a Hugging Face model directory into a `ModelConfig`, and writes it from one.

Every field that changes the computation is either implemented or refused by name. An absent field has
the default of transformers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import MODEL_TYPES, ModelConfig
from leafe_jax.models.rope import Llama3Scaling, RopeScaling, YarnScaling
from leafe_jax.runtime.model_files import check_directory, read_json, shown

# Several times the sizes of the largest known model. Without these limits an absurd config would take
# minutes before it turns out not to fit the weights.
_LARGEST = {
    "num_hidden_layers": 1024, "num_attention_heads": 2**12, "num_key_value_heads": 2**12,
    "head_dim": 2**12, "hidden_size": 2**18, "intermediate_size": 2**20, "vocab_size": 2**23,
}  # fmt: skip
_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}


def read_config(path: str | Path) -> ModelConfig:
    """The shape of the model in a Hugging Face directory.

    Args:
      path: directory with config.json.

    Raises:
      UserError: the directory or file is missing, is not JSON, has an unknown model_type, lacks a
        field, or has a field that changes the computation in a way that is not implemented.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise UserError(f"model.path = {path}: no such directory")
    file = directory / "config.json"
    if not file.exists():
        raise UserError(
            f"model.path = {path}: no config.json there; expected a Hugging Face model directory"
        )
    check_directory(directory)
    data = read_json(file)
    kind = data.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{file}: model_type = {shown(kind)}: must be one of {', '.join(MODEL_TYPES)}"
        )
    rope = _read_rope(file, data)
    _refuse_unsupported(file, data, rope)
    heads = _number(file, data, "num_attention_heads", int)
    if kind != "llama" and "num_key_value_heads" not in data:
        raise UserError(f"{file}: field 'num_key_value_heads' is missing")
    hidden = _number(file, data, "hidden_size", int)
    limit = _number(file, data, "max_position_embeddings", int)
    theta = _number(file, rope, "rope_theta", float, 10000.0)
    scaling = _read_scaling(file, rope, limit)
    # Qwen2 always has biases on q, k and v only, and ignores this field.
    attention_bias = _flag(file, data, "attention_bias") and kind != "qwen2"
    config = ModelConfig(
        model_type=kind,
        vocab_size=_number(file, data, "vocab_size", int),
        hidden_size=hidden,
        intermediate_size=_number(file, data, "intermediate_size", int),
        num_layers=_number(file, data, "num_hidden_layers", int),
        num_heads=heads,
        num_kv_heads=_number(file, data, "num_key_value_heads", int, heads),
        head_dim=_number(
            file, data, "head_dim", int, 128 if kind == "qwen3" else max(hidden // heads, 1)
        ),
        rope_theta=theta,
        rms_norm_eps=_number(file, data, "rms_norm_eps", float, 1e-6),
        tie_word_embeddings=_flag(file, data, "tie_word_embeddings"),
        # Qwen2.5's recipe for YaRN leaves max_position_embeddings at the length of pretraining.
        max_position_embeddings=(
            max(limit, int(scaling.factor * scaling.original_max_position))
            if isinstance(scaling, YarnScaling)
            else limit
        ),
        rope_scaling=scaling,
        attention_bias=attention_bias,
        mlp_bias=_flag(file, data, "mlp_bias") and kind == "llama",
    )
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f"{file}: num_key_value_heads = {config.num_kv_heads}: must divide"
            f" num_attention_heads = {config.num_heads}"
        )
    if config.head_dim % 2:
        raise UserError(f"{file}: head_dim = {config.head_dim}: must be even (rotary halves)")
    return config


def _number(file: Path, data: dict[str, Any], name: str, kind: type, default=None):
    """A positive number from the config. If there is a default, null counts as absent."""
    value = data.get(name)
    if value is None and default is not None:
        value = default
    elif name not in data:
        raise UserError(f"{file}: field {name!r} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{file}: {name} = {shown(value)}: not a number")
    if not 0 < value < math.inf or (kind is int and value != int(value)):
        what = "a whole number above zero" if kind is int else "a number above zero"
        raise UserError(f"{file}: {name} = {shown(value)}: must be {what}")
    # 2**31 - 1, because positions are int32 on the device.
    largest = _LARGEST.get(name, 2**31 - 1 if kind is int else 1e30)
    if value > largest:
        raise UserError(f"{file}: {name} = {shown(value)}: must be at most {largest}")
    return kind(value)


def _flag(file: Path, data: dict[str, Any], name: str, default: bool = False) -> bool:
    """A boolean field; null and absent give the default. Strings are refused: "false" is truthy."""
    value = data.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise UserError(f"{file}: {name} = {shown(value)}: must be true or false")
    return value


def _read_rope(file: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings, from wherever the config has them.

    transformers 5 writes rope_parameters; older versions write rope_scaling, and rope_theta at the top
    level. If both are present, transformers uses rope_scaling.
    """
    name = "rope_scaling" if data.get("rope_scaling") else "rope_parameters"
    rope = data.get(name) or {}
    if not isinstance(rope, dict) or any(isinstance(v, dict) for v in rope.values()):
        raise UserError(
            f"{file}: {name} = {shown(rope)} is not supported; it must be one flat object"
        )
    outside = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    # At the top level, only original_max_position_embeddings overrides the value inside: transformers
    # has this rule for Phi-3.
    inside = {k: v for k, v in rope.items() if k != outside[2] or k not in data}
    return {k: data[k] for k in outside if k in data} | inside


def _read_scaling(file: Path, rope: dict[str, Any], limit: int) -> RopeScaling | None:
    kind = _rope_type(rope)
    if kind == "default":
        return None
    factor = _number(file, rope, "factor", float)
    if factor < 1:
        raise UserError(f"{file}: factor = {factor}: must be at least 1")
    original = _number(file, rope, "original_max_position_embeddings", int, limit)
    if kind == "llama3":
        low = _number(file, rope, "low_freq_factor", float)
        high = _number(file, rope, "high_freq_factor", float)
        if not low < high:
            raise UserError(f"{file}: high_freq_factor = {high}: must be above {low}")
        return Llama3Scaling(factor, low, high, original)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=_number(file, rope, "beta_fast", float, 32.0),
        beta_slow=_number(file, rope, "beta_slow", float, 1.0),
        truncate=_flag(file, rope, "truncate", True),
        attention_factor=_number(
            file, rope, "attention_factor", float, _yarn_attention_factor(file, rope, factor)
        ),
    )


def _yarn_attention_factor(file: Path, rope: dict[str, Any], factor: float) -> float:
    """The default attention factor: 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22), or the ratio of
    two such terms if the config has DeepSeek's mscale fields."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    if not (rope.get("mscale") and rope.get("mscale_all_dim")):
        return scale(1.0)
    above, below = (_number(file, rope, name, float) for name in ("mscale", "mscale_all_dim"))
    return scale(above) / scale(below)


def _rope_type(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type")) or "default"


def _sliding_layers(file: Path, data: dict[str, Any]) -> Any:
    """The value that gives some layer a sliding window, or None if all layers attend to everything."""
    types = data.get("layer_types")
    if types is not None and not (
        isinstance(types, list) and all(isinstance(kind, str) for kind in types)
    ):
        raise UserError(f"{file}: layer_types = {shown(types)}: must be a list of names")
    layers = _number(file, data, "num_hidden_layers", int)
    if types and len(types) != layers:
        raise UserError(
            f"{file}: layer_types has {len(types)} names: must be one for each of the"
            f" num_hidden_layers = {layers}"
        )
    named = sorted(set(types or ()) - {"full_attention"})
    if named or types or not _flag(file, data, "use_sliding_window"):
        return named or None
    # As in transformers, the first max_window_layers layers attend to everything, later ones to a window.
    window, first = data.get("sliding_window", 4096), data.get("max_window_layers", 28)
    if type(first) is not int:
        raise UserError(f"{file}: max_window_layers = {shown(first)}: must be a whole number")
    return window if window and first < layers else None


def _refuse_unsupported(file: Path, data: dict[str, Any], rope: dict[str, Any]) -> None:
    """Raises UserError for the first field that asks for a computation that is not implemented."""
    rope_type, rotated = _rope_type(rope), rope.get("partial_rotary_factor")
    sliding, act = _sliding_layers(file, data), data.get("hidden_act", "silu")
    dropout = data.get("attention_dropout")
    refused = (
        ("rope_type", rope_type, rope_type in ("default", "llama3", "yarn"), "default, llama3 or yarn"),
        ("partial_rotary_factor", rotated, rotated in (None, 1), "1 or absent"),
        ("hidden_act", act, act == "silu", "silu"),
        ("sliding_window", sliding, sliding is None, "disabled (use_sliding_window = false)"),
        ("attention_dropout", dropout, not dropout, "0"),
        ("quantization_config", "set", not data.get("quantization_config"), "absent"),
    )  # fmt: skip
    for name, value, accepted, allowed in refused:
        if not accepted:
            raise UserError(
                f"{file}: {name} = {shown(value)} is not supported; it must be {allowed}"
            )


def config_json(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json for a model: enough for transformers and for `read_config`."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    scaling = config.rope_scaling
    if scaling is not None:
        rope["factor"] = scaling.factor
        rope["original_max_position_embeddings"] = scaling.original_max_position
    if isinstance(scaling, Llama3Scaling):
        rope |= {
            "rope_type": "llama3",
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    elif isinstance(scaling, YarnScaling):
        rope |= {
            "rope_type": "yarn",
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
            "attention_factor": scaling.attention_factor,
        }
    return {
        "architectures": [_ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }
