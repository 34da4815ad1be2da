"""Packed batches of training examples, by Grain: a fixed random order, and a position to resume from."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.training.settings import TrainConfig
from leafe_jax.types import Example


def mixing_coefficients(
    masses: Sequence[float], weights: Sequence[float], num_batches: float
) -> np.ndarray:
    """Coefficients with which the batch losses of an epoch have the mean sum_s weights[s] * L_s.

    L_s is the mass-weighted mean over all of source s (the paper: L = L_cf + beta * L_reh, each an
    expectation over its own data set). The loss of a batch is sum(coeff[source] * mass * nll) over its
    tokens. With M_s the mass of source s, coeff[s] = weights[s] * num_batches / M_s. These are
    constants: an example weighs the same in every batch, full or not, and beside every neighbour.

    Args:
      masses: total mass of each source.
      weights: of their losses.
      num_batches: batches of an epoch; a fraction if a batch may hold the end of one and the beginning
        of the next.

    Returns:
      float32 [sources]; 0 for a source without examples.
    """
    totals = np.asarray(masses, np.float64)
    coefficients = np.zeros(len(weights), np.float32)
    present = totals > 0
    coefficients[present] = np.asarray(weights)[present] * num_batches / totals[present]
    return coefficients


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which examples share a row, and which rows a batch.

    Attributes:
      rows: indices of the examples in every row of the run, batch after batch; () is an empty row.
      batch_rows: rows of a batch.
      padding: share of the rows' places that hold no token.
    """

    rows: tuple[tuple[int, ...], ...]
    batch_rows: int
    padding: float

    @property
    def num_steps(self) -> int:
        """Batches of the run."""
        return len(self.rows) // self.batch_rows


def make_plan(lengths: Sequence[int], train: TrainConfig, seed: int, multiple: int = 1) -> Plan:
    """The plan of a run, settled from the lengths and `seed`: the same in every process.

    With train.batch_examples = 0 the rows of an epoch are packed, shuffled and cut into batches of
    train.batch_size rows. Otherwise the examples are shuffled and cut into batches of
    train.batch_examples, and each batch is packed by itself. All batches get the rows that the fullest
    needs. Either way a batch may hold the end of an epoch and the beginning of the next, and only the
    last one of the run is not full.

    Args:
      lengths: tokens of each example in a row.
      train: seq_len, batch_size, batch_examples and num_epochs.
      seed: 32 bits, of the shuffling.
      multiple: rows of a batch are a multiple of it; what the mesh needs.

    Raises:
      UserError: an example is longer than a row, or batch_examples need more rows than batch_size.
    """
    seq_len = train.seq_len
    if max(lengths) > seq_len:
        raise UserError(f"train.seq_len = {seq_len}: the longest example needs {max(lengths)}")
    rows: list[tuple[int, ...]] = []
    if train.batch_examples:
        order = [i for e in range(train.num_epochs) for i in _order(len(lengths), seed, 2 * e)]
        size = train.batch_examples
        batches = [
            _pack(order[at : at + size], lengths, seq_len) for at in range(0, len(order), size)
        ]
        batch_rows = max(map(len, batches))
        batch_rows += -batch_rows % multiple
        if batch_rows > train.batch_size:
            raise UserError(
                f"train.batch_size = {train.batch_size}: must be at least {batch_rows}, the rows that"
                f" batches of train.batch_examples = {size} need with train.seq_len = {seq_len}"
            )
        for batch in batches:
            rows += [*batch, *[()] * (batch_rows - len(batch))]
    else:
        batch_rows = train.batch_size
        for epoch in range(train.num_epochs):
            packed = _pack(_order(len(lengths), seed, 2 * epoch), lengths, seq_len)
            rows += [packed[i] for i in _order(len(packed), seed, 2 * epoch + 1)]
        rows += [()] * (-len(rows) % batch_rows)
    padding = 1 - train.num_epochs * sum(lengths) / (len(rows) * seq_len)
    return Plan(tuple(rows), batch_rows, padding)


