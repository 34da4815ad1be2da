"""Judging: what counts as the right output, and what a submission is told about its failure."""

from __future__ import annotations

import dataclasses
import json
import logging
import re

from envs import sandbox
from envs.base import EnvDataError
from envs.code_data import Case, Problem

TOLERANCE = 1e-5  # of decimal numbers, relative or absolute
MAX_SHOWN = 400  # characters of a text in the feedback

_log = logging.getLogger(__name__)
_INTEGER = re.compile(r"[+-]?[0-9]+")
# Not float(): it reads 1_000 and nan too. What is matched is a program's output, megabytes of it at
# worst: two repetitions that can share their digits would take time with the square of its length.
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_LINE = re.compile(r'File "program\.py", line ([0-9]+)')
_HELLO = sandbox.Job("print('hello')")
# A checker reads a submission's whole output: what that costs is no matter of the problem's limits.
_CHECKER_LIMITS = sandbox.Limits(cpu_seconds=10.0, wall_seconds=35.0, memory_bytes=1 << 30)
_CHECK = "import json, sys\nprint(bool(check(*json.loads(sys.stdin.read()))))\n"
_HEADINGS = {
    "compile_error": "Compile error",
    "runtime_error": "Runtime error",
    "time_limit": "Time limit exceeded",
    "memory_limit": "Memory limit exceeded",
    "output_limit": "Output limit exceeded",
    "sandbox_error": "The program could not be run",
}


def same_output(expected: str, actual: str, ignore_case: bool = False) -> bool:
    """Whether two outputs agree token by token.

    Where the expected token is a decimal number, any number within TOLERANCE of it will do,
    relative or absolute. An expected integer must be met exactly: at a relative tolerance
    1000000007 and 1000000008 would be the same. `3.0` for `3` is accepted.
    """
    if ignore_case:
        expected, actual = expected.lower(), actual.lower()
    wanted, got = expected.split(), actual.split()
    return len(wanted) == len(got) and all(map(_same_token, wanted, got))


