"""Mesh and sharding rules: one list of (regex, spec) for parameters, optimizer state, adapters and
batches; and how weights get from the trainer to the sampler. Pages of keys and values are divided by heads
along the same mesh's "tensor" axis (sampling/gathered.py, sampling/paged.py)."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.settings import MeshConfig

AXES = ("data", "fsdp", "tensor")

# Matched against the path of a leaf with re.search; the optimizer state's paths contain the
# parameter's, so its moments are placed like the parameter itself.
BATCH = P(("data", "fsdp"))
RULES: tuple[tuple[str, P], ...] = (
    (r"embed/embedding$", P("tensor", "fsdp")),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r"attn/[qkv]_proj/kernel$", P("fsdp", "tensor")),
    (r"attn/[qkv]_proj/bias$", P("tensor")),
    (r"attn/o_proj/kernel$", P("tensor", "fsdp")),
    (r"mlp/(gate|up)_proj/kernel$", P("fsdp", "tensor")),
    (r"mlp/down_proj/kernel$", P("tensor", "fsdp")),
    (r"mlp/(gate|up)_proj/bias$", P("tensor")),
    (r"(o|down)_proj/bias$", P()),
    # Adapters: the side of the rank is whole, the other one like the kernel's.
    (r"(o|down)_proj/lora/lora_a$", P("tensor")),
    (r"(o|down)_proj/lora/lora_b$", P(None, "fsdp")),
    (r"lora/lora_a$", P("fsdp")),
    (r"lora/lora_b$", P(None, "tensor")),
    (r"norm/scale$", P()),
    (r"(^|/)(count|step|nonfinite)$", P()),  # scalars of the optimizer and the train state
    (r"^batch/", BATCH),  # rows
)


def make_mesh(sizes: Mapping[str, int], devices: Any = None) -> Mesh:
    """A mesh with axes data, fsdp and tensor over the devices in their order; -1 takes those left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    return _mesh(np.asarray(devices).reshape(_mesh_shape(sizes, len(devices))))


def train_mesh(config: MeshConfig, devices: Any = None) -> Mesh:
    """`make_mesh` over all devices of a run; chips of a TPU slice are neighbours along the axes.

    jax numbers a slice's chips row by row, whatever the wiring. Several slices lie along "data", the
    axis with the least to send, if it divides by their number; otherwise one after the other.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = dataclasses.asdict(config)
    devices = jax.devices() if devices is None else devices
    sizes = sizes if isinstance(sizes, dict) else dict(vars(sizes))  # until TrainConfig is merged
    shape = _mesh_shape(sizes, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform != "tpu" or shape[0] % slices:
        return make_mesh(sizes, devices)
    if slices == 1:
        return _mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True))
    within, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
    return _mesh(
        mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    )


def _mesh_shape(sizes: Mapping[str, int], count: int) -> tuple[int, ...]:
    shape = [int(sizes[name]) for name in AXES]
    text = ", ".join(f"{name} = {sizes[name]}" for name in AXES)
    known = int(np.prod([s for s in shape if s != -1]))
    if shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape) or count % known:
        raise UserError(f"train.mesh: {text} does not divide {count} devices")
    shape = [count // known if s == -1 else s for s in shape]
    if int(np.prod(shape)) != count:
        raise UserError(f"train.mesh: {text} does not make up {count} devices")
    return tuple(shape)


def _mesh(devices: np.ndarray) -> Mesh:
    # Auto, not the default Explicit axes: the model's plain indexing is not written for those.
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _path(path: Any) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def check_mesh(config: ModelConfig, mesh: Mesh) -> None:
    """Refuses a mesh that would cut heads in two.

    Raises:
      UserError: tensor does not divide the number of (key-value) heads.
    """
    tensor = mesh.shape["tensor"]
    for name in ("num_heads", "num_kv_heads"):
        if getattr(config, name) % tensor:
            raise UserError(
                f"train.mesh.tensor = {tensor}: must divide the model's {name} ="
                f" {getattr(config, name)}"
            )


def stacked_shardings(layers: Any, mesh: Mesh) -> Any:
    """Shardings of a layer's parameters with all layers stacked in front: [layers, ...]."""

    def place(path, leaf) -> NamedSharding:
        name = _path(path)
        return NamedSharding(mesh, P(None, *_spec(name, leaf.shape[1:], mesh)))

    return jax.tree_util.tree_map_with_path(place, layers)


