"""Judges submissions: runs them, and compares their outputs."""

from __future__ import annotations

import dataclasses
import json
import logging
import re

from envs import sandbox
from envs.base import EnvDataError
from envs.code.data import Case, Problem
from envs.code.feedback import Outcome, compile_error, describe, last_line, shorten
from envs.code.files import shown

TOLERANCE = 1e-5  # of decimal numbers, relative or absolute

_log = logging.getLogger(__name__)
_INTEGER = re.compile(r"[+-]?[0-9]+")
# Not float(), which also accepts 1_000 and nan. The output may have megabytes: two repetitions that
# match the same digits would take quadratic time.
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
# Runs before a submission whose problem names files: opening them gives the standard streams.
_NAMED_FILES = """
def _name_files(names):
    import builtins, io, os
    inner = builtins.open
    def open(file, *arguments, **options):
        if isinstance(file, str | os.PathLike):
            name = os.path.normpath(os.fspath(file))
            file = os.dup(names[name]) if name in names else file
        return inner(file, *arguments, **options)
    builtins.open = io.open = open
_name_files(%r)
del _name_files
"""
_HELLO = sandbox.Job("print('hello')")
# A checker reads the whole output of a submission, so the problem's limits do not apply to it.
_CHECKER_LIMITS = sandbox.Limits(cpu_seconds=10.0, wall_seconds=35.0, memory_bytes=1 << 30)
_CHECK = "import json, sys\nprint(bool(check(*json.loads(sys.stdin.read()))))\n"


def same_output(expected: str, actual: str, ignore_case: bool = False) -> bool:
    """True if two outputs agree token by token.

    An expected decimal number accepts any number within TOLERANCE, relative or absolute. An expected
    integer must be met exactly: with a relative tolerance, 1000000007 and 1000000008 would be the
    same. `3.0` for `3` is accepted.
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
class Attempt:
    """A submission as it is run.

    Attributes:
      program: source, with the submission at its end.
      prelude: source that runs before it.
      lines_before: lines of `program` before the submission's first one.
    """

    program: str
    prelude: str = ""
    lines_before: int = 0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a submission.

    Attributes:
      success: all judged cases passed.
      status: "ok", or the status of the first failed case: "wrong" or a sandbox status.
      feedback: what the agent reads; it shows public cases only.
    """

    success: bool
    status: str
    feedback: str