def make_even_plan(lengths: Sequence[int], train: TrainConfig, seed: int) -> Plan:
    """A plan whose batches have train.batch_size rows each and, within an epoch, equally many examples, or
    one less.

    It is for examples that are made anew again and again. A step compiles once, whatever their number, and
    no last batch is nearly empty, which Adam would turn into a step as long as any other. An epoch has as
    few batches as hold its examples, train.batch_examples of them at most (0: no limit).

    Args:
      lengths: tokens of each example in a row.
      train: seq_len, batch_size, batch_examples and num_epochs.
      seed: 32 bits, of the shuffling.

    Raises:
      UserError: an example is longer than a row.
    """
    seq_len, size, count = train.seq_len, train.batch_size, len(lengths)
    if max(lengths) > seq_len:
        raise UserError(f"train.seq_len = {seq_len}: the longest example needs {max(lengths)}")
    orders = [_order(count, seed, 2 * epoch) for epoch in range(train.num_epochs)]
    number = max(-(-sum(lengths) // (seq_len * size)), 1)  # of an epoch's batches
    if train.batch_examples:
        number = max(number, -(-count // train.batch_examples))
    while True:
        ends = [count * i // number for i in range(number + 1)]
        batches = [
            _pack(order[a:b], lengths, seq_len)
            for order in orders
            for a, b in itertools.pairwise(ends)
        ]
        if max(map(len, batches)) <= size:
            break
        number += 1
    rows: list[tuple[int, ...]] = []
    for batch in batches:
        rows += [*batch, *[()] * (size - len(batch))]
    padding = 1 - train.num_epochs * sum(lengths) / (len(rows) * seq_len)
    return Plan(tuple(rows), size, padding)


def _pack(order: Sequence[int], lengths: Sequence[int], seq_len: int) -> list[tuple[int, ...]]:
    """Rows of the examples `order`, by best fit."""
    rows = best_fit([lengths[i] for i in order], seq_len)
    return [tuple(order[i] for i in row) for row in rows]


class _Steps:
    """The batches of a run as a Grain source: of each, the rows of one process.

    An element is a whole batch, so that the position Grain keeps counts steps: a count of rows would
    mean another place in the data after a restart with more or fewer processes.

    Args:
      examples: the data.
      plan: where they go.
      seq_len: tokens of a row.
      own: places within a batch of the rows that are wanted, ascending.
      columns: names of the columns to pack.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        plan: Plan,
        seq_len: int,
        own: Sequence[int],
        columns: Sequence[str],
    ):
        self._examples, self._plan, self._own = examples, plan, own
        self._seq_len, self._columns = seq_len, columns

    def __len__(self) -> int:
        return self._plan.num_steps

    def __repr__(self) -> str:  # Grain wants one that is the same in every process
        return f"_Steps({len(self)})"

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        first = step * self._plan.batch_rows
        rows = [self._row(self._plan.rows[first + place]) for place in self._own]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        names = ("tokens", "targets", "positions", "segment_ids", "source")
        row = {name: np.zeros(self._seq_len, np.int32) for name in names}
        for name in ("mass", *self._columns):
            row[name] = np.zeros(self._seq_len, np.float32)
        begin = 0
        for segment, index in enumerate(indices, 1):
            example = self._examples[index]
            count = len(example.ids) - 1
            at = slice(begin, begin + count)
            # Shifted before packing, so that no target crosses the border of a segment.
            row["tokens"][at], row["targets"][at] = example.ids[:-1], example.ids[1:]
            row["mass"][at], row["source"][at] = example.mass[1:], example.source
            for name in self._columns:
                row[name][at] = example.columns[name][1:]
            row["positions"][at], row["segment_ids"][at] = np.arange(count), segment
            begin += count
        return row


class Batches:
    """Packed batches of the examples, by a plan.

    Iterating gives dicts of [rows, seq_len]: tokens, targets, positions, segment_ids (0 is padding) and
    source (int32), mass and the columns (float32). Each process reads only its own rows of the one plan.
    `get_state` and `set_state` of the iterator resume it exactly.

    Args:
      examples: at least one.
      plan: from `make_plan`, for their lengths.
      seq_len: tokens per row.
      own: places within a batch of the rows to give, ascending; None gives all.
      columns: names of the examples' columns to pack.

    Attributes:
      num_steps: number of batches.
      padding: share of the rows' places that hold no token.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        plan: Plan,
        seq_len: int,
        own: Sequence[int] | None = None,
        columns: Sequence[str] = (),
    ):
        self.num_steps, self.padding = plan.num_steps, plan.padding
        own = range(plan.batch_rows) if own is None else own
        steps = _Steps(examples, plan, seq_len, own, columns)
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        self._dataset = grain.MapDataset.source(steps).to_iter_dataset(ahead)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self._dataset)
