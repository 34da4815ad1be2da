"""Checks, before anything is judged, that the sandbox can run the problems' tests.

Tests that do not compile, or that import what the sandbox lacks, would fail every submission.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

from envs import sandbox
from envs.base import EnvDataError
from envs.code.data import Problem
from envs.code.files import shown
from envs.code.judge import Judge

_BATCH_CHARS = 1 << 22  # of the sources in one run
# Not the problems' limits, since parsing takes more than running.
_LIMITS = sandbox.Limits(cpu_seconds=60.0, wall_seconds=180.0, memory_bytes=4 << 30)
# Prints, for each source, [why it does not compile or "", [[module, why it cannot be imported or
# ""], ...]]. Imports inside `try` have a fallback, so they may fail.
_SURVEY = """
import ast, importlib, io, json, sys

def modules(tree):
    optional, found = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and node.handlers and id(node) not in optional:
            optional.update(id(inner) for part in node.body for inner in ast.walk(part))
        if id(node) in optional:
            continue
        if isinstance(node, ast.Import):
            found.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found[node.module] = None
    return found

known = {}
def why_missing(name):
    if name not in known:
        try:
            importlib.import_module(name)
            known[name] = ""
        except BaseException as error:
            known[name] = f"{type(error).__name__}: {error}"[:200]
    return known[name]

def survey(source):
    try:
        tree = ast.parse(source)
        compile(tree, "tests", "exec", 0, True)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"[:200], []]
    return ["", [[name, why_missing(name)] for name in modules(tree)]]

out, sys.stdout = sys.stdout, io.StringIO()  # some modules print when they are imported
print(json.dumps([survey(source) for source in json.load(sys.stdin)]), file=out, flush=True)
"""


def check_sources(judge: Judge, problems: Sequence[Problem]) -> None:
    """Returns if the sandbox compiles all tests and has the modules that they import.

    Args:
      judge: its sandbox is used; packages must load within its limits.
      problems: problems of any kind; those judged by output have no tests.

    Raises:
      EnvDataError: names file, record, task and what is missing.
    """
    users: dict[str, str] = {}  # source -> its first place, for errors
    for problem in problems:
        for what, source in _sources(problem):
            users.setdefault(source, f"{problem.where}: task {problem.task_id!r}: {what}")
    packages: dict[str, str] = {}
    for source, (error, modules) in _answers(judge, list(users)).items():
        if error:
            raise EnvDataError(
                f"{users[source]} must be Python that the sandbox compiles: {shown(error)}"
            )
        for name, why in modules:
            packages.setdefault(name.partition(".")[0], users[source])
            if why:
                raise EnvDataError(
                    f"{users[source]} needs {shown(name)}, which the sandbox lacks: it has the"
                    f" standard library and, where installed, {', '.join(sandbox.PACKAGES)}"
                    f" ({shown(why)})"
                )
    for name in set(sandbox.PACKAGES) & set(packages):
        result = judge.run(sandbox.Job(f"import {name}", limits=judge.limits))
        if result.status != "ok":
            raise EnvDataError(
                f"{packages[name]} needs {name!r}, which does not load within"
                f" env.options.time_limit and env.options.memory_mb: {result.status}"
            )


def _sources(problem: Problem) -> Iterator[tuple[str, str]]:
    for case in (*problem.public, *problem.judged):
        if case.code:
            yield "its test", case.code
    if problem.prelude:
        yield "its prompt", problem.prelude
    if problem.checker:
        yield "its checker", problem.checker


def _answers(judge: Judge, sources: Sequence[str]) -> dict[str, list]:
    batches: list[list[str]] = []
    size = _BATCH_CHARS
    for source in sources:
        if size + len(source) > _BATCH_CHARS:
            batches.append([])
            size = 0
        batches[-1].append(source)
        size += len(source)
    answers = judge.pool.map(lambda batch: _ask(judge, batch), batches)
    return dict(zip(sources, itertools.chain.from_iterable(answers), strict=True))


def _ask(judge: Judge, batch: Sequence[str]) -> list:
    result = judge.run(sandbox.Job(_SURVEY, json.dumps(batch), limits=_LIMITS))
    if result.status == "ok":
        return json.loads(result.output)
    if len(batch) == 1:  # this source is the cause
        return [[f"{result.status} {result.error.strip().rpartition(chr(10))[2]}", []]]
    return [answer for source in batch for answer in _ask(judge, [source])]
