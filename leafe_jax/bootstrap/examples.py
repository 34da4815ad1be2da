"""Conversations of the corpus as training examples."""

from __future__ import annotations

import numpy as np

from leafe_jax.agent.chat import ChatFormat
from leafe_jax.bootstrap.corpus import Turn
from leafe_jax.errors import UserError
from leafe_jax.types import Example

MAX_POSITIONS = 1024  # of the model


def to_example(
    turns: list[Turn], chat: ChatFormat, observation_mass: float, max_len: int = MAX_POSITIONS
) -> Example:
    """A conversation's token ids and loss mass: 1 on replies with `trained`, 0 on other replies,
    `observation_mass` on user turns.

    It ends with the last reply that fits into `max_len` tokens, like an episode that fills the context.

    Raises:
      UserError: not even the first reply fits.
    """
    ids: list[int] = []
    mass: list[float] = []
    end = 0
    for turn in turns:
        if turn["role"] == "user":
            new = chat.turn(ids, turn["text"])
            mass += [observation_mass] * len(new)
        else:
            new = (*chat.tokenizer.encode(turn["text"], add_special_tokens=False), chat.reply_end)
            mass += [float(turn["trained"])] * len(new)
        ids += new
        if len(ids) > max_len:
            break
        end = len(ids) if turn["role"] == "assistant" else end
    if not end:
        raise UserError(
            f"sampler.max_len = {max_len}: must be at least {len(ids)}, the tokens of the first turn and"
            " reply of a conversation in the corpus"
        )
    ids, mass = ids[:end], mass[:end]
    mass[0] = 0.0
    return Example(np.asarray(ids, np.int32), np.asarray(mass, np.float32), 0)
