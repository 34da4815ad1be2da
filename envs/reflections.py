"""Reflections (tau, e), read out of what a model said. Any string gives one or a named failure.

There are two forms. `from_line`: the reply is one line, `[3] open it` or `no mistake`; the embedded
base model speaks it. `after_reasoning`: the reply reasons first, and its last line is
`Answer: [3] open it` or `Answer: no mistake`. Nothing is guessed: a number in prose is never taken for
tau. Both read the answer alike. Unparsable are a number that cannot be a step's (1.5, 10**9), several
steps (1-3, [1][2]), and advice without a letter or digit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

MAX_EXPERIENCE_CHARS = 400


@dataclasses.dataclass(frozen=True)
class Reflection:
    """A parsed reflection (tau, e).

    Attributes:
      status: "ok", "no_mistake" or "unparsable".
      tau: the 1-based step that went wrong if status is "ok"; the caller checks its range.
      experience: the advice e, at most MAX_EXPERIENCE_CHARS characters.
      cut: the answer is incomplete: the token limit ended it, or e was longer than allowed.
    """

    status: str
    tau: int | None = None
    experience: str | None = None
    cut: bool = False


# What continues a number, so that it is not the number of one step: 1-3, 2,3, 1.5, 10**9; 1e3, 3rd.
_MORE_NUMBER = re.compile(r"[.,/*^\-\u2010-\u2015]*\d|[a-z]", re.IGNORECASE | re.ASCII)
_JOIN = r"(?:and|or|to|through|thru|until|till)\b"
# A further step after the first: [1][3], [1] - [3], [1] to 3, [1], 3.
_MORE_STEPS = re.compile(
    rf"[\s,;:.&/~+\-\u2010-\u2015]*(?:{_JOIN}\s*)?\[\s*[+\-]?\d"
    rf"|\s*(?:[,&/~+]|{_JOIN})\s*\d",
    re.IGNORECASE,
)
# The same if no bracket ends the number: 1 - 3, 3 or 5.
_MORE_BARE = re.compile(r"\s*[\-\u2010-\u2015]\s*\d")
# Prose about several steps: "Step 1: that was fine, but step 4 was wrong".
_OTHER_STEP = re.compile(r"\bstep\s*\[?\d", re.IGNORECASE)

# -- the answer -----------------------------------------------------------------------------------
_MARKS = r"(?:[\s*_`~#>|\u2022]|-\s)*"  # Markdown before words
_STEP = r"(?:step\s*)?"
_HEADING = re.compile(
    rf"{_MARKS}(?:(?:the|my|final)\s+){{0,2}}answer{_MARKS}(?:is{_MARKS})?(?:[:\uff1a]{_MARKS}|$)",
    re.IGNORECASE,
)
# The heading after a sentence, on the same line; then the answer must follow at once.
_HEADING_WITHIN = re.compile(
    r"(?<!\w)Answer[:\uff1a][\s*_`]*(?=[\[(]?\s*(?:[Ss]tep\s*)?\d|[Nn]o\b|There\b)"
)
# Words before the step that change nothing: "The first mistake was step [3]".
_HARMLESS = (
    r"(?:(?:the|my|first|mistake|error|was|is|at|in|made|i|think|it|happened|occurred|step|number)"
    rf"\b:?{_MARKS})*"
)
# Chinese models write full-width colons and brackets, too.
_SQUARE = re.compile(rf"{_MARKS}{_STEP}[\[\u3010]\s*{_STEP}(\d{{1,9}})\s*[\]\u3011]", re.IGNORECASE)
_BRACKETED = re.compile(
    rf"{_MARKS}{_HARMLESS}[\[(\u3010]\s*{_STEP}(\d{{1,9}})\s*[\])\u3011]", re.IGNORECASE
)
_NUMBERED = re.compile(
    rf"{_MARKS}{_STEP}(\d{{1,9}})(?=[*_`]*\s*[:.)\-\u2013\u2014])", re.IGNORECASE
)
_NO_MISTAKE = re.compile(
    rf"{_MARKS}[\[(]?(?:there\s+(?:was|were|is|are)\s+|i\s+(?:see|saw|find|found|made)\s+)?"
    r"no\s+mistakes?(?:\s+(?:was|were|has\s+been|have\s+been))?"
    r"(?:\s+(?:made|found|here|so\s+far|yet|at\s+all))*[\])]?[\s.!*_`]*",
    re.IGNORECASE,
)
# From the step to its advice: "**[3]:** open it".
_BETWEEN = re.compile(r"[*_`]*\s*[:\uff1a.)\-\u2013\u2014]*(?:[*_`]+(?=\s))?\s*")


def from_line(reply: str, cut: bool = False) -> Reflection:
    """(tau, e) out of a reply that begins with the answer.

    That is a step in brackets with its advice, or "no mistake"; in a reply of one line also a step and
    a mark (`Step 3: open it`). The advice may follow on the next line. A heading `Answer:` is read as
    in `after_reasoning`; Markdown around any of these is ignored.

    Args:
      reply: what the model said; a thought in tags is left out.
      cut: the token limit ended it.
    """
    lines = _lines(reply)
    headed = _headed(lines, cut)
    if headed is not None or not lines:
        return headed or Reflection("unparsable", cut=cut)
    return _answer(lines, cut, bare=len(lines) == 1)


def after_reasoning(reply: str, cut: bool = False) -> Reflection:
    """(tau, e) out of the last line of a reply that reasons first.

    The answer is what the last heading `Answer:` has on its line, or on the next one if its own is
    empty. A reply without the heading is answered by its last line if that begins with a step in
    brackets or says that there was no mistake, and by its only line if that begins with a step and
    a mark (`Step 3: open it`). Markdown around any of these is ignored.

    Args:
      reply: what the model said; a thought in tags is left out.
      cut: the token limit ended it. Then its last line is no answer unless it has the heading: it
        may be a line of the history that the reasoning quotes.
    """
    lines = _lines(reply)
    headed = _headed(lines, cut)
    if headed is not None:
        return headed
    if not lines or (cut and len(lines) > 1):
        return Reflection("unparsable", cut=cut)
    if len(lines) > 1 and _SQUARE.fullmatch(lines[-2].rstrip(" \t*_`:")):
        return _answer(lines[-2:], cut, bare=False)
    return _answer(lines[-1:], cut, bare=len(lines) == 1)


def _lines(reply: str) -> list[str]:
    """The lines of a reply after its thought; none if the thought never came to an end."""
    _, closes, text = reply.rpartition("</think>")
    if not closes and "<think>" in text:
        return []
    return [line for line in text.splitlines() if line.strip()]


def _headed(lines: Sequence[str], cut: bool) -> Reflection | None:
    """The answer after the last heading; None without a heading."""
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number]
        within = list(_HEADING_WITHIN.finditer(line))
        heading = within[-1] if within else _HEADING.match(line)
        if heading is not None:
            return _answer([line[heading.end() :], *lines[number + 1 :]], cut, bare=True)
    return None


def _answer(lines: Sequence[str], cut: bool, bare: bool) -> Reflection:
    """The answer at the beginning of `lines`.

    Args:
      lines: the answer's first line, and all that follow it in the reply.
      cut: the reply's last line is incomplete.
      bare: the step needs no square brackets.
    """
    # The advice may follow on the next line, as may all of the answer.
    text, used = lines[0], 1
    if not any(map(str.isalnum, text)) and len(lines) > used:
        text, used = lines[used], used + 1
    found = (_BRACKETED.match(text) or _NUMBERED.match(text)) if bare else _SQUARE.match(text)
    if found is not None and not any(map(str.isalnum, text[found.end() :])) and len(lines) > used:
        text, used = f"{text} {lines[used]}", used + 1
    cut = cut and used == len(lines)
    if _NO_MISTAKE.fullmatch(text):
        return Reflection("no_mistake", cut=cut)
    if found is None:
        return Reflection("unparsable", cut=cut)
    number, rest = found.group(1), text[found.end() :]
    advice = _BETWEEN.sub("", rest, count=1)
    none = _NO_MISTAKE.fullmatch(advice)
    if int(number) == 0 and (not advice or none):
        return Reflection("no_mistake", cut=cut)
    rest = rest.lstrip("*_`")
    broken = none or _MORE_STEPS.match(rest)
    if text[found.end() - 1].isdigit():  # no bracket says where the number ends
        broken = broken or _MORE_NUMBER.match(rest) or _MORE_BARE.match(rest)
        broken = broken or _OTHER_STEP.search(rest)
    if broken:
        return Reflection("unparsable", cut=cut)
    return _advice(number, _without_marks(advice), cut)


def _without_marks(advice: str) -> str:
    """Advice without Markdown that is around all of it, or that closes what was opened before it."""
    advice = advice.strip()
    for mark in ("**", "__", "`", "*", "_"):
        if advice.endswith(mark) and advice.count(mark) % 2:
            advice = advice.removesuffix(mark).rstrip()
        elif advice.startswith(mark) and advice.endswith(mark) and advice.count(mark) == 2:
            advice = advice.removeprefix(mark).removesuffix(mark).strip()
    return advice


def _advice(number: str, advice: str, cut: bool) -> Reflection:
    experience = " ".join(advice.split())
    if not any(map(str.isalnum, experience)):
        return Reflection("unparsable", cut=cut)
    cut = cut or len(experience) > MAX_EXPERIENCE_CHARS
    return Reflection("ok", int(number), experience[:MAX_EXPERIENCE_CHARS], cut)
