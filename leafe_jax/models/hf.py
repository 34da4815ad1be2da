"""Loads and saves Hugging Face model directories.

Safetensors go straight to their devices, and transformers opens what is saved. Missing and unexpected
tensors are both errors. Pickle is never read.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import math
import mmap
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig, abstract_params
from leafe_jax.models.hf_config import config_json, read_config
from leafe_jax.models.weights import INDEX, WeightFile, open_weights
from leafe_jax.runtime.files import put_directory_in_place
from leafe_jax.runtime.model_files import read_json

__all__ = [
    "MAX_SHARD_BYTES", "Unread", "load_params", "read_config", "save", "to_host", "unread_params",
]  # fmt: skip

MAX_SHARD_BYTES = 5 * 10**9
_ALIGNMENT = 64  # bytes
_NAMED = 40  # most problems that an error lists
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")

# Our path -> (name in the checkpoint, transposed). {} is the layer number.
_NAMES = {
    "embed/embedding": ("model.embed_tokens.weight", False),
    "final_norm/scale": ("model.norm.weight", False),
    "lm_head/kernel": ("lm_head.weight", True),
    "layers/{}/input_norm/scale": ("model.layers.{}.input_layernorm.weight", False),
    "layers/{}/post_norm/scale": ("model.layers.{}.post_attention_layernorm.weight", False),
    **{
        f"layers/{{}}/attn/{name}/scale": (f"model.layers.{{}}.self_attn.{name}.weight", False)
        for name in ("q_norm", "k_norm")
    },
    **{
        f"layers/{{}}/{ours}/{name}/{leaf}": (
            f"model.layers.{{}}.{theirs}.{name}.{kind}",
            transposed,
        )
        for ours, theirs, names in (("attn", "self_attn", _ATTENTION), ("mlp", "mlp", _MLP))
        for name in names
        for leaf, kind, transposed in (("kernel", "weight", True), ("bias", "bias", False))
    },
}


def _path(path) -> str:
    return "/".join(str(k.key) for k in path)


def hub_name(path: str) -> tuple[str, bool]:
    """(name in the checkpoint, whether it is transposed there) for a parameter's path."""
    number = re.search(r"layers/(\d+)/", path)
    name, transposed = _NAMES[re.sub(r"layers/\d+/", "layers/{}/", path)]
    return name.format(number.group(1)) if number else name, transposed


# -- loading ---------------------------------------------------------------------------------------
def _host_copy(view: np.ndarray) -> tuple[np.ndarray, bool]:
    """A contiguous copy, aligned so that XLA's CPU backend uses it without copying again.

    One copy is always needed: an array that aliased the mapped file would change with the file.

    Returns:
      (copy, whether all its values are finite).
    """
    if hasattr(mmap, "MAP_POPULATE") and view.nbytes >= 2**20:
        # Fault in all pages in one call: faulting page by page takes longer than reading the file.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        raw = np.frombuffer(mmap.mmap(-1, view.nbytes, flags=flags), np.uint8)
    else:
        raw = np.empty(view.nbytes + _ALIGNMENT, np.uint8)
        raw = raw[-raw.ctypes.data % _ALIGNMENT :][: view.nbytes]
    out = raw.view(view.dtype).reshape(view.shape)
    # Copy a few rows of the file at a time, so that the check finds them in the CPU cache. Rows of the
    # file are columns of a transposed view; going along its rows would miss the cache.
    transposed = view.ndim == 2 and view.strides[0] < view.strides[1]
    source, target = (view.T, out.T) if transposed else (view, out)
    finite = True
    for i in range(0, len(source), 64):
        rows = source[i : i + 64]
        target[i : i + 64] = rows
        finite = finite and bool(np.isfinite(rows).all())
    return out, finite


def _place(file: WeightFile, name: str, transposed: bool, dtype, sharding: Sharding):
    """One tensor on its devices; each device gets its part straight from the mapped file.

    Returns:
      (array, whether all its values are finite).
    """
    view = file.view(name)
    view = view.T if transposed else view
    pieces, finite = [], True
    for device, part in sharding.addressable_devices_indices_map(view.shape).items():
        copy, good = _host_copy(view[part])
        pieces.append(jax.device_put(copy, device).astype(dtype))
        finite = finite and good
    file.forget(name)
    return jax.make_array_from_single_device_arrays(view.shape, sharding, pieces), finite


def _check_layers(directory: Path, config: ModelConfig, tensors: dict[str, WeightFile]) -> None:
    """Raises UserError if config.json has far more layers than the weights.

    It runs before the tree of all parameters is built, which would be huge for such a config.
    """
    found = {
        int(n.group(1)) for name in tensors if (n := re.match(r"model\.layers\.(\d{1,9})\.", name))
    }
    if len(found) < config.num_layers and max(found, default=0) < config.num_layers // 2:
        raise UserError(
            f"{directory}: weights do not fit config.json: num_hidden_layers = {config.num_layers},"
            f" but the weights have {len(found)} layers"
        )


