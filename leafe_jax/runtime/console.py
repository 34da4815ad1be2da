"""Text on its way to a person: standard output, standard error and notes.

Data, model output and file names may hold escape sequences that move the cursor, rename the window or
reorder a line. Everything that is shown passes `visible` first. A stream that cannot be written to
never ends a run: a run's results are in its files.
"""

from __future__ import annotations

import logging
import os
import re
import sys

# Control characters, lone surrogates, line and paragraph separators, and invisible format characters
# (bidirectional overrides among them). The two joiners stay: emoji and some scripts need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_unwritten: str | None = None  # why standard output could not be written


def visible(text: object, keep: str = "") -> str:
    r"""Text with every control character written out, e.g. \x1b or \u202e.

    Args:
      text: anything; str() of it is shown.
      keep: characters to leave as they are, e.g. "\n".
    """

    def escaped(match: re.Match[str]) -> str:
        found = match.group()
        return found if found in keep else found.encode("unicode_escape").decode()

    return _HIDDEN.sub(escaped, str(text))


def set_up() -> None:
    """Prepares the standard streams: none is missing, and no character is refused."""
    # A descriptor that is closed would be given to the next file that is opened, e.g. a checkpoint, and
    # whatever a library prints would go into it.
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
    logging.raiseExceptions = False  # a note that cannot be written is dropped without a traceback


def say(text: str) -> None:
    """Prints lines to standard output. A failure is remembered for `unwritten`."""
    global _unwritten
    try:
        print(visible(text, keep="\n"), flush=True)
    except (OSError, ValueError) as error:
        _unwritten = getattr(error, "strerror", None) or str(error)
        _discard(1)


def unwritten() -> str | None:
    """Why something could not be written to standard output, or None. Each failure is told once."""
    global _unwritten
    reason, _unwritten = _unwritten, None
    return reason


def tell(line: str) -> None:
    """Prints one line to standard error, if that can be written to."""
    try:
        print(visible(line), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(2)


def complain(message: object) -> None:
    """Prints "error: message" to standard error, in one line."""
    tell(f"error: {message}")


def print_crash(kind, error, trace) -> None:
    """sys.excepthook: the traceback of a bug, made visible."""
    import traceback

    text = "".join(traceback.format_exception(kind, error, trace))
    for line in text.rstrip("\n").split("\n"):
        tell(line)


class Notes(logging.Handler):
    """Prints log records to standard error, each in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tell(record.getMessage())
        except Exception:  # a bad format string
            self.handleError(record)


def _discard(descriptor: int) -> None:
    """Sends what is still buffered nowhere; the interpreter would complain about it at its end."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
    except OSError:
        pass
