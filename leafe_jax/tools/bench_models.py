"""Where the benchmarks get a model from: a checkpoint, or random weights that are made on the device.

--model=random:SHAPE needs no file. SHAPE is one of known_models.SHAPES.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.models import hf
from leafe_jax.models.decoder import ModelConfig, abstract_params
from leafe_jax.tools.known_models import shape_config

RANDOM = "random:"
_DEVIATION = 0.02  # as decoder.init_params; logits are then close to uniform

Load = Callable[[Any, Any], Any]  # (dtype, shardings or None) -> parameters


def find_checkpoint(model: str, dtype: str) -> Path:
    """`model` if it is a directory, else the checkpoint ckpt/NAME-DTYPE.

    Raises:
      UserError: the model has random weights, so it has no checkpoint.
    """
    if model.startswith(RANDOM):
        raise UserError(f"--model={model}: only --engine=leafe_jax takes random weights")
    return Path(model) if Path(model).is_dir() else Path("ckpt") / f"{model}-{dtype}"


def open_model(model: str, dtype: str) -> tuple[ModelConfig, Load]:
    """(config, a function that makes the parameters) of a benchmark's --model.

    Args:
      model: directory, name of a checkpoint under ./ckpt, or random:SHAPE.
      dtype: of the checkpoint, if it is given by name.

    Raises:
      UserError: there is no such model.
    """
    if model.startswith(RANDOM):
        config = shape_config(model.removeprefix(RANDOM))
        return config, lambda dtype, shardings: random_params(config, dtype, shardings)
    path = str(find_checkpoint(model, dtype))
    config = hf.read_config(path)
    return config, lambda dtype, shardings: hf.load_params(path, config, dtype, shardings)


def random_params(
    config: ModelConfig, dtype: Any, shardings: Any = None, deviation: float = _DEVIATION
) -> dict[str, Any]:
    """Random parameters, drawn where they are to be.

    `decoder.init_params` draws all of them in one program, which takes minutes to compile for a deep
    model. Here each distinct shape is one small program.

    Args:
      config: the model.
      dtype: of the parameters.
      shardings: tree of shardings that matches the parameters, or None for the default device.
      deviation: standard deviation of the matrices. Norms are one and biases zero.
    """
    shapes = abstract_params(config, dtype)
    flat, structure = jax.tree_util.tree_flatten_with_path(shapes)
    places = [None] * len(flat) if shardings is None else jax.tree.leaves(shardings)
    leaves = []
    for number, ((path, leaf), place) in enumerate(zip(flat, places, strict=True)):
        name, dtype = path[-1].key, np.dtype(leaf.dtype).name
        if name in ("scale", "bias"):
            leaves.append(jnp.full(leaf.shape, name == "scale", dtype, device=place))
            continue
        # On the default device the program is the same whatever the sharding, so it is compiled once.
        alone = place is None or place.device_set == set(jax.local_devices()[:1])
        draw = _drawer(leaf.shape, dtype, None if alone else place)
        drawn = draw(np.int32(number), np.float32(deviation))
        leaves.append(drawn if place is None else jax.device_put(drawn, place))
    return jax.tree.unflatten(structure, leaves)


@functools.lru_cache(maxsize=64)
def _drawer(shape: tuple[int, ...], dtype: str, place: Any) -> Callable[[Any, Any], Any]:
    """(number, standard deviation) -> array of independent normal numbers; the number is in the seed."""

    def draw(number: Any, deviation: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), number)
        return (deviation * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return jax.jit(draw, out_shardings=place)
