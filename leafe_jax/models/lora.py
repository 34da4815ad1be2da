"""Low-rank adapters: which parameters are trained, merging, and PEFT's file format.

The layer is Flax's nnx.LoRA (models/decoder.py), an ordinary module: scan, remat and shard_map need not
know of it. The alternative, qwix, replaces JAX's dot products while the model is traced; it would be the
choice for a quantised base.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.models import hf
from leafe_jax.models.decoder import LoRA, ModelConfig, init_params
from leafe_jax.models.settings import LoraConfig
from leafe_jax.runtime.files import put_directory_in_place


def with_adapters(config: ModelConfig, settings: LoraConfig) -> ModelConfig:
    """The model with the adapters of the settings; unchanged if rank is 0."""
    if settings.rank == 0:
        return config
    return dataclasses.replace(config, lora=LoRA(**dataclasses.asdict(settings)))


def _adapters_only(tree: dict) -> dict:
    kept = {}
    for name, value in tree.items():
        if name == "lora":
            kept[name] = value
        elif isinstance(value, dict) and (own := _adapters_only(value)):
            kept[name] = own
    return kept


def init_adapters(config: ModelConfig, key: jax.Array) -> dict:
    """Fresh adapters (A as nnx.LoRA draws it, B zero), float32, at their places in the parameters.

    XLA eliminates the other weights as dead code.
    """
    return jax.jit(lambda key: _adapters_only(init_params(config, key)))(key)


def join(frozen: dict, trained: dict) -> dict:
    """Both trees in one; they have no leaf in common."""
    joined = dict(frozen)
    for name, value in trained.items():
        joined[name] = join(joined[name], value) if name in joined else value
    return joined


def merge(config: ModelConfig, base: dict, adapters: dict) -> dict:
    """The weights with the adapters added: W + alpha / rank * A B, in float32, in W's dtype.

    A second copy of all weights would not fit beside the first, so each kernel is merged in place when
    the file's writer asks for it.

    Args:
      config, adapters: the model with its adapters, float32.
      base: the weights, a tree of hf.Unread.

    Returns:
      A tree of hf.Unread, for hf.save.
    """
    assert config.lora is not None
    scale = config.lora.alpha / config.lora.rank

    @functools.partial(jax.jit, donate_argnums=0)
    def add(kernel, a, b):
        wide = kernel.astype(jnp.float32) + scale * jnp.matmul(a, b, precision="highest")
        return wide.astype(kernel.dtype)

    def merged(kernel: hf.Unread, a, b) -> hf.Unread:
        def make():
            array, finite = kernel.make()
            return add(array, a, b), finite

        return dataclasses.replace(kernel, make=make)

    def walk(base, adapters):
        tree = dict(base)
        for name, own in adapters.items():
            if "lora" in own:
                pair = own["lora"]["lora_a"], own["lora"]["lora_b"]
                tree[name] = {**base[name], "kernel": merged(base[name]["kernel"], *pair)}
            else:
                tree[name] = walk(base[name], own)
        return tree

    return walk(base, adapters)


def merged(config: ModelConfig, base: dict, adapters: dict) -> dict:
    """The weights with the adapters added, in the base's dtype and placement, as arrays: for a sampler that
    takes new weights during training. Both copies of the weights are on the devices meanwhile.

    Args:
      config, adapters: the model with its adapters.
      base: the weights.
    """
    assert config.lora is not None
    scale = config.lora.alpha / config.lora.rank

    def add(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        wide = kernel.astype(jnp.float32) + scale * jnp.matmul(a, b, precision="highest")
        return wide.astype(kernel.dtype)

    def walk(base: dict, adapters: dict) -> dict:
        tree = dict(base)
        for name, own in adapters.items():
            if "lora" in own:
                pair = own["lora"]["lora_a"], own["lora"]["lora_b"]
                kernel = base[name]["kernel"]
                placed = jax.jit(add, out_shardings=kernel.sharding)
                tree[name] = {**base[name], "kernel": placed(kernel, *pair)}
            else:
                tree[name] = walk(base[name], own)
        return tree

    return walk(base, adapters)


def save_adapter(path: str | Path, config: ModelConfig, adapters: dict, base: str) -> None:
    """Writes adapter_model.safetensors and adapter_config.json as PEFT reads them.

    In a run of several processes all of them call it and process 0 writes.

    Args:
      path: directory to make.
      config, adapters: the model with its adapters.
      base: the base model's directory or name, for the config.
    """
    assert config.lora is not None
    directory = Path(path)
    tensors = {}
    for where, leaf in jax.tree_util.tree_flatten_with_path(adapters)[0]:
        *parts, _, matrix = [str(k.key) for k in where]
        name, _ = hf.hub_name("/".join([*parts, "kernel"]))
        letter = matrix[-1].upper()
        values = hf.to_host(leaf)
        if values is not None:
            tensors[f"base_model.model.{name.removesuffix('weight')}lora_{letter}.weight"] = (
                np.ascontiguousarray(values.T)  # [out, in], as torch's linear layers
            )
    if not tensors:  # another process writes
        return
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    hf.write_tensors(tensors, partial / "adapter_model.safetensors")
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "target_modules": sorted(config.lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (partial / "adapter_config.json").write_text(json.dumps(fields, indent=2) + "\n")
    put_directory_in_place(partial, directory)