class Judge:
    """Runs submissions in a sandbox.

    Args:
      pool: the sandbox.
      limits: limits of every run.
      ignore_case: True ignores case when outputs are compared, as CTRL's judge does.
    """

    def __init__(self, pool: sandbox.Sandbox, limits: sandbox.Limits, ignore_case: bool):
        self.pool = pool
        self.limits = limits
        self.ignore_case = ignore_case
        self._checked: set[tuple[str, Case]] = set()  # the checker accepts the expected output
        self._known_to_hold: dict[tuple[str, Case], bool] = {}

    def judge(self, problem: Problem, submission: str) -> Verdict:
        """The verdict on one submission, which may be any string."""
        failed, passed = None, set()
        for number, case in enumerate(problem.public, 1):
            outcome = self._play(problem, submission, case)
            if outcome.status == "ok":
                passed.add(case)
            elif self._holds(problem, case):
                failed = (number, case, outcome)
                break
        if failed is None or failed[1] not in problem.judged:
            hidden = self._hidden(problem, submission, passed)
            if hidden is None:
                return Verdict(True, "ok", "All tests passed.")
        if failed is not None:
            return Verdict(False, failed[2].status, describe(problem, *failed))
        if hidden.status == "compile_error":  # says nothing about the tests
            return Verdict(False, hidden.status, compile_error(hidden))
        known = "All public tests passed, but not all" if problem.public else "Not all"
        return Verdict(False, hidden.status, f"{known} hidden tests.")

    def _holds(self, problem: Problem, case: Case) -> bool:
        """True if a failed case counts.

        Judged cases count. Other examples of a prompt count unless the reference fails them: the
        expected value of such an example (HumanEval/47) is wrong.
        """
        if case in problem.judged or not problem.reference:
            return True
        key = problem.task_id, case
        if key not in self._known_to_hold:
            reference = self._play(problem, problem.reference, case)
            self._known_to_hold[key] = reference.status == "ok"
        return self._known_to_hold[key]

    def _hidden(self, problem: Problem, submission: str, passed: set[Case]) -> Outcome | None:
        """The outcome of the first judged case that fails, or None."""
        for case in problem.judged:
            if case not in passed:
                outcome = self._play(problem, submission, case)
                if outcome.status != "ok":
                    return outcome
        return None

    def _play(self, problem: Problem, submission: str, case: Case) -> Outcome:
        attempt = complete(problem, submission)
        stdin, tests = ("", case.code) if case.code else (case.input, "")
        job = sandbox.Job(attempt.program, stdin, tests, self._limits(case), attempt.prelude)
        result = self.run(job)
        if case.code:
            right = result.finished  # an early exit must not count as passed
        else:
            right = result.status == "ok" and self._accepts(problem, case, result.output)
        status = result.status
        if status == "ok" and not right:
            status = "wrong"
        elif status == "runtime_error" and case.code:
            if last_line(result.error).startswith("AssertionError"):
                status = "wrong"
        return Outcome(status, result.output, result.error, attempt.lines_before)

    def _limits(self, case: Case) -> sandbox.Limits:
        """The limits, with more room if the expected output exceeds them."""
        allowed = self.limits.output_bytes
        if len(case.output) < allowed // 8:
            return self.limits
        room = min(allowed + 8 * len(case.output), sandbox.MAX_OUTPUT_BYTES)
        return dataclasses.replace(self.limits, output_bytes=room)

    def _accepts(self, problem: Problem, case: Case, output: str) -> bool:
        """True if an output is right.

        A checker that raises or exceeds its limits does not accept the output.

        Raises:
          EnvDataError: the problem's checker does not accept the expected output.
        """
        if not problem.checker:
            return same_output(case.output, output, self.ignore_case)
        if (problem.task_id, case) not in self._checked:
            said = self._check(problem, case, case.output)
            if said.status != "ok" or last_line(said.output) != "True":
                why = last_line(said.error) if said.status != "ok" else last_line(said.output)
                raise EnvDataError(
                    f"{problem.where}: task {problem.task_id!r}: its checker must accept the"
                    f" expected output of every test, and on {shown(case.output)} it failed:"
                    f" {said.status} {shown(why)}"
                )
            self._checked.add((problem.task_id, case))
        said = self._check(problem, case, output)
        return said.status == "ok" and said.finished and last_line(said.output) == "True"

    def _check(self, problem: Problem, case: Case, output: str) -> sandbox.Result:
        data = json.dumps([case.input, case.output, output])
        return self.run(sandbox.Job(problem.checker, data, _CHECK, _CHECKER_LIMITS))

    def run(self, job: sandbox.Job) -> sandbox.Result:
        """Runs one job; EnvDataError if the sandbox has stopped working."""
        result = self.pool.run(job)
        if result.status == "sandbox_error":
            reason = shorten(last_line(result.error))
            # Did the program do this, or has the sandbox stopped? The latter must not count.
            if self.pool.run(_HELLO).output != "hello\n":
                raise EnvDataError(f"the sandbox stopped working: {reason}")
            _log.warning("a program brought its sandbox down: %s", reason)
        return result


def complete(problem: Problem, submission: str) -> Attempt:
    """What is run of a submission: a bare function body is put below its stub."""
    if not problem.entry_point:
        return Attempt(submission, _NAMED_FILES % dict(problem.files) if problem.files else "")
    submission = submission.removeprefix("\ufeff")  # a file's mark of UTF-8
    name = re.escape(problem.entry_point)
    # By any of Python's ways to define it, at the start of a line.
    defined = rf"^(?:(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|{name}[ \t]*(?::[^=\n]*)?=(?!=))"
    if re.search(defined, submission, re.MULTILINE):
        return Attempt(submission, problem.prelude)
    return Attempt(problem.stub + submission, lines_before=problem.stub.count("\n"))
