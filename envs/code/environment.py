"""`code`: the agent submits a program up to four times, and sees the results of the public tests.

This is LEAFE's CodeContests setting (arXiv 2603.16843): horizon 4, judged as in CTRL, on the first ten
tests. Feedback shows public tests only. Hidden tests only say whether all of them passed, which the end
of the episode says anyway. Without `problems`, the environment plays our own set, whose sources are in
envs/code/problems/.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from envs import sandbox
from envs.base import (
    EnvDataError,
    Environment,
    FilePath,
    Options,
    State,
    StepResult,
    Task,
    one_of,
)
from envs.code import data as code_data
from envs.code.feedback import clean
from envs.code.files import shown
from envs.code.judge import Judge, Verdict
from envs.code.problems import drills
from envs.code.sources import check_sources

LAYOUTS = (*code_data.LAYOUTS, "drills")
MAX_PROGRAM_CHARS = 65536


@dataclasses.dataclass(frozen=True)
class Submission:
    """A program and its feedback."""

    program: str
    feedback: str


@dataclasses.dataclass(frozen=True)
class CodeState(State):
    """What changes during an episode.

    Attributes:
      submissions: the submissions so far, oldest first.
    """

    submissions: tuple[Submission, ...] = ()


@dataclasses.dataclass(frozen=True)
class CodeOptions(Options):
    """Options of `code`.

    Attributes:
      problems: data files; (): our own set.
      layout: layout of these files: own, codecontests, mbpp or humaneval. Or drills, without files:
        short problems for very small models, with a split "bootstrap" for scripted corpora.
      num_tests: the first N tests of a problem decide (CTRL: 10); 0: all.
      num_public: the first N public tests are shown; 0: all.
      time_limit: CPU seconds per test.
      memory_mb: address space per test in MiB, including 50 for the interpreter.
      ignore_case: True accepts outputs that differ in case, as CTRL's judge does.
      workers: programs run in parallel; 0: one per core.
      mechanism: sandbox, one of sandbox.mechanisms.NAMES; "": the strongest that works here.
      allow_weak: True allows resource limits alone if nothing stronger works.
    """

    problems: tuple[FilePath, ...] = ()
    layout: str = one_of("own", LAYOUTS)
    num_tests: int = 10
    num_public: int = 0
    time_limit: float = 5.0
    memory_mb: int = 1024
    ignore_case: bool = False
    workers: int = 0
    mechanism: str = one_of("", sandbox.MECHANISMS)
    allow_weak: bool = False

    def check(self) -> None:
        if self.layout == "drills":
            self.require("problems", not self.problems, "(): drills have no files")
        elif self.layout != "own":
            self.require("problems", self.problems, f"at least one file for {self.layout!r}")
        for option in ("num_tests", "num_public"):
            self.require(option, getattr(self, option) >= 0, "a number of tests, 0 for all")
        self.require("time_limit", 0.1 <= self.time_limit <= 600, "a number from 0.1 to 600")
        self.require("memory_mb", 64 <= self.memory_mb <= 1 << 16, "an integer from 64 to 65536")
        self.require("workers", 0 <= self.workers <= sandbox.MAX_WORKERS, "from 0 to 1024")

    def limits(self) -> sandbox.Limits:
        """What one test may use."""
        return sandbox.Limits(
            cpu_seconds=self.time_limit,
            # A backstop for programs that wait: a busy machine must not decide a verdict.
            wall_seconds=3 * self.time_limit + 5,
            memory_bytes=self.memory_mb << 20,
        )


class Code(Environment):
    """Programming problems; see the module docstring.

    Raises:
      EnvDataError: a file is wrong, or no sandbox works on this machine.
    """

    name = "code"
    horizon = 4  # the paper
    Options = CodeOptions
    player = "envs.code.player:CodePlayer"
    prompt_styles = ("program",)
    programs = True
    has_workers = True
    description = (
        "You solve programming problems in Python 3. A program reads standard input and writes"
        " standard output, unless the problem asks for a function. After each submission you learn"
        " how it did on the public tests; it counts once it passes the hidden ones too."
    )

    def __init__(self, horizon: int | None = None, options: CodeOptions | None = None):
        super().__init__(horizon, options)
        options = self.options
        if options.layout == "drills":
            self.splits = drills.SPLITS
        self.files = options.problems or (str(code_data.OWN_SET),)
        pool = sandbox.shared(options.mechanism, options.allow_weak, options.workers)
        self.judge = Judge(pool, options.limits(), options.ignore_case)
        self._problems: dict[str, dict[str, code_data.Problem]] = {}
        # Samples for one task often submit the same program.
        self._verdict = functools.lru_cache(maxsize=4096)(self._judge_again)

    # -- problems ------------------------------------------------------------------------------
    def _load(self, split: str) -> dict[str, code_data.Problem]:
        if split not in self._problems and self.options.layout == "drills":
            found = drills.drills(split).values()
            self._problems[split] = {p.task_id: p for p in map(drills.problem, found)}
        if split not in self._problems:
            self._problems[split] = self._load_files(split)
        return self._problems[split]

    def _load_files(self, split: str) -> dict[str, code_data.Problem]:
        problems: dict[str, code_data.Problem] = {}
        options, layout = self.options, self.options.layout
        first = 0
        for path in self.files:
            if layout == "codecontests" and code_data.file_split(path) not in ("", split):
                continue  # these files are large, and each has one split
            loaded = code_data.load(path, layout, options.num_tests, options.num_public, first)
            for own_split, problem in loaded:
                first += 1
                if own_split != split:
                    continue
                if problem.task_id in problems:
                    raise EnvDataError(
                        f"{problem.where}: task {problem.task_id!r} occurs twice"
                        f" ({problems[problem.task_id].where})"
                    )
                problems[problem.task_id] = problem
        check_sources(self.judge, list(problems.values()))
        return problems

    def _list_tasks(self, split: str) -> Sequence[Task]:
        return [Task(p.task_id, p.family, split) for p in self._load(split).values()]

    def problem(self, task_id: str) -> code_data.Problem:
        """The problem behind a task; EnvDataError if there is none."""
        split = task_id.partition("/")[0]
        problem = self._load(split).get(task_id) if split in self.splits else None
        if problem is None:
            raise EnvDataError(
                f"code task {shown(task_id)}: must be one of the tasks that list_tasks(split) names"
            )
        return problem

    def _reset(self, task_id: str) -> tuple[State, str]:
        return CodeState(task_id=task_id), clean(self.problem(task_id).statement)

    def goal(self, first_observation: str) -> str:
        """The whole statement, since feedback does not repeat it."""
        return first_observation

    # -- submissions ---------------------------------------------------------------------------
    def _judge_again(self, task_id: str, program: str) -> Verdict:
        return self.judge.judge(self.problem(task_id), program)

    def _step_many(self, moves: Sequence[tuple[CodeState, str]]) -> list[tuple[State, StepResult]]:
        # Each program once, in parallel; then results in the order of the moves.
        todo = list(dict.fromkeys((state.task_id, _cut(action)) for state, action in moves))
        for task_id, _ in todo:
            self.problem(task_id)  # not in the pool's threads: loading needs the pool, too
        verdicts = self.judge.pool.map(lambda key: self._verdict(*key), todo)
        known = dict(zip(todo, verdicts, strict=True))
        return [self._moved(state, action, known) for state, action in moves]

    def _step(self, state: CodeState, action: str) -> tuple[State, StepResult]:
        return self._step_many([(state, action)])[0]

    def _moved(self, state: CodeState, action: str, known: dict) -> tuple[State, StepResult]:
        program = _cut(action)
        verdict = known[state.task_id, program]
        submission = Submission(program, verdict.feedback)
        new = dataclasses.replace(state, submissions=(*state.submissions, submission))
        # Valid: it compiles and is not empty.
        valid = bool(program.strip()) and verdict.status != "compile_error"
        info = {"valid": valid, "status": verdict.status}
        reward = float(verdict.success)
        return new, StepResult(verdict.feedback, reward, verdict.success, verdict.success, info)

    def actions(self, state: CodeState) -> tuple[str, ...]:
        """(): programs cannot be listed."""
        return ()

    def solve(self, state: CodeState) -> list[str] | None:
        """The problem's own solution, if there is one and the judge accepts it."""
        reference = self.problem(state.task_id).reference
        if state.done or not reference or len(reference) > MAX_PROGRAM_CHARS:
            return None
        return [reference] if self._verdict(state.task_id, reference).success else None


def _cut(action: str) -> str:
    return action[:MAX_PROGRAM_CHARS]
