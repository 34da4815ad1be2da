"""Text of unknown origin, made safe to show: it cannot command a terminal or break a line."""

from __future__ import annotations

_LONGEST = 2000  # characters of an error


def printable(text: str) -> str:
    """`text` with every control character but newline and tab spelled out, such as `\\x1b`.

    What is spelled out: terminal escape sequences, carriage returns, invisible and bidirectional
    marks, lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def one_line(text: str) -> str:
    """`text` on one line of at most 2,000 characters, with control characters spelled out."""
    text = printable(" ".join(text.split()) if not text.isprintable() else text)
    if len(text) > _LONGEST:
        half = _LONGEST // 2 - 3
        text = f"{text[:half]} ... {text[-half:]}"
    return text