def _same_token(wanted: str, got: str) -> bool:
    if wanted == got:
        return True
    if not _DECIMAL.fullmatch(wanted) or not _DECIMAL.fullmatch(got):
        return False
    if _INTEGER.fullmatch(wanted):
        return not _INTEGER.fullmatch(got) and abs(float(got) - float(wanted)) <= TOLERANCE
    difference = abs(float(wanted) - float(got))
    return difference <= TOLERANCE * max(1.0, abs(float(wanted)))  # inf - inf is nan: False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a submission fared on one case: a sandbox status, or "wrong"; "ok" is passed."""

    status: str
    output: str = ""
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a submission fared.

    Attributes:
      success: all judged cases passed.
      status: "ok", or of the first case that failed: "wrong" or a sandbox status.
      feedback: what the agent is told; only public cases are shown.
    """

    success: bool
    status: str
    feedback: str


class Judge:
    """Runs submissions in a sandbox.

    Args:
      pool: where they run.
      limits: of every run.
      ignore_case: compare outputs without regard to case, as CTRL's judge does.
    """

    def __init__(self, pool: sandbox.Sandbox, limits: sandbox.Limits, ignore_case: bool):
        self.pool = pool
        self.limits = limits
        self.ignore_case = ignore_case

    def judge(self, problem: Problem, submission: str) -> Verdict:
        """The verdict on one submission; any string is one."""
        program = complete(problem, submission)
        failed, passed = None, set()
        for number, case in enumerate(problem.public, 1):
            outcome = self._play(problem, program, case)
            if outcome.status != "ok":
                failed = (number, case, outcome)
                break
            passed.add(case)
        if failed is None or failed[1] not in problem.judged:
            hidden = self._hidden(problem, program, passed)
            if hidden is None:
                return Verdict(True, "ok", "All tests passed.")
        if failed is not None:
            return Verdict(False, failed[2].status, describe(problem, *failed))
        if hidden.status == "compile_error":  # says nothing about the tests
            return Verdict(False, hidden.status, _compile_error(hidden))
        known = "All public tests passed, but not all" if problem.public else "Not all"
        return Verdict(False, hidden.status, f"{known} hidden tests.")

    def _hidden(self, problem: Problem, program: str, passed: set[Case]) -> Outcome | None:
        """How the first judged case that fails did, or None."""
        for case in problem.judged:
            if case not in passed:
                outcome = self._play(problem, program, case)
                if outcome.status != "ok":
                    return outcome
        return None

    def _play(self, problem: Problem, program: str, case: Case) -> Outcome:
        if case.code:
            result = self._run(sandbox.Job(program, "", case.code, self.limits))
            right = result.finished  # an early exit must not pass for a pass
        else:
            result = self._run(sandbox.Job(program, case.input, "", self.limits))
            right = result.status == "ok" and self._accepts(problem, case, result.output)
        status = result.status
        if status == "ok" and not right:
            status = "wrong"
        elif status == "runtime_error" and case.code and _last(result.error, "AssertionError"):
            status = "wrong"
        return Outcome(status, result.output, result.error)

    def _accepts(self, problem: Problem, case: Case, output: str) -> bool:
        """Whether an output is right.

        Raises:
          EnvDataError: the problem's checker raised, or cannot take the expected output either.
        """
        if not problem.checker:
            return same_output(case.output, output, self.ignore_case)
        result = self._check(problem, case, output)
        if result.status in ("memory_limit", "time_limit") and output != case.output:
            # Is it the output's doing, or the checker's?
            if self._check(problem, case, case.output).status == "ok":
                return False
        if result.status != "ok" or result.output not in ("True\n", "False\n"):
            raise EnvDataError(
                f"task {problem.task_id}: its checker failed: {result.status}"
                f" {result.error.strip().rpartition(chr(10))[2]}"
            )
        return result.output == "True\n"

    def _check(self, problem: Problem, case: Case, output: str) -> sandbox.Result:
        data = json.dumps([case.input, case.output, output])
        return self._run(sandbox.Job(problem.checker, data, _CHECK, _CHECKER_LIMITS))

    def _run(self, job: sandbox.Job) -> sandbox.Result:
        result = self.pool.run(job)
        if result.status == "sandbox_error":
            # The program's doing, or is nothing running any more? The second may not count.
            if self.pool.run(_HELLO).output != "hello\n":
                raise EnvDataError(f"the sandbox stopped working: {result.error}")
            _log.warning("a program brought its sandbox down: %s", result.error)
        return result


def complete(problem: Problem, submission: str) -> str:
    """The program that is run: a bare function body is put below its stub."""
    if not problem.entry_point:
        return submission
    if re.search(rf"^(async )?def {re.escape(problem.entry_point)}\b", submission, re.MULTILINE):
        return f"{problem.prelude}\n{submission}"
    return f"{problem.stub}{submission}"


def _last(error: str, exception: str) -> bool:
    return error.rstrip().rpartition("\n")[2].startswith(exception)


def shorten(text: str) -> str:
    """`text` without blank ends, at most MAX_SHOWN characters."""
    text = text.strip()
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[:MAX_SHOWN]}... ({len(text)} characters)"


def describe(problem: Problem, number: int, case: Case, outcome: Outcome) -> str:
    """What the agent is told about public case `number`, the first that failed."""
    if outcome.status == "compile_error":
        return _compile_error(outcome)
    heading = _HEADINGS.get(outcome.status, "Wrong answer")
    text = f"{heading} on public test {number}"
    if outcome.status == "runtime_error":
        text += f": {_reason(outcome.error)}"
    lines = [text + ("" if outcome.status == "runtime_error" else ".")]
    if case.code:
        lines.append(f"Test: {shorten(case.input)}")
        if outcome.status == "wrong":
            lines.append(f"Actual: {_reason(outcome.error).removeprefix('AssertionError: ')}")
        return "\n".join(lines)
    lines.append(f"Input:\n{shorten(case.input)}")
    if outcome.status == "wrong":
        lines.append(f"Expected output:\n{shorten(case.output)}")
        lines.append(f"Actual output:\n{shorten(outcome.output) or '(nothing)'}")
    return "\n".join(lines)


def _compile_error(outcome: Outcome) -> str:
    return f"{_HEADINGS['compile_error']}: {_reason(outcome.error)}"


def _reason(error: str) -> str:
    """A traceback's last line, and the line of the program that it happened in."""
    lines = error.strip().splitlines()
    if not lines:
        return "no message"
    where = _LINE.findall(error)
    reason = shorten(lines[-1])
    return f"{reason} (line {where[-1]})" if where else reason
