"""Training examples from turns: ids as sampled, loss on sampled tokens only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.types import Example, Turn

# Name of a column -> step -> values of the action's tokens, or one value for all of them.
Columns = Mapping[str, Mapping[int, Sequence[float] | float]]

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


def sequence(
    turns: Sequence[Turn],
    trained: set[int],
    mode: str,
    normalisation: str,
    source: int,
    with_experience: bool = False,
    columns: Columns | None = None,
) -> list[Example]:
    """Training sequences of a trajectory.

    Args:
      turns: the path, step 1 first.
      trained: step numbers whose action carries loss.
      mode: "dialogue" gives one sequence that ends with the last trained action (the pairs share
        their context); "window" gives one sequence a trained step.
      normalisation: see `action_mass`.
      source: index into the method's sources.
      with_experience: prompts as they were sampled from, with e where the turn showed it; False renders
        every turn without e. In a dialogue an e stays in the history of the steps that follow, also if
        experience_span = "step" had taken it out there.
      columns: what an objective needs of each trained token; prompt tokens have 0.
    """
    if mode == "window":
        parts = [([t], {t.step}) for t in turns if t.step in trained]
    else:
        parts = [([t for t in turns if t.step <= max(trained)], trained)]
    return [
        _example(*part, normalisation, source, with_experience, columns or {}) for part in parts
    ]


def _example(
    turns: Sequence[Turn],
    trained: set[int],
    normalisation: str,
    source: int,
    with_experience: bool,
    columns: Columns,
) -> Example:
    ids: list[int] = []
    spans: dict[int, tuple[int, int]] = {}  # by step
    for turn in turns:
        plain = None if with_experience else turn.plain_prompt_ids
        ids += turn.prompt_ids if plain is None else plain
        if turn.step in trained:
            spans[turn.step] = len(ids), len(ids) + len(turn.action_ids)
        ids += turn.action_ids
    filled = {name: np.zeros(len(ids), np.float32) for name in columns}
    for name, values in columns.items():
        for step, (begin, end) in spans.items():
            filled[name][begin:end] = values[step]
    mass = action_mass(len(ids), list(spans.values()), normalisation)
    return Example(np.asarray(ids, np.int32), mass, source, filled)
