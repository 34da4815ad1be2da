"""Training examples: records on disk (ArrayRecord), and packed batches by Grain, which reads them in a
fixed random order and remembers where it was."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jax.experimental import multihost_utils

from leafe_jax.errors import UserError
from leafe_jax.files import put_in_place, remove
from leafe_jax.training.memory import check_room

NORMALISATIONS = ("example", "token")


@dataclasses.dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
      ids: int32 [n] tokens.
      mass: float32 [n]; mass[i] > 0 trains the prediction of ids[i] from ids[:i], so mass[0] is 0.
      source: index into the run's sources, e.g. counterfactual and rehearsal.
    """

    ids: np.ndarray
    mass: np.ndarray
    source: int

    def __post_init__(self):
        if len(self.ids) != len(self.mass) or len(self.ids) < 2 or self.mass[0] != 0:
            raise ValueError("an example needs two ids or more, as many masses, and mass[0] == 0")
        if not (np.isfinite(self.mass).all() and np.min(self.mass) >= 0):
            raise ValueError("an example's masses must be finite and at least 0")


def action_mass(length: int, spans: Sequence[tuple[int, int]], normalisation: str) -> np.ndarray:
    """Loss mass of a sequence whose sampled tokens lie in `spans`.

    Args:
      length: tokens of the sequence.
      spans: [begin, end) of each action a_t.
      normalisation: "example": the tokens of each (h_t, a_t) pair share a mass of 1, so the loss is
        the mean over pairs of the mean over their tokens; "token": every token has mass 1.

    Returns:
      float32 [length].
    """
    if normalisation not in NORMALISATIONS:
        raise UserError(f"normalisation = {normalisation!r}: must be one of {NORMALISATIONS}")
    mass = np.zeros(length, np.float32)
    for begin, end in spans:
        mass[begin:end] = 1.0 / (end - begin) if normalisation == "example" else 1.0
    return mass


# -- records ---------------------------------------------------------------------------------------
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


def mixing_coefficients(masses: Sequence[float], weights: Sequence[float]) -> np.ndarray:
    """Coefficients that make the batch loss an estimate of sum_s weights[s] * L_s.

    L_s is the mass-weighted mean over all of source s (the paper: L = L_cf + beta * L_reh, each an
    expectation over its own data set). The batch loss is sum(coeff[source] * mass * nll) / sum(mass)
    over examples drawn uniformly from the union, so with M the total mass and M_s that of source s,
    coeff[s] = weights[s] * M / M_s: whatever the sizes of the two sets, their losses enter in the
    ratio 1 : beta.

    Args:
      masses: total mass of each source.
      weights: of their losses.

    Returns:
      float32 [sources]; 0 for a source without examples.
    """
    masses = np.asarray(masses, np.float64)
    coefficients = np.zeros(len(weights), np.float32)
    present = masses > 0
    coefficients[present] = np.asarray(weights)[present] * masses.sum() / masses[present]
    return coefficients


# -- packing ---------------------------------------------------------------------------------------
def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of at most `capacity` tokens: longest first, each into the fullest row that has room.

    Returns:
      Indices into `lengths` for each row; equal lengths go in the order they came in.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # room left -> rows
    rooms: list[int] = []  # its keys, ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        rows[row].append(index)
        left = room - length
        if left not in open_rows:
            open_rows[left] = []
            bisect.insort(rooms, left)
        open_rows[left].append(row)
    return rows


def _order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count) by Grain's shuffle, which is the same on every machine."""
    shuffled = grain.MapDataset.range(count).seed(seed).shuffle(seed=(seed + epoch) % 2**32)
    return [int(shuffled[i]) for i in range(count)]


class _Steps:
    """The batches of a run as a Grain source: of each, the rows of one process.

    An element is a whole batch, so that the position Grain keeps counts steps: a count of rows would
    mean another place in the data after a restart with more or fewer processes.

    Args:
      examples: the data.
      plan: example indices of every row of the run; () is an empty row.
      own: places within a batch of the rows that are wanted, ascending.
      batch_size, seq_len: rows of a batch, tokens of a row.
    """

    def __init__(self, examples, plan, own: Sequence[int], batch_size: int, seq_len: int):
        self._examples, self._plan, self._own = examples, plan, own
        self._batch_size, self._seq_len = batch_size, seq_len

    def __len__(self) -> int:
        return len(self._plan) // self._batch_size

    def __repr__(self) -> str:  # Grain wants one that is the same in every process
        return f"_Steps({len(self)})"

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        rows = [self._row(self._plan[step * self._batch_size + place]) for place in self._own]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        names = ("tokens", "targets", "positions", "segment_ids", "source")
        row = {name: np.zeros(self._seq_len, np.int32) for name in names}
        row["mass"] = np.zeros(self._seq_len, np.float32)
        begin = 0
        for segment, index in enumerate(indices, 1):
            example = self._examples[index]
            count = len(example.ids) - 1
            at = slice(begin, begin + count)
            # Shifted before packing, so that no target crosses the border of a segment.
            row["tokens"][at], row["targets"][at] = example.ids[:-1], example.ids[1:]
            row["mass"][at], row["source"][at] = example.mass[1:], example.source
            row["positions"][at], row["segment_ids"][at] = np.arange(count), segment
            begin += count
        return row


class Batches:
    """Packed batches of the examples, for a number of epochs.

    Iterating gives dicts of [rows, seq_len]: tokens, targets, positions, segment_ids (0 is padding),
    source (int32), mass (float32). Which examples share a row, and the order of the rows, is settled
    beforehand from the lengths and `seed`, epoch by epoch, and the same in every process; each reads
    only its own rows. `get_state` and `set_state` of the iterator resume it exactly.

    Args:
      examples: at least one.
      lengths: from `survey`.
      seq_len: tokens per row.
      batch_size: rows per batch, over all processes; the last batch is filled up with empty rows.
      num_epochs: passes over the examples.
      seed: 32 bits, of the shuffling.
      own: places within a batch of the rows to give, ascending; None gives all.

    Attributes:
      num_steps: number of batches.
      padding: share of the rows' places that hold no token.

    Raises:
      UserError: an example is longer than a row, or a number is out of range.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        lengths: Sequence[int],
        seq_len: int,
        batch_size: int,
        num_epochs: int,
        seed: int,
        own: Sequence[int] | None = None,
    ):
        if batch_size < 1 or num_epochs < 1:
            raise UserError(
                f"train.batch_size = {batch_size}, train.num_epochs = {num_epochs}: must be >= 1"
            )
        if max(lengths) > seq_len:
            raise UserError(f"train.seq_len = {seq_len}: the longest example needs {max(lengths)}")
        plan: list[tuple[int, ...]] = []
        for epoch in range(num_epochs):
            order = _order(len(lengths), seed, 2 * epoch)
            rows = best_fit([lengths[i] for i in order], seq_len)
            for row in _order(len(rows), seed, 2 * epoch + 1):
                plan.append(tuple(order[i] for i in rows[row]))
        plan += [()] * (-len(plan) % batch_size)
        self.num_steps = len(plan) // batch_size
        self.padding = 1 - num_epochs * sum(lengths) / (len(plan) * seq_len)
        own = range(batch_size) if own is None else own
        steps = _Steps(examples, plan, own, batch_size, seq_len)
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        self._dataset = grain.MapDataset.source(steps).to_iter_dataset(ahead)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self._dataset)
