"""Makes text of unknown origin safe to show: no terminal commands, no broken lines."""

from __future__ import annotations

_LONGEST = 2000  # characters of an error


def printable(text: str) -> str:
    """`text` with all control characters except newline and tab escaped, e.g. `\\x1b`.

    This escapes terminal sequences, carriage returns, invisible and bidirectional marks, and lone
    surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def one_line(text: str) -> str:
    """`text` as one line of at most 2,000 characters, with control characters escaped."""
    text = printable(" ".join(text.split()) if not text.isprintable() else text)
    if len(text) > _LONGEST:
        half = _LONGEST // 2 - 3
        text = f"{text[:half]} ... {text[-half:]}"
    return text
