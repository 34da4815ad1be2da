"""Training examples and their way into batches: Grain shuffles, packs and remembers where it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from leafe_jax.errors import UserError

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


def mixing_coefficients(examples: Sequence[Example], weights: Sequence[float]) -> np.ndarray:
    """Coefficients that make the batch loss an estimate of sum_s weights[s] * L_s.

    L_s is the mass-weighted mean over all of source s (the paper: L = L_cf + beta * L_reh, each an
    expectation over its own data set). The batch loss is sum(coeff[source] * mass * nll) / sum(mass)
    over examples drawn uniformly from the union, so with M the total mass and M_s that of source s,
    coeff[s] = weights[s] * M / M_s: whatever the sizes of the two sets, their losses enter in the
    ratio 1 : beta.

    Returns:
      float32 [sources]; 0 for a source without examples.
    """
    mass = np.zeros(len(weights))
    for example in examples:
        mass[example.source] += example.mass.sum()
    coefficients = np.zeros(len(weights), np.float32)
    present = mass > 0
    coefficients[present] = np.asarray(weights)[present] * mass.sum() / mass[present]
    return coefficients


def _record(example: Example) -> dict[str, np.ndarray]:
    """Inputs and targets, shifted before packing so that no target crosses a segment border."""
    count = len(example.ids) - 1
    return {
        "tokens": example.ids[:-1],
        "targets": example.ids[1:],
        "mass": example.mass[1:],
        "source": np.full(count, example.source, np.int32),
    }


class Batches:
    """Packed batches of a list of examples, for a number of epochs.

    Iterating gives dicts of [batch_size, seq_len]: tokens, targets, positions, segment_ids (0 is
    padding), source (int32), mass (float32). The order is fixed by `seed`; `get_state` and
    `set_state` of the iterator resume it exactly.

    Args:
      examples: at least one.
      seq_len: tokens per row.
      batch_size: rows per batch; the last batch is filled up with empty rows.
      num_epochs: passes over the examples, each shuffled anew.
      seed: of the shuffling.

    Raises:
      UserError: an example is longer than a row, or a number is out of range.
    """

    def __init__(
        self, examples: Sequence[Example], seq_len: int, batch_size: int, num_epochs: int, seed: int
    ):
        longest = max(len(e.ids) - 1 for e in examples)
        if longest > seq_len:
            raise UserError(f"train.seq_len = {seq_len}: the longest example needs {longest}")
        if batch_size < 1 or num_epochs < 1:
            raise UserError(
                f"train.batch_size = {batch_size}, train.num_epochs = {num_epochs}: must be >= 1"
            )
        self.batch_size, self.seq_len = batch_size, seq_len
        dataset = grain.MapDataset.source([_record(e) for e in examples])
        dataset = dataset.seed(seed).shuffle().repeat(num_epochs).to_iter_dataset()
        packed = grain.experimental.FirstFitPackIterDataset(
            dataset,
            length_struct=dict.fromkeys(("tokens", "targets", "mass", "source"), seq_len),
            num_packing_bins=max(4 * batch_size, 32),
            seed=seed,
        )
        self._dataset = packed.batch(batch_size, drop_remainder=False)

    def __iter__(self):
        return _BatchIterator(iter(self._dataset), self.batch_size)

    def num_steps(self) -> int:
        """Number of batches; runs through the data once, without the model."""
        return sum(1 for _ in iter(self._dataset))


class _BatchIterator(Iterator):
    def __init__(self, inner, batch_size: int):
        self._inner, self._batch_size = inner, batch_size

    def __next__(self) -> dict[str, np.ndarray]:
        packed = next(self._inner)
        batch = {
            "tokens": packed["tokens"],
            "targets": packed["targets"],
            "positions": packed["tokens_positions"],
            "segment_ids": packed["tokens_segment_ids"],
            "source": packed["source"],
            "mass": packed["mass"],
        }
        missing = self._batch_size - len(batch["tokens"])
        return {k: np.pad(v, ((0, missing), (0, 0))) for k, v in batch.items()}

    def get_state(self):
        return self._inner.get_state()

    def set_state(self, state) -> None:
        self._inner.set_state(state)