def _check_names(
    directory: Path, config: ModelConfig, tensors: dict[str, WeightFile], shapes: dict[str, Any]
) -> None:
    """Raises one UserError that lists all missing and unexpected tensors and all wrong shapes."""
    # Old checkpoints contain rotary tables, and tied ones may repeat the embedding as the head.
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    ignored = {n for n in tensors if n.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings:
        ignored.add(head)
    problems = [f"missing {n}" for n in sorted(set(shapes) - set(tensors))]
    problems += [
        f"unexpected {n} in {tensors[n].path.name}"
        for n in sorted(set(tensors) - set(shapes) - ignored)
    ]
    for name in sorted(set(shapes) & set(tensors)):
        found = tuple(tensors[name].header[name]["shape"])
        if found != shapes[name]:
            problems.append(
                f"{name} in {tensors[name].path.name} has shape {found}, expected {shapes[name]}"
            )
        tensors[name].check_dtype(name)
    if config.tie_word_embeddings and head in tensors and embedding in tensors:
        # transformers does not tie them in this case, so a tied model would give other logits.
        if not np.array_equal(*(tensors[n].view(n) for n in (head, embedding))):
            problems.append(f"{head} differs from {embedding} though tie_word_embeddings = true")
    if problems:
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise UserError(
            f"{directory}: weights do not fit config.json: {'; '.join(problems[:_NAMED])}{more}"
        )


@dataclasses.dataclass(frozen=True)
class Unread:
    """A parameter that is read on demand, so that a model can be larger than memory.

    Attributes:
      shape, dtype: of the array that `make` returns.
      file: name of the file that holds it.
      make: reads it and returns (array, whether all its values are finite).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    file: str
    make: Callable[[], tuple[jax.Array, bool]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def unread_params(path: str | Path, config: ModelConfig, dtype, shardings=None) -> dict:
    """The tree that `load_params` returns, with Unread leaves: no weights are read yet.

    Args:
      path, config, dtype, shardings: as for `load_params`.

    Raises:
      UserError: files are missing, unreadable or disagree with their index; or names or shapes do not
        match the config (one error lists them all).
    """
    directory = Path(path)
    tensors = open_weights(directory)
    _check_layers(directory, config, tensors)
    flat, structure = jax.tree_util.tree_flatten_with_path(abstract_params(config, dtype))
    single = SingleDeviceSharding(jax.local_devices()[0])
    places = [single] * len(flat) if shardings is None else structure.flatten_up_to(shardings)
    names = [hub_name(_path(p)) for p, _ in flat]
    shapes = {
        name: tuple(reversed(leaf.shape)) if transposed else tuple(leaf.shape)
        for (name, transposed), (_, leaf) in zip(names, flat, strict=True)
    }
    _check_names(directory, config, tensors, shapes)
    dtype = np.dtype(dtype)
    leaves = [
        Unread(
            leaf.shape, dtype, tensors[name].path.name,
            functools.partial(_place, tensors[name], name, transposed, dtype, place),
        )
        for (name, transposed), (_, leaf), place in zip(names, flat, places, strict=True)
    ]  # fmt: skip
    return jax.tree_util.tree_unflatten(structure, leaves)


def load_params(path: str | Path, config: ModelConfig, dtype, shardings=None) -> dict:
    """The weights of a model directory, each tensor loaded straight into its sharding.

    A process reads only the parts that its own devices hold. Besides the arrays it needs memory for
    about the largest tensor.

    Args:
      path: Hugging Face directory (one safetensors file, or shards with an index).
      config: the model's shape, from `read_config`.
      dtype: of the returned arrays.
      shardings: tree of shardings that matches the parameters, or None for the default device.

    Raises:
      UserError: as `unread_params`; or some values are not finite (one error lists all tensors).
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(
        unread_params(path, config, dtype, shardings)
    )
    # File by file, so that reads are sequential.
    order = sorted(range(len(flat)), key=lambda i: (flat[i][1].file, i))
    leaves: list[Any] = [None] * len(flat)
    bad = []
    # Two threads: one tensor is read while another is copied to its devices.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for i, (array, finite) in pool.map(lambda i: (i, flat[i][1].make()), order):
            leaves[i] = array
            if not finite:
                bad.append(f"{hub_name(_path(flat[i][0]))[0]} in {flat[i][1].file}")
    if bad:
        raise UserError(f"{Path(path)}: NaN or infinity in {'; '.join(sorted(bad))}")
    return jax.tree_util.tree_unflatten(structure, leaves)


# -- saving ----------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Leaf:
    name: str
    transposed: bool
    array: jax.Array | Unread


def to_host(array: jax.Array) -> np.ndarray | None:
    """The whole array in process 0's memory; None in other processes. All processes must call it."""
    if not array.is_fully_addressable:
        # Briefly replicates one tensor on every device, never the whole model.
        everywhere = NamedSharding(array.sharding.mesh, P())
        array = jax.jit(lambda x: x, out_shardings=everywhere)(array).addressable_data(0)
    return np.asarray(array) if jax.process_index() == 0 else None


def _shards(leaves: list[_Leaf], max_bytes: int) -> list[list[_Leaf]]:
    """Leaves grouped into files of at most max_bytes; a larger tensor gets a file of its own."""
    shards: list[list[_Leaf]] = [[]]
    size = 0
    for leaf in leaves:
        if shards[-1] and size + leaf.array.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(leaf)
        size += leaf.array.nbytes
    return shards


def _host_tensor(leaf: _Leaf) -> np.ndarray | None:
    """A tensor as the file stores it, in process 0. An Unread leaf is freed from the devices."""
    array, finite = leaf.array, True
    if isinstance(array, Unread):
        array, finite = array.make()
    if not finite:
        raise UserError(f"NaN or infinity in {leaf.name} of {leaf.array.file}")
    array = to_host(array)
    return None if array is None else np.ascontiguousarray(array.T if leaf.transposed else array)


def write_tensors(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Writes a safetensors file with the permissions of its directory."""
    save_file(tensors, path, metadata={"format": "pt"})
    # safetensors 0.8 makes the file readable by its owner only.
    path.chmod(path.parent.stat().st_mode & 0o666)


def _write_weights(directory: Path, params, max_bytes: int) -> str:
    """Writes all tensors and returns the name of their dtype."""
    leaves = [
        _Leaf(*hub_name(_path(path)), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    shards = _shards(leaves, max_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for file, shard in zip(names, shards, strict=True):
        tensors = {}
        for leaf in shard:
            array = _host_tensor(leaf)
            if array is not None:
                tensors[leaf.name] = array
        if tensors:
            write_tensors(tensors, directory / file)
    if len(shards) > 1 and jax.process_index() == 0:
        weight_map = {
            leaf.name: file for file, shard in zip(names, shards, strict=True) for leaf in shard
        }
        total = sum(leaf.array.nbytes for leaf in leaves)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return leaves[0].array.dtype.name


_LEFT_OUT = (
    ".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".gguf", ".h5", ".msgpack",
    ".onnx", ".py", ".so",
)  # fmt: skip


def _copy_source(directory: Path, source: Path, dtype: str) -> None:
    """Copies everything but weights, adapters, pickles and code byte for byte, and sets the dtype in
    config.json."""
    for file in sorted(source.iterdir()):
        left_out = file.suffix in _LEFT_OUT or file.name.endswith(".index.json")
        # With adapter_config.json transformers would open the adapter's base model instead.
        left_out |= file.name.startswith("adapter_")
        if file.is_file() and not left_out:
            shutil.copyfile(file, directory / file.name)
    chat_templates = source / "additional_chat_templates"
    if chat_templates.is_dir():
        shutil.copytree(chat_templates, directory / chat_templates.name)
    data = read_json(directory / "config.json")
    data.pop("auto_map", None)  # refers to the code that is left out; the model does not need it
    # Older configs have torch_dtype, which newer versions of transformers still read.
    data["torch_dtype" if "torch_dtype" in data else "dtype"] = dtype
    (directory / "config.json").write_text(json.dumps(data, indent=2) + "\n")


def _write_new(directory: Path, config: ModelConfig, dtype: str, tokenizer) -> None:
    """Writes the files other than weights for a model without a source checkpoint."""
    ids = {}
    if tokenizer is not None:
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        tokenizer.save_pretrained(str(directory))
    data = {**config_json(config), **ids, "dtype": dtype}
    (directory / "config.json").write_text(json.dumps(data, indent=2) + "\n")
    generation = {"do_sample": True, **ids}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def save(
    path: str | Path,
    config: ModelConfig,
    params,
    *,
    source: str | Path | None = None,
    tokenizer=None,
    chat_template: str = "",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a directory that transformers' Auto classes open.

    The directory is written under another name and renamed, so `path` never holds a half-written model.
    An existing directory is replaced. With several processes, all of them must call this: process 0
    writes, and tensors are gathered one at a time.

    Args:
      path: the directory to write.
      config, params: the model; dtypes are kept. An Unread leaf is read when it is written, then freed.
      source: checkpoint that the model came from. Its config, generation config, tokenizer and chat
        template are copied.
      tokenizer: saved with the model if there is no source.
      chat_template: Jinja file that replaces the source's template; "" keeps the source's.
      max_shard_bytes: most bytes of tensors in one file.

    Raises:
      UserError: an Unread leaf has values that are not finite.
    """
    directory = Path(path)
    partial = directory.with_name(directory.name + ".partial")
    writer = jax.process_index() == 0
    if writer:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dtype = _write_weights(partial, params, max_shard_bytes)
    if writer:
        if source is not None:
            _copy_source(partial, Path(source), dtype)
            if chat_template:
                shutil.copyfile(chat_template, partial / "chat_template.jinja")
        else:
            _write_new(partial, config, dtype, tokenizer)
        assert read_config(partial) == config, "config.json would describe another model"
        put_directory_in_place(partial, directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {directory.name}")
