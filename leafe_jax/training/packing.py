"""Packed batches of training examples, by Grain: a fixed random order, and a position to resume from."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.types import Example


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
    totals = np.asarray(masses, np.float64)
    coefficients = np.zeros(len(weights), np.float32)
    present = totals > 0
    coefficients[present] = np.asarray(weights)[present] * totals.sum() / totals[present]
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


class _Steps:
    """The batches of a run as a Grain source: of each, the rows of one process.

    An element is a whole batch, so that the position Grain keeps counts steps: a count of rows would
    mean another place in the data after a restart with more or fewer processes.

    Args:
      examples: the data.
      plan: example indices of every row of the run; () is an empty row.
      own: places within a batch of the rows that are wanted, ascending.
      batch_size, seq_len: rows of a batch, tokens of a row.
      columns: names of the columns to pack.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        plan: Sequence[tuple[int, ...]],
        own: Sequence[int],
        batch_size: int,
        seq_len: int,
        columns: Sequence[str],
    ):
        self._examples, self._plan, self._own = examples, plan, own
        self._batch_size, self._seq_len, self._columns = batch_size, seq_len, columns

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
    """Packed batches of the examples, for a number of epochs.

    Iterating gives dicts of [rows, seq_len]: tokens, targets, positions, segment_ids (0 is padding) and
    source (int32), mass and the columns (float32). Which examples share a row, and the order of the
    rows, is settled beforehand from the lengths and `seed`, epoch by epoch, and is the same in every
    process; each reads only its own rows. `get_state` and `set_state` of the iterator resume it exactly.

    Args:
      examples: at least one.
      lengths: from `survey`.
      seq_len: tokens per row.
      batch_size: rows per batch, over all processes; the last batch is filled up with empty rows.
      num_epochs: passes over the examples.
      seed: 32 bits, of the shuffling.
      own: places within a batch of the rows to give, ascending; None gives all.
      columns: names of the examples' columns to pack.

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
        columns: Sequence[str] = (),
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
        steps = _Steps(examples, plan, own, batch_size, seq_len, columns)
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        self._dataset = grain.MapDataset.source(steps).to_iter_dataset(ahead)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self._dataset)
