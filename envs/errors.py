"""The error of this package."""

from __future__ import annotations

from envs.terminal import one_line


class EnvDataError(ValueError):
    """A task, split, option or data file is wrong; the message names it and what is allowed.

    The message is one line without control characters, whatever the data in it holds.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))
