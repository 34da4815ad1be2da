"""Hugging Face directories: config.json and safetensors in, and out again so that transformers opens
them. Loading is strict both ways; pickle is never read."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import MODEL_TYPES, ModelConfig, abstract_params

# Our path -> (name in the checkpoint, transposed). {} is the layer number.
_NAMES = (
    ("embed/embedding", "model.embed_tokens.weight", False),
    ("final_norm/scale", "model.norm.weight", False),
    ("lm_head/kernel", "lm_head.weight", True),
    ("layers/{}/input_norm/scale", "model.layers.{}.input_layernorm.weight", False),
    ("layers/{}/post_norm/scale", "model.layers.{}.post_attention_layernorm.weight", False),
    *(
        (f"layers/{{}}/attn/{p}/kernel", f"model.layers.{{}}.self_attn.{p}.weight", True)
        for p in ("q_proj", "k_proj", "v_proj", "o_proj")
    ),
    *(
        (f"layers/{{}}/attn/{p}/bias", f"model.layers.{{}}.self_attn.{p}.bias", False)
        for p in ("q_proj", "k_proj", "v_proj")
    ),
    *(
        (f"layers/{{}}/mlp/{p}/kernel", f"model.layers.{{}}.mlp.{p}.weight", True)
        for p in ("gate_proj", "up_proj", "down_proj")
    ),
)


# -- config ----------------------------------------------------------------------------------------
def read_config(path: str | Path) -> ModelConfig:
    """The shape of the model in a Hugging Face directory.

    Args:
      path: directory with config.json.

    Raises:
      UserError: no such directory or file, not JSON, an unknown model_type, a missing field, or a
        field that changes the mathematics in a way that is not implemented (each named).
    """
    directory = Path(path)
    if not directory.is_dir():
        raise UserError(f"model.path = {path}: no such directory")
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(
            f"model.path = {path}: no config.json there; expected a Hugging Face model directory"
        )
    try:
        data = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("model_type") not in MODEL_TYPES:
        found = data.get("model_type") if isinstance(data, dict) else data
        raise UserError(f"{file}: model_type = {found!r}: must be one of {', '.join(MODEL_TYPES)}")
    rope = _read_rope(file, data)
    _refuse_unsupported(file, data, rope)
    heads = _number(file, data, "num_attention_heads", int)
    hidden = _number(file, data, "hidden_size", int)
    config = ModelConfig(
        model_type=data["model_type"],
        vocab_size=_number(file, data, "vocab_size", int),
        hidden_size=hidden,
        intermediate_size=_number(file, data, "intermediate_size", int),
        num_layers=_number(file, data, "num_hidden_layers", int),
        num_heads=heads,
        num_kv_heads=_number(file, data, "num_key_value_heads", int, heads),
        head_dim=_number(file, data, "head_dim", int, hidden // heads),
        rope_theta=_number(file, rope, "rope_theta", float, 10000.0),
        rms_norm_eps=_number(file, data, "rms_norm_eps", float, 1e-6),
        tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
        qkv_bias=data["model_type"] == "qwen2",
        max_position_embeddings=_number(file, data, "max_position_embeddings", int),
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
    """A positive number of the config; null counts as absent when there is a default."""
    value = data.get(name)
    if value is None and default is not None:
        value = default
    elif name not in data:
        raise UserError(f"{file}: field {name!r} is missing")
    try:
        number = kind(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: {name} = {value!r}: not a number") from error
    if not number > 0:
        raise UserError(f"{file}: {name} = {value!r}: must be above zero")
    return number


def _read_rope(file: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings, wherever they stand: transformers 5 writes rope_parameters, older
    versions rope_scaling and a rope_theta of its own. When both are there transformers takes
    rope_scaling."""
    name = "rope_scaling" if data.get("rope_scaling") else "rope_parameters"
    rope = data.get(name) or {}
    if not isinstance(rope, dict) or any(isinstance(v, dict) for v in rope.values()):
        raise UserError(f"{file}: {name} = {rope!r} is not supported; it must be one flat object")
    outside = {k: data[k] for k in ("rope_theta", "partial_rotary_factor") if k in data}
    return outside | rope


