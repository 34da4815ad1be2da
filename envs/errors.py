"""The error that this package raises for wrong input."""

from __future__ import annotations

from envs.terminal import one_line


class EnvDataError(ValueError):
    """A task, split, option or data file is wrong. The message names it and says what is allowed.

    The message is one line without control characters, even if it quotes data that has them.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))
