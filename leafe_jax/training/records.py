"""Training examples on disk, as ArrayRecord files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jax.experimental import multihost_utils

from leafe_jax.errors import UserError
from leafe_jax.runtime.files import put_in_place, remove
from leafe_jax.runtime.memory import check_room
from leafe_jax.types import Example


def write_examples(path: str | Path, examples: Sequence[Example]) -> None:
    """Writes an ArrayRecord file; it appears under its name when it is complete.

    In a run of several processes all of them call it. Process 0 writes, and the file is there when they
    return; the others' examples may be empty.

    A record is, little-endian: source (int32), n ids (int32), n masses (float32). One with columns begins
    with -1 - source (int32), n (int32) and the number of bytes of the columns' names (int32), then has the
    names (ASCII, sorted, each followed by a newline), ids and masses as above, and n values (float32) of
    each column.
    """
    path = Path(path)
    if jax.process_index() == 0:
        check_room()
        partial = path.with_name(path.name + ".partial")
        remove(partial)  # of a killed run; a FIFO would block
        writer = ArrayRecordWriter(str(partial), "group_size:1")  # each record can be read alone
        for example in examples:
            writer.write(_to_bytes(example))
        writer.close()
        put_in_place(partial, path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"wrote {path.name}")


def _little(array: Any) -> bytes:
    """The values of an array or a scalar, little-endian."""
    return np.asarray(array).astype(array.dtype.newbyteorder("<")).tobytes()


def _to_bytes(example: Example) -> bytes:
    """The record of an example; see write_examples."""
    body = _little(example.ids) + _little(example.mass)
    if not example.columns:
        return _little(np.int32(example.source)) + body
    names = sorted(example.columns)
    text = "".join(f"{name}\n" for name in names).encode("ascii")
    head = _little(np.array([-1 - example.source, len(example.ids), len(text)], np.int32))
    return head + text + body + b"".join(_little(example.columns[name]) for name in names)


def _from_bytes(data: bytes) -> Example:
    """Inverse of `_to_bytes`; ValueError if the bytes are no example."""
    if len(data) < 12:
        raise ValueError(f"{len(data)} bytes")
    source = int(np.frombuffer(data, "<i4", 1)[0])
    names: list[str] = []
    if source >= 0:
        count, rest = divmod(len(data) - 4, 8)
        begin = 4
    else:
        count, length = (int(n) for n in np.frombuffer(data, "<i4", 2, 4))
        begin = 12 + length
        names = data[12:begin].decode("ascii").splitlines() if length >= 0 else []
        source, rest = -1 - source, len(data) - begin - (8 + 4 * len(names)) * count
    if count < 2 or rest or begin < 4:
        raise ValueError(f"{len(data)} bytes")

    def values(dtype: str, place: int) -> np.ndarray:
        found = np.frombuffer(data, f"<{dtype}", count, begin + 4 * count * place)
        return found.astype(dtype)

    columns = {name: values("f4", 2 + i) for i, name in enumerate(names)}
    return Example(values("i4", 0), values("f4", 1), source, columns)


class ExampleFile(Sequence[Example]):
    """The examples of a file from `write_examples`, read when asked for.

    Raises:
      UserError: no readable ArrayRecord file, or a record that is no example.
    """

    def __init__(self, path: str | Path):
        self._path = str(path)
        if not Path(path).is_file():
            raise UserError(f"{path}: missing")
        check_room()
        try:
            self._source = grain.sources.ArrayRecordDataSource(self._path)
            self._count = len(self._source)
        except Exception as error:  # of several kinds, with several lines
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: not a readable ArrayRecord file: {reason}") from error

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        try:
            return _from_bytes(self._source[index])
        except ValueError as error:
            raise UserError(f"{self._path}: record {index} is no example: {error}") from error


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one pass over the examples tells.

    Attributes:
      lengths: tokens of each example in a row, one less than its ids.
      masses: total mass of each source.
      digest: of all ids, masses, sources and columns, in order.
    """

    lengths: tuple[int, ...]
    masses: tuple[float, ...]
    digest: str


def survey(
    examples: Sequence[Example], num_sources: int, vocab_size: int, columns: Sequence[str] = ()
) -> Survey:
    """Reads all examples once.

    Args:
      examples: the training data.
      num_sources: sources of the run.
      vocab_size: ids of the model are below it.
      columns: names of the columns that every example must have.

    Raises:
      UserError: there is no example, or one has a source that the run has not, an id that the model does
        not have, or lacks a column.
    """
    if len(examples) == 0:
        raise UserError("train: there is no example to train on")
    digest, lengths, masses = hashlib.blake2b(digest_size=8), [], [0.0] * num_sources
    for index in range(len(examples)):
        example = examples[index]
        if not 0 <= example.source < num_sources:
            raise UserError(
                f"train: example {index} has source {example.source}: must be below {num_sources}"
            )
        for name in columns:
            if name not in example.columns:
                raise UserError(f"train: example {index} has no column {name!r}")
        least, largest = int(example.ids.min()), int(example.ids.max())
        if least < 0 or largest >= vocab_size:
            raise UserError(
                f"train: example {index} has token id {least if least < 0 else largest}: must be"
                f" 0 to {vocab_size - 1}, the model's vocabulary"
            )
        lengths.append(len(example.ids) - 1)
        masses[example.source] += float(example.mass.sum(dtype=np.float64))
        digest.update(np.array([example.source, len(example.ids)], np.int32).tobytes())
        digest.update(example.ids.tobytes() + example.mass.tobytes())
        for name in sorted(example.columns):
            digest.update(name.encode() + example.columns[name].tobytes())
    return Survey(tuple(lengths), tuple(masses), digest.hexdigest())