def _refuse_unsupported(file: Path, data: dict[str, Any], rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    rotated = rope.get("partial_rotary_factor")
    layers = sorted(set(data.get("layer_types") or ()) - {"full_attention"})
    refused = (
        ("rope_type", kind, kind in (None, "default"), "default"),
        ("partial_rotary_factor", rotated, rotated in (None, 1), "1 or absent"),
        ("hidden_act", data.get("hidden_act", "silu"), data.get("hidden_act", "silu") == "silu", "silu"),
        ("use_sliding_window", data.get("use_sliding_window"), not data.get("use_sliding_window"), "false"),
        ("layer_types", layers, not layers, "full_attention everywhere"),
        ("mlp_bias", data.get("mlp_bias"), not data.get("mlp_bias"), "false"),
        ("quantization_config", "set", not data.get("quantization_config"), "absent"),
        (
            "attention_bias", data.get("attention_bias"),
            data["model_type"] != "llama" or not data.get("attention_bias"), "false",
        ),
    )  # fmt: skip
    for name, value, accepted, allowed in refused:
        if not accepted:
            raise UserError(f"{file}: {name} = {value!r} is not supported; it must be {allowed}")


def _write_config(directory: Path, config: ModelConfig, dtype: str, tokenizer) -> None:
    architecture = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[config.model_type]
    data = {
        "architectures": [architecture],
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
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "attention_bias": False,
        "dtype": dtype,
    }
    generation: dict[str, Any] = {"do_sample": True}
    if tokenizer is not None:
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        data |= ids
        generation |= ids
    (directory / "config.json").write_text(json.dumps(data, indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


# -- weights ---------------------------------------------------------------------------------------
def _path(path) -> str:
    return "/".join(str(k.key) for k in path)


def _hub_name(path: str) -> tuple[str, bool]:
    """(name in the checkpoint, transposed) of one of our parameters."""
    number = re.search(r"layers/(\d+)/", path)
    generic = re.sub(r"layers/\d+/", "layers/{}/", path)
    for ours, theirs, transposed in _NAMES:
        if ours == generic:
            return theirs.format(number.group(1)) if number else theirs, transposed
    raise KeyError(path)


@contextlib.contextmanager
def _open_weights(directory: Path) -> Iterator[dict[str, Any]]:
    """Memory-maps all safetensors files: tensor name -> open file."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{index}: not an index of safetensors files") from error
    else:
        files = ["model.safetensors"]
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for name in files:
            file = directory / name
            if not file.is_file():
                raise UserError(f"{file}: missing; only safetensors checkpoints are read")
            try:
                opened = stack.enter_context(safe_open(str(file), framework="numpy"))
                tensors |= dict.fromkeys(opened.keys(), opened)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: not a readable safetensors file: {error}") from error
        yield tensors


def load_params(path: str | Path, config: ModelConfig, dtype, shardings=None) -> dict:
    """Reads the weights, one tensor at a time, straight into place.

    Args:
      path: Hugging Face directory (one safetensors file, or shards with an index).
      config: its shape, from `read_config`.
      dtype: dtype of the returned arrays.
      shardings: tree of shardings like the parameters, or None for the default device.

    Raises:
      UserError: files missing or unreadable, or names and shapes that do not fit: one error that
        lists everything missing, unexpected and misshapen.
    """
    directory = Path(path)
    wanted = abstract_params(config, dtype)
    flat, structure = jax.tree_util.tree_flatten_with_path(wanted)
    places = [None] * len(flat) if shardings is None else structure.flatten_up_to(shardings)
    with _open_weights(directory) as tensors:
        names = [_hub_name(_path(p)) for p, _ in flat]
        shapes = {
            name: tuple(reversed(leaf.shape)) if transposed else tuple(leaf.shape)
            for (name, transposed), (_, leaf) in zip(names, flat, strict=True)
        }
        # Old checkpoints carry rotary tables, and tied ones may repeat the embedding as the head.
        ignored = {n for n in tensors if n.endswith("rotary_emb.inv_freq")}
        if config.tie_word_embeddings:
            ignored.add("lm_head.weight")
        problems = [f"missing {n}" for n in sorted(set(shapes) - set(tensors))]
        problems += [f"unexpected {n}" for n in sorted(set(tensors) - set(shapes) - ignored)]
        for name in sorted(set(shapes) & set(tensors)):
            found = tuple(tensors[name].get_slice(name).get_shape())
            if found != shapes[name]:
                problems.append(f"{name} has shape {found}, expected {shapes[name]}")
        head, embedding = "lm_head.weight", "model.embed_tokens.weight"
        if config.tie_word_embeddings and head in tensors and embedding in tensors:
            # transformers then keeps the two apart: a tied model would give other logits.
            both = [tensors[n].get_tensor(n) for n in (head, embedding)]
            if not np.array_equal(*both):
                problems.append(
                    f"{head} differs from {embedding} though tie_word_embeddings = true"
                )
        if problems:
            raise UserError(f"{directory}: weights do not fit config.json: {'; '.join(problems)}")
        leaves = []
        for (name, transposed), place in zip(names, places, strict=True):
            tensor = tensors[name].get_tensor(name)
            # On the host until it is placed: a whole matrix may not fit one device.
            tensor = (tensor.T if transposed else tensor).astype(jnp.dtype(dtype))
            leaves.append(jax.device_put(tensor, place))
    return jax.tree_util.tree_unflatten(structure, leaves)


def save(path: str | Path, config: ModelConfig, params, tokenizer=None) -> None:
    """Writes a directory that transformers' Auto classes open.

    It is written beside `path` and renamed, so a half-written model is never found there; an
    existing directory is replaced.

    Args:
      path: the directory to make.
      config, params: the model; dtypes are kept.
      tokenizer: saved beside it when given.
    """
    directory = Path(path)
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {}
    for leaf_path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name, transposed = _hub_name(_path(leaf_path))
        array = np.asarray(leaf)
        tensors[name] = np.ascontiguousarray(array.T if transposed else array)
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    _write_config(partial, config, tensors["model.norm.weight"].dtype.name, tokenizer)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(partial))
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
