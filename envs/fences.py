"""Programs in replies: the first block between Markdown fences, in the forms that models write.

In contrast to CommonMark, a fence may open after words on its line and close on a line of code, as
in CTRL's parser (HKUNLP/critic-rl, ctrl/eval/eval_utils.py).
"""

from __future__ import annotations

import re

_RUN = re.compile("`{3,}")
# Blanks and the markers of list items.
_MARGIN = re.compile(r"[ \t]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)*")
_LANGUAGE = re.compile(r"[\w+#-]*[ \t]*")
_PYTHON_THEN_CODE = re.compile(r"(?:python|py)3?[ \t]+(.*)", re.IGNORECASE | re.DOTALL)


def first_program(text: str) -> tuple[str, bool]:
    """(program, True) from the first fenced block, or (the whole text, False) if there is none."""
    place = text.find("```")
    while place >= 0:
        start = text.rfind("\n", 0, place) + 1
        end = text.find("\n", place)
        end = len(text) if end < 0 else end
        found = _opened_on(text, start, end)
        if found is not None:
            return found.strip("\n"), True
        place = text.find("```", end)
    return text.strip("\n"), False


def _opened_on(text: str, start: int, end: int) -> str | None:
    """The block that opens on the line from `start` to `end`, or None."""
    line = text[start:end].removesuffix("\r")
    fence = _RUN.search(line)
    assert fence is not None, "the caller has found one on this line"
    before, after = line[: fence.start()], line[fence.end() :]
    code = _PYTHON_THEN_CODE.match(after)
    if "`" in after:  # a block may end on its first line only if that names Python
        inside = code.group(1).partition(fence.group()) if code else ("", "", "")
        return inside[0].rstrip() if inside[1] else None
    margin = len(before) if _MARGIN.fullmatch(before) else 0
    # After words, three backticks may close a block or be quoted. They open one if a language
    # follows, or if a blank precedes them and the block is closed.
    words = margin < len(before)
    if words and not _LANGUAGE.fullmatch(after):
        return None
    body, closed = _body(text, end + 1, len(fence.group()))
    if words and not after.strip() and not (closed and before[-1].isspace()):
        return None
    if text[end - 1 : end] == "\r":
        body = body.replace("\r\n", "\n")
    if code and not body.strip():
        return code.group(1)
    return _without_margin(body, margin)


def _body(text: str, start: int, size: int) -> tuple[str, bool]:
    """(what is between `start` and the closing fence, whether there is one).

    A fence closes at the start of a line, before a blank or at a line's end. Elsewhere it is likely
    part of a string, and closes only if there is no better one. Without any the reply was cut
    short, and the program goes to the reply's end.
    """
    run = f"(?<!`)`{{{size},}}(?!`)"
    closing = re.compile(rf"^[ \t]*`{{{size},}}|{run}(?=\s|\Z)", re.MULTILINE).search(text, start)
    closing = closing or re.compile(run).search(text, start)
    if closing is None:
        return text[start:], False
    body = text[start : closing.start()]
    return body if body.endswith("\n") else body.rstrip(" \t"), True


def _without_margin(body: str, margin: int) -> str:
    """Removes a fence's own indentation, where the first line has it too."""
    first = re.search(r"^([ \t]*)\S", body, re.MULTILINE)
    width = min(margin, len(first.group(1)) if first else 0, 100)
    return re.sub(rf"^[ \t]{{1,{width}}}", "", body, flags=re.MULTILINE) if width else body
