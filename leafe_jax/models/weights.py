"""The safetensors files of a model directory: found, checked and memory-mapped, but not yet read."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from leafe_jax.errors import UserError
from leafe_jax.runtime.files import parse_json
from leafe_jax.runtime.model_files import read_json

INDEX = "model.safetensors.index.json"
_MAX_HEADER = 2**23  # bytes of a file's header; 1,000 tensors need about 100 KB
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip


class WeightFile:
    """One safetensors file, memory-mapped.

    Attributes:
      path: the file.
      header: tensor name -> {"dtype", "shape", "data_offsets"}.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: missing; only safetensors checkpoints are read")
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
            if size > _MAX_HEADER:
                raise ValueError(f"header of {size} bytes: must be at most {_MAX_HEADER}")
            # The library checks that the header fits the file size. It does not read the tensors: it
            # would copy them, and the largest tensor would be in memory twice.
            with safe_open(str(path), framework="numpy"):
                pass
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable safetensors file: {error}") from error
        self._begin = 8 + size
        self.header = parse_json(self._map[8 : self._begin], path)
        self.header.pop("__metadata__", None)

    def check_dtype(self, name: str) -> None:
        """Raises UserError for a dtype that is not supported, e.g. of a quantized checkpoint."""
        dtype = self.header[name]["dtype"]
        if dtype not in _DTYPES:
            raise UserError(
                f"{self.path}: {name} has dtype {dtype}; must be one of {', '.join(_DTYPES)}"
            )

    def view(self, name: str) -> np.ndarray:
        """A tensor, as a read-only view of the mapped file."""
        self.check_dtype(name)
        entry = self.header[name]
        flat = np.frombuffer(
            self._map, _DTYPES[entry["dtype"]], math.prod(entry["shape"]),
            self._begin + entry["data_offsets"][0],
        )  # fmt: skip
        return flat.reshape(entry["shape"])

    def forget(self, name: str) -> None:
        """Drops a tensor's pages, which count as this process's memory once they have been read."""
        if hasattr(mmap, "MADV_DONTNEED"):
            begin, end = (self._begin + x for x in self.header[name]["data_offsets"])
            # Keep the page that is shared with the tensor before.
            begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
            if begin < end:
                self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def open_weights(directory: Path) -> dict[str, WeightFile]:
    """The file of each tensor: tensor name -> WeightFile.

    Raises:
      UserError: a file is missing or broken, or the index and the files disagree.
    """
    index, single = directory / INDEX, "model.safetensors"
    if (directory / "adapter_config.json").exists() and list(directory.glob("adapter_model.*")):
        raise UserError(
            f"{directory}: contains an adapter, which transformers would load instead of the model;"
            " merge it, or remove adapter_config.json and the adapter's weights"
        )
    if not index.exists():
        file = WeightFile(directory / single)
        return dict.fromkeys(file.header, file)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise UserError(f"{index}: weight_map: must name a file for each tensor")
    if (directory / single).exists() and set(places.values()) != {single}:
        raise UserError(
            f"{directory}: contains two checkpoints, {single} and the shards of {INDEX}; remove one of"
            " them, with its index"
        )
    strange = sorted({n for n in places.values() if Path(n).name != n})
    if strange:
        raise UserError(f"{index}: weight_map: {strange[0]!r} must be a file in this directory")
    files = {name: WeightFile(directory / name) for name in sorted(set(places.values()))}
    tensors: dict[str, WeightFile] = {}
    for name, file in files.items():
        for tensor in file.header:
            if tensor in tensors:
                raise UserError(f"{file.path}: {tensor} is also in {tensors[tensor].path.name}")
            if places.get(tensor, name) != name:
                raise UserError(
                    f"{index}: says {tensor} is in {places[tensor]}, but it is in {name}"
                )
            tensors[tensor] = file
    absent = sorted(set(places) - set(tensors))
    if absent:
        raise UserError(f"{index}: says {absent[0]} is in {places[absent[0]]}, but it is not there")
    return tensors
