"""Training examples on disk, as ArrayRecord files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

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

    In a run of several processes all of them call it, process 0 writes, and it is there when they
    go on; the others' examples may be empty.

    A record is, little-endian: source (int32), n ids (int32), n masses (float32).
    """
    path = Path(path)
    if jax.process_index() == 0:
        check_room()
        partial = path.with_name(path.name + ".partial")
        remove(partial)  # of a killed run; a FIFO would block
        writer = ArrayRecordWriter(str(partial), "group_size:1")  # each record can be read alone
        for example in examples:
            parts = (np.int32(example.source), example.ids, example.mass)
            writer.write(b"".join(p.astype(p.dtype.newbyteorder("<")).tobytes() for p in parts))
        writer.close()
        put_in_place(partial, path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"wrote {path.name}")


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

    def __getitem__(self, index: int) -> Example:
        data = self._source[index]
        count, rest = divmod(len(data) - 4, 8)
        try:
            if count < 2 or rest:
                raise ValueError(f"{len(data)} bytes")
            ids = np.frombuffer(data, "<i4", count, 4).astype(np.int32)
            mass = np.frombuffer(data, "<f4", count, 4 + 4 * count).astype(np.float32)
            return Example(ids, mass, int(np.frombuffer(data, "<i4", 1)[0]))
        except ValueError as error:
            raise UserError(f"{self._path}: record {index} is no example: {error}") from error


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one pass over the examples tells.

    Attributes:
      lengths: tokens of each example in a row, one less than its ids.
      masses: total mass of each source.
      digest: of all ids, masses and sources, in order.
    """

    lengths: tuple[int, ...]
    masses: tuple[float, ...]
    digest: str


def survey(examples: Sequence[Example], num_sources: int, vocab_size: int) -> Survey:
    """Reads all examples once.

    Args:
      examples: the training data.
      num_sources: sources of the run.
      vocab_size: ids of the model are below it.

    Raises:
      UserError: there is no example, one of a source that is not there, or one with an id that the
        model does not have.
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
        least, largest = int(example.ids.min()), int(example.ids.max())
        if least < 0 or largest >= vocab_size:
            raise UserError(
                f"train: example {index} has token id {least if least < 0 else largest}: must be"
                f" 0 to {vocab_size - 1}, the model's vocabulary"
            )
        lengths.append(len(example.ids) - 1)
        masses[example.source] += float(example.mass.sum(dtype=np.float64))
        digest.update(np.int32([example.source, len(example.ids)]).tobytes())
        digest.update(example.ids.tobytes() + example.mass.tobytes())
    return Survey(tuple(lengths), tuple(masses), digest.hexdigest())
