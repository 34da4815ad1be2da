"""The feedback on a submission, as clean text of bounded length."""

from __future__ import annotations

import dataclasses
import re

from envs.code.data import Case, Problem

MAX_SHOWN = 400  # characters of each quoted text

_LINE = re.compile(r'File "program\.py", line ([0-9]+)')
_SYNTAX_ERROR = re.compile("(Syntax|Indentation|Tab)Error")
_LINE_IN_MESSAGE = re.compile(r"( on| at)? line ([0-9]+)")
# Control characters except newline and tab, and lone surrogates.
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
    """The result of a submission on one case.

    Attributes:
      status: a sandbox status, or "wrong"; "ok": passed.
      output: what it printed.
      error: the end of its standard error.
      lines_before: number of our lines before the submission's first one.
    """

    status: str
    output: str = ""
    error: str = ""
    lines_before: int = 0


def clean(text: str) -> str:
    r"""`text` without characters that UTF-8, JSON or a terminal cannot take.

    CRLF becomes a newline, other control characters are escaped (`\x1b`), lone surrogates become U+FFFD.
    """
    return _UNCLEAN.sub(_spelt_out, text.replace("\r\n", "\n"))


def _spelt_out(found: re.Match) -> str:
    character = found.group()
    return "\ufffd" if character >= "\ud800" else f"\\x{ord(character):02x}"


def shorten(text: str) -> str:
    """`text` stripped and cleaned, cut after MAX_SHOWN characters; if cut, its length follows."""
    text = text.strip()
    shown = clean(text[: MAX_SHOWN + 1])
    if len(text) <= MAX_SHOWN >= len(shown):
        return shown
    return f"{shown[:MAX_SHOWN]}... ({len(text)} characters)"


def describe(problem: Problem, number: int, case: Case, outcome: Outcome) -> str:
    """The feedback on public case `number`, the first that failed."""
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
    """The feedback on a submission that does not compile."""
    return f"{_HEADINGS['compile_error']}: {_reason(outcome)}"


def last_line(error: str) -> str:
    """The last line of standard error, "" if it is empty."""
    return error.rstrip().rpartition("\n")[2]


def _reason(outcome: Outcome) -> str:
    """A traceback's last line, with the line number in the submission."""
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
