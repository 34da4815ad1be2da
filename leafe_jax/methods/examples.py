"""Training examples from turns: ids as sampled, loss on sampled tokens only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.types import Example, Turn

NORMALISATIONS = ("example", "token")


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


def _plain_prompt(turn: Turn) -> list[int]:
    return turn.prompt_ids if turn.plain_prompt_ids is None else turn.plain_prompt_ids


def sequence(
    turns: Sequence[Turn], trained: set[int], mode: str, normalisation: str, source: int
) -> list[Example]:
    """Training sequences of a trajectory, rendered without experience.

    Args:
      turns: the path, step 1 first.
      trained: step numbers whose action carries loss.
      mode: "dialogue" gives one sequence that ends with the last trained action (the pairs share
        their context); "window" gives one sequence a trained step.
      normalisation: see `action_mass`.
      source: index into SOURCES.
    """
    if mode == "window":
        return [_example([t], {t.step}, normalisation, source) for t in turns if t.step in trained]
    last = max(trained)
    return [_example([t for t in turns if t.step <= last], trained, normalisation, source)]


def _example(turns: Sequence[Turn], trained: set[int], normalisation: str, source: int) -> Example:
    ids: list[int] = []
    spans = []
    for turn in turns:
        ids += _plain_prompt(turn)
        if turn.step in trained:
            spans.append((len(ids), len(ids) + len(turn.action_ids)))
        ids += turn.action_ids
    return Example(np.asarray(ids, np.int32), action_mass(len(ids), spans, normalisation), source)
