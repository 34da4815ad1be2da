"""The safetensors files of a model directory: found, checked and mapped, but not read yet."""

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
_MAX_HEADER = 2**23  # bytes of a file's header; 1,000 tensors take about 100 KB
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
                raise ValueError(f"a header of {size} bytes: at most {_MAX_HEADER} are read")
            # The library checks that header and size fit together; its own arrays are copies, which
            # would hold the largest tensor twice.
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
        """Refuses a tensor of a dtype that is not read, e.g. of a quantised checkpoint."""
        dtype = self.header[name]["dtype"]
        if dtype not in _DTYPES:
            raise UserError(
                f"{self.path}: {name} has dtype {dtype}; must be one of {', '.join(_DTYPES)}"
            )

    def view(self, name: str) -> np.ndarray:
        """The tensor, as a read-only view of the mapped file."""
        self.check_dtype(name)
        entry = self.header[name]
        flat = np.frombuffer(
            self._map, _DTYPES[entry["dtype"]], math.prod(entry["shape"]),
            self._begin + entry["data_offsets"][0],
        )  # fmt: skip
        return flat.reshape(entry["shape"])

    def forget(self, name: str) -> None:
        """Lets go of a tensor's pages: once read they count as this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            begin, end = (self._begin + x for x in self.header[name]["data_offsets"])
            begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # its neighbours' pages stay
            if begin < end:
                self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def open_weights(directory: Path) -> dict[str, WeightFile]:
    """Tensor name -> the file that holds it.

    Raises:
      UserError: a file is missing or broken, or the index and the files disagree.
    """
    index, single = directory / INDEX, "model.safetensors"
    if (directory / "adapter_config.json").exists() and list(directory.glob("adapter_model.*")):
        raise UserError(
            f"{directory}: holds an adapter beside the model, and transformers would read that; merge"
            " it, or remove adapter_config.json and the adapter's weights"
        )
    if not index.exists():
        file = WeightFile(directory / single)
        return dict.fromkeys(file.header, file)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise UserError(f"{index}: weight_map: must name a file for each tensor")
    if (directory / single).exists() and set(places.values()) != {single}:
        raise UserError(
            f"{directory}: holds {single} and the shards of {INDEX}, two checkpoints; remove one of"
            " them with its index"
        )
    strange = sorted({n for n in places.values() if Path(n).name != n})
    if strange:
        raise UserError(f"{index}: weight_map: {strange[0]!r} is not a file of this directory")
    files = {name: WeightFile(directory / name) for name in sorted(set(places.values()))}
    tensors: dict[str, WeightFile] = {}
    for name, file in files.items():
        for tensor in file.header:
            if tensor in tensors:
                raise UserError(f"{file.path}: {tensor} is also in {tensors[tensor].path.name}")
            if places.get(tensor, name) != name:
                raise UserError(f"{index}: {tensor} is said to be in {places[tensor]}, not {name}")
            tensors[tensor] = file
    absent = sorted(set(places) - set(tensors))
    if absent:
        raise UserError(f"{index}: {absent[0]} is said to be in {places[absent[0]]}, but is not")
    return tensors
