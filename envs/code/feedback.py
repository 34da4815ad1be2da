"""Words about a submission: what the agent is told, as clean text of bounded length."""

from __future__ import annotations

import dataclasses
import re

from envs.code.data import Case, Problem

MAX_SHOWN = 400  # characters of a text in the feedback

_LINE = re.compile(r'File "program\.py", line ([0-9]+)')
_SYNTAX_ERROR = re.compile("(Syntax|Indentation|Tab)Error")
_LINE_IN_MESSAGE = re.compile(r"( on| at)? line ([0-9]+)")
# Control characters but for line ends and tabs, and halves of surrogate pairs.
_UNCLEAN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_HEADINGS = {
    "compile_error": "Compile error",
    "runtime_error": "Runtime error",
    "time_limit": "Time limit exceeded",
    "memory_limit": "Memory limit exceeded",
    "output_limit": "Output limit exceeded",
    "sandbox_error": "The program could not be run",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a submission fared on one case.

    Attributes:
      status: a sandbox status, or "wrong"; "ok" is passed.
      output: what it printed.
      error: the end of its standard error.
      lines_before: lines of ours above the submission's first one.
    """

    status: str
    output: str = ""
    error: str = ""
    lines_before: int = 0


def clean(text: str) -> str:
    r"""`text` that UTF-8 and JSON can carry and a terminal can show.

    CRLF becomes a line end, other control characters their escapes (`\x1b`), lone surrogates U+FFFD.
    """
    return _UNCLEAN.sub(_spelt_out, text.replace("\r\n", "\n"))


def _spelt_out(found: re.Match) -> str:
    character = found.group()
    return "\ufffd" if character >= "\ud800" else f"\\x{ord(character):02x}"


def shorten(text: str) -> str:
    """`text` stripped and cleaned; at most MAX_SHOWN characters, then its length if it was cut."""
    text = text.strip()
    shown = clean(text[: MAX_SHOWN + 1])
    if len(text) <= MAX_SHOWN >= len(shown):
        return shown
    return f"{shown[:MAX_SHOWN]}... ({len(text)} characters)"


def describe(problem: Problem, number: int, case: Case, outcome: Outcome) -> str:
    """What the agent is told about public case `number`, the first that failed."""
    if outcome.status == "compile_error":
        return compile_error(outcome)
    heading = _HEADINGS.get(outcome.status, "Wrong answer")
    text = f"{heading} on public test {number}"
    if outcome.status == "runtime_error":
        text += f": {_reason(outcome)}"
    lines = [text + ("" if outcome.status == "runtime_error" else ".")]
    if case.code:
        lines.append(f"Test: {shorten(case.input)}")
        if outcome.status == "wrong":
            failed = last_line(outcome.error).startswith("AssertionError")
            actual = _reason(outcome).removeprefix("AssertionError: ")
            lines.append(f"Actual: {actual if failed else 'the program ended before the test did'}")
        return "\n".join(lines)
    lines.append(f"Input:\n{shorten(case.input)}")
    if outcome.status == "wrong":
        lines.append(f"Expected output:\n{shorten(case.output)}")
        lines.append(f"Actual output:\n{shorten(outcome.output) or '(nothing)'}")
    return "\n".join(lines)


def compile_error(outcome: Outcome) -> str:
    """What the agent is told about a submission that is no program."""
    return f"{_HEADINGS['compile_error']}: {_reason(outcome)}"


def last_line(error: str) -> str:
    """The last line of what was written to standard error, "" for nothing."""
    return error.rstrip().rpartition("\n")[2]


def _reason(outcome: Outcome) -> str:
    """A traceback's last line, and the line of the submission that it happened in."""
    reason = last_line(outcome.error)
    if not reason:
        return "no message"
    if _SYNTAX_ERROR.match(reason):
        reason = _LINE_IN_MESSAGE.sub(lambda found: _renumbered(found, outcome), reason)
    reason = shorten(reason)
    numbers = [int(number[:9]) - outcome.lines_before for number in _LINE.findall(outcome.error)]
    numbers = [number for number in numbers if number > 0]
    return f"{reason} (line {numbers[-1]})" if numbers else reason


def _renumbered(found: re.Match, outcome: Outcome) -> str:
    number = int(found.group(2)[:9]) - outcome.lines_before
    return f"{found.group(1) or ''} line {number}" if number > 0 else ""