def cast(params: Any, dtype: Any) -> Any:
    """Parameters in another dtype, with the shardings they have; the same arrays if they have the dtype."""
    leaves, tree = jax.tree.flatten(params)
    if all(x.dtype == dtype for x in leaves):
        return params
    places = tuple(x.sharding for x in leaves)
    return jax.tree.unflatten(tree, _placer(np.dtype(dtype).name, places, False)(leaves))


@functools.lru_cache(maxsize=8)
def _placer(
    dtype: str, places: tuple[Any, ...], copy: bool
) -> Callable[[Sequence[Any]], list[Any]]:
    """Gives arrays a dtype and shardings; kept, so that it compiles once for the same shapes.

    `copy`: also arrays that have both already. Without it jax returns those as they are.
    """

    def place(leaves: Sequence[Any]) -> list[Any]:
        narrowed = [x.astype(dtype) for x in leaves]
        return [jnp.copy(x) for x in narrowed] if copy else narrowed

    return jax.jit(place, out_shardings=list(places))


def hand_over(
    params: Any, tensor: int, dtype: Any = None, copy: bool = False
) -> Callable[[Any], Any]:
    """The trainer's parameters for the samplers: cast and resharded once, on the devices.

    Every `tensor` devices of each process, in the order of jax.local_devices(), come to hold a whole
    copy. Nothing passes through the host. All processes call it. Handing over the same shapes again
    compiles nothing.

    Args:
      params: on all devices of the training mesh.
      tensor: devices of a copy; divides the number of devices of a process.
      dtype: of the copies; None keeps the parameters'.
      copy: share no memory with `params`: training goes on, and a step donates what it starts from.

    Returns:
      load(shardings): the copy that lies on the devices of those shardings (a tree like the
      parameters, on `tensor` devices that hold a copy); nothing is moved.
    """
    leaves, tree = jax.tree.flatten(params)
    source = leaves[0].sharding
    order = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process_index=process)
        if device in source.device_set
    ]
    # Rows along "data" hold the same weights.
    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": tensor}, order)
    targets = jax.tree.leaves(shardings_for(params, mesh))
    name = np.dtype(leaves[0].dtype if dtype is None else dtype).name
    own = list(source.mesh.devices.flat) if isinstance(source, NamedSharding) else order
    if own == order:
        copies = _placer(name, tuple(targets), copy)(leaves)
    else:  # a TPU slice may number its devices across the hosts; one program wants one order
        places = tuple(x.sharding for x in leaves)
        copies = jax.device_put(_placer(name, places, copy)(leaves), targets)
    return functools.partial(_take, copies, tree)


def _take(copies: Sequence[Any], tree: Any, shardings: Any) -> Any:
    """The copy on the devices of `shardings`, made of the parts that lie there."""

    def take(x: Any, to: Any) -> Any:
        parts = {shard.device: shard.data for shard in x.addressable_shards}
        own = [parts[device] for device in to.addressable_devices_indices_map(x.shape)]
        return jax.make_array_from_single_device_arrays(x.shape, to, own)

    return jax.tree.map(take, jax.tree.unflatten(tree, copies), shardings)


def shardings_for(tree: Any, mesh: Mesh) -> Any:
    """A tree of NamedShardings for parameters, a whole train state or {"batch": ...}.

    Raises:
      ValueError: a leaf that no rule matches.
      UserError: the mesh does not divide a dimension.
    """

    def place(path, leaf) -> NamedSharding:
        return NamedSharding(mesh, _spec(_path(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The first rule that matches."""
    for pattern, spec in RULES:
        if re.search(pattern, name):
            for size, axes in zip(shape, spec, strict=False):
                axes = axes if isinstance(axes, tuple) else (axes,) if axes else ()
                share = int(np.prod([mesh.shape[axis] for axis in axes]))
                if size % share:
                    raise UserError(
                        f"train.mesh: {', '.join(f'{a} = {mesh.shape[a]}' for a in axes)} does not"
                        f" divide {name}, whose shape is {tuple(shape)}"
                    )
            return spec
    raise ValueError(f"no sharding rule matches {name}")
