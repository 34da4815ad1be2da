"""Everything that a run prints: to standard output, to standard error, and as log records.

Data, model output and file names may contain escape sequences that move the cursor, rename the window or
reorder a line, so all text passes through `visible` first. A stream that cannot be written to never ends a
run, because the results are in its files.
"""

from __future__ import annotations

import logging
import os
import re
import sys

# Control characters, lone surrogates, line and paragraph separators, and invisible format characters, e.g.
# bidirectional overrides. The two joiners are not escaped, because emoji and some scripts need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_unwritten: str | None = None  # why standard output could not be written


def visible(text: object, keep: str = "") -> str:
    r"""str(text) with every control character escaped, e.g. \x1b or \u202e.

    Args:
      text: any object.
      keep: characters that are not escaped, e.g. "\n".
    """

    def escaped(match: re.Match[str]) -> str:
        found = match.group()
        return found if found in keep else found.encode("unicode_escape").decode()

    return _HIDDEN.sub(escaped, str(text))


def set_up() -> None:
    """Prepares the standard streams: opens missing ones, and lets them accept any character."""
    # If a standard descriptor is closed, the next file that is opened, e.g. a checkpoint, gets its number,
    # and whatever a library prints goes into that file.
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # drop a log record that cannot be written, without a traceback


def say(text: str) -> None:
    """Prints lines to standard output. `unwritten` reports a failure."""
    global _unwritten
    try:
        print(visible(text, keep="\n"), flush=True)
    except (OSError, ValueError) as error:
        _unwritten = getattr(error, "strerror", None) or str(error)
        _discard(1)


def unwritten() -> str | None:
    """Why standard output could not be written to, or None. Each failure is reported once."""
    global _unwritten
    reason, _unwritten = _unwritten, None
    return reason


def tell(line: str) -> None:
    """Prints one line to standard error if possible."""
    try:
        print(visible(line), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(2)


def complain(message: object) -> None:
    """Prints "error: message" to standard error, as one line."""
    tell(f"error: {message}")


def print_crash(kind, error, trace) -> None:
    """A sys.excepthook that prints the traceback with control characters escaped."""
    import traceback

    text = "".join(traceback.format_exception(kind, error, trace))
    for line in text.rstrip("\n").split("\n"):
        tell(line)


class Notes(logging.Handler):
    """A log handler that prints each record to standard error as one line."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tell(record.getMessage())
        except Exception:  # a bad format string
            self.handleError(record)


def _discard(descriptor: int) -> None:
    """Discards what is still buffered; otherwise the interpreter reports an error when it exits."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
    except OSError:
        pass
