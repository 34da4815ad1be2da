"""Mesh and sharding rules: one list of (regex, spec) for parameters, optimizer state and export."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leafe_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# Matched against the path of a leaf with re.search; the optimizer state's paths contain the
# parameter's, so its moments are placed like the parameter itself.
RULES: tuple[tuple[str, P], ...] = (
    (r"embed/embedding$", P("tensor", "fsdp")),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r"attn/[qkv]_proj/kernel$", P("fsdp", "tensor")),
    (r"attn/[qkv]_proj/bias$", P("tensor")),
    (r"attn/o_proj/kernel$", P("tensor", "fsdp")),
    (r"mlp/(gate|up)_proj/kernel$", P("fsdp", "tensor")),
    (r"mlp/down_proj/kernel$", P("tensor", "fsdp")),
    (r"norm/scale$", P()),
    (r"(^|/)(count|step)$", P()),  # scalars of the optimizer and the train state
)
BATCH = P(("data", "fsdp"))


def make_mesh(sizes: dict[str, int], devices=None) -> Mesh:
    """A mesh with axes data, fsdp and tensor; -1 takes the devices that are left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes[name]) for name in AXES]
    text = ", ".join(f"{name} = {sizes[name]}" for name in AXES)
    known = int(np.prod([s for s in shape if s != -1]))
    if shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape) or len(devices) % known:
        raise UserError(f"train.mesh: {text} does not divide {len(devices)} devices")
    shape = [len(devices) // known if s == -1 else s for s in shape]
    if int(np.prod(shape)) != len(devices):
        raise UserError(f"train.mesh: {text} does not make up {len(devices)} devices")
    # Auto, not the default Explicit axes: the model's plain indexing is not written for those.
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _path(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def shardings_for(tree: Any, mesh: Mesh) -> Any:
    """A tree of NamedShardings for parameters or a whole train state.

    Raises:
      ValueError: a leaf that no rule matches.
      UserError: the mesh does not divide a dimension.
    """

    def place(path, leaf) -> NamedSharding:
        name = _path(path)
        for pattern, spec in RULES:
            if re.search(pattern, name):
                _check(name, leaf.shape, spec, mesh)
                return NamedSharding(mesh, spec)
        raise ValueError(f"no sharding rule matches {name}")

    return jax.tree_util.tree_map_with_path(place, tree)


def _check(name: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> None:
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise UserError(
                f"train.mesh.{axis} = {mesh.shape[axis]}: does not divide {name}, whose shape is"
                f" {tuple(shape)}"
            )
