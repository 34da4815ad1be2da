"""What training begins with: a model, data, and a check of the settings against both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from leafe_jax.errors import UserError
from leafe_jax.models import lora
from leafe_jax.models.decoder import ModelConfig, abstract_params
from leafe_jax.models.sharding import shardings_for, train_mesh
from leafe_jax.training.settings import TrainConfig
from leafe_jax.training.step import (
    StepOptions,
    step_options,
)
from leafe_jax.types import Example

LoadParams = Callable[[Any, Any], Any]


def place(params: Any) -> LoadParams:
    """A `Start.load_params` for parameters that are in memory: it gives a copy, cast and placed."""

    def load(dtype: Any, shardings: Any) -> Any:
        return jax.jit(
            lambda p: jax.tree.map(lambda x: x.astype(dtype), p), out_shardings=shardings
        )(jax.tree.map(np.asarray, params))

    return load


@dataclasses.dataclass(frozen=True)
class Start:
    """The weights that a training run starts from.

    Attributes:
      config: the model, without adapters.
      load_params: load_params(dtype, shardings) gives the weights. It is not called if a checkpoint has
        them all. The trainer uses their memory.
    """

    config: ModelConfig
    load_params: LoadParams


@dataclasses.dataclass(frozen=True)
class Data:
    """Examples of several sources.

    Attributes:
      examples: training data, e.g. an ExampleFile.
      weights: name -> weight of each source's loss, in the order of Example.source.
    """

    examples: Sequence[Example]
    weights: Mapping[str, float]


def check(train: TrainConfig, model_config: ModelConfig) -> tuple[Mesh, ModelConfig, StepOptions]:
    """What a training config means for a model on these devices.

    Args:
      train: the settings.
      model_config: the model, without adapters.

    Returns:
      (mesh over all devices, model with the adapters of train.lora, options of the step).

    Raises:
      UserError: a field does not go with the devices or the model.
    """
    mesh = train_mesh(train.mesh)
    model_config = lora.with_adapters(model_config, train.lora)
    options = step_options(train, model_config, mesh)
    shardings_for(abstract_params(model_config), mesh)
    return mesh, model_config, options


def agree(digest: str) -> None:
    """All processes must train on the same examples: they read the file, each for itself."""
    own = np.frombuffer(bytes.fromhex(digest), np.uint8)
    every = multihost_utils.process_allgather(own, tiled=False)
    other = np.flatnonzero((every != every[0]).any(axis=1))
    if other.size:
        raise UserError(
            f"train: process {other[0]} reads other examples than process 0: all need the same files"
        )


def own_rows(sharding: NamedSharding, shape: tuple[int, int]) -> list[int]:
    """Rows of a batch that this process's devices hold, ascending."""
    rows: set[int] = set()
    for index in sharding.addressable_devices_indices_map(shape).values():
        assert index is not None, "every device holds rows"
        rows |= set(range(*index[0].indices(shape[0])))
    return sorted(rows)
