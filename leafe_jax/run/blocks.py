"""Blocks: a phase's work in portions of tasks. Plans them, makes them, and reads them back."""

from __future__ import annotations

import collections
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from envs.base import Environment, Task
from leafe_jax.errors import UserError
from leafe_jax.run.config import RunConfig
from leafe_jax.run.phase import Phase
from leafe_jax.run.validate import first_tasks
from leafe_jax.runtime import processes
from leafe_jax.runtime.files import read_json, read_json_lines
from leafe_jax.runtime.progress import Progress
from leafe_jax.types import Budget, Tree

_LOG = logging.getLogger("leafe_jax")


class Blocks:
    """The blocks that a phase should have, by its config and tasks. Other files are ignored.

    Args:
      phase: the phase.
      tasks: all its tasks, in order.
      size: tasks per block.
      file_name: pattern of a block's file name, e.g. "{:04d}.jsonl".
      task_ids: task_ids(file) reads a block and returns the ids of its tasks, in any order. It raises
        UserError if the file is not a block.
    """

    def __init__(
        self,
        phase: Phase,
        tasks: Sequence[Task],
        size: int,
        file_name: str,
        task_ids: Callable[[epath.Path], list[str]],
    ):
        self.phase, self.size, self._task_ids = phase, size, task_ids
        self.tasks = [list(tasks[begin : begin + size]) for begin in range(0, len(tasks), size)]
        self.names = [file_name.format(number) for number in range(len(self.tasks))]
        self.files = [phase.directory / name for name in self.names]
        ids = "\n".join(task.task_id for task in tasks)
        phase.made_of(
            "tasks",
            hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest(),
            "the environment's list of tasks",
        )

    def __iter__(self) -> Iterator[epath.Path]:
        """The files, in order.

        Raises:
          UserError: a block is missing or damaged.
        """
        for number, file in enumerate(self.files):
            problem = self.problem(number)
            if problem is not None:
                kind = self.phase.name.partition("/")[0]
                name = "explore" if kind == "trees" else kind
                raise UserError(f"{problem}; put {name!r} into --config.phases to make it again")
            yield file

    def problem(self, number: int) -> str | None:
        """Why a block cannot be used, or None."""

        def check(file: epath.Path) -> None:
            wanted = collections.Counter(task.task_id for task in self.tasks[number])
            found = collections.Counter(self._task_ids(file))
            if found != wanted:
                task = sorted((wanted - found) + (found - wanted))[0]
                raise UserError(
                    f"{file}: task {task!r} occurs {found[task]} times: must be {wanted[task]}"
                )

        return self.phase.problem(self.names[number], check)

    def digest(self) -> str | None:
        """A hash of the checksums of all blocks; None if a block is missing."""
        files = self.phase.record["files"]
        for number, name in enumerate(self.names):
            if name not in files and self.problem(number) is not None:
                return None
        return hashlib.sha256("\n".join(files[n] for n in self.names).encode()).hexdigest()

    def missing(self) -> list[int]:
        """Numbers of the blocks to make, the same in all processes; renames damaged files."""
        return processes.together(f"{self.phase.name}: blocks to make", decide=self._look)

    def _look(self, _: Any) -> list[int]:
        if self.phase.is_new and any(file.exists() for file in self.files):
            raise UserError(
                f"{self.phase.record_path}: missing, but there are blocks beside it, and nothing says"
                " of which config; restore the file, or move the phase's directory away"
            )
        missing = []
        before = dict(self.phase.record["files"])
        for number, file in enumerate(self.files):
            problem = self.problem(number)
            if problem is None:
                continue
            missing.append(number)
            if file.exists():
                aside = _free_name(file)
                file.rename(aside)
                _LOG.warning("%s; it is kept as %s and made again", problem, aside.name)
            elif self.phase.done:
                _LOG.warning("%s; it is made again", problem)
        if self.phase.done and not missing and before != self.phase.record["files"]:
            self.phase.add_seconds(0.0)  # an older run's record gets the checksums
        return missing


def _free_name(file: epath.Path) -> epath.Path:
    aside, number = file.with_name(f"{file.name}.damaged"), 1
    while aside.exists():
        number += 1
        aside = file.with_name(f"{file.name}.damaged{number}")
    return aside


# -- the two kinds ---------------------------------------------------------------------------------
class Trees:
    """The trees of some files, in order, read anew each time: all at once may be more than memory holds.

    Raises:
      UserError: while it is iterated, names a line that is no tree.
    """

    def __init__(self, paths: Iterable[Any]):
        self._paths = paths

    def __iter__(self) -> Iterator[Tree]:
        for path in self._paths:
            for number, data in enumerate(read_json_lines(path), start=1):
                try:
                    yield Tree.from_json(data)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    raise UserError(f"{path}, line {number}: not a tree: {reason}") from error


def tree_blocks(config: RunConfig, env: Environment, workdir: epath.Path, search: str) -> Blocks:
    """The blocks of a search."""
    settings = config.search[search]
    return Blocks(
        Phase(workdir, f"trees/{search}", config),
        first_tasks(env, settings.split, settings.num_tasks, f"search.{search}.num_tasks"),
        settings.block_size,
        "{:04d}.jsonl",
        lambda file: [tree.task_id for tree in Trees([file])],
    )


def evaluation_blocks(
    config: RunConfig, env: Environment, workdir: epath.Path, method: str
) -> Blocks:
    """The blocks of a method's evaluation."""
    settings = config.evaluate
    return Blocks(
        Phase(workdir, f"evaluate/{method}", config),
        first_tasks(env, settings.split, settings.num_tasks, "evaluate.num_tasks"),
        settings.block_size,
        "{:04d}.json",
        lambda file: [r["task_id"] for r in read_evaluation(file, settings.num_samples)["tasks"]],
    )


def read_evaluation(file: epath.Path, num_samples: int) -> dict[str, Any]:
    """A block of an evaluation: {"tasks": records, "budget"} (leafe_jax/agent/evaluate.py).

    Raises:
      UserError: it cannot be read, or is no such block.
    """
    block = read_json(file)
    try:
        Budget(**block["budget"]).add(Budget())
        for record in block["tasks"]:
            successes = record["successes"]
            fits = (
                isinstance(record["task_id"], str)
                and isinstance(record["family"], str)
                and isinstance(record["out_of_context"], int)
                and isinstance(record["transcript"], list)
                and isinstance(successes, list)
                and len(successes) == num_samples
                and all(isinstance(s, bool) for s in successes)
            )
            if not fits:
                raise ValueError(f"the record of task {record['task_id']!r} is incomplete")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not a block of an evaluation: {reason}") from error
    return block


# -- making them -----------------------------------------------------------------------------------
def run_blocks(
    blocks: Blocks,
    missing: Sequence[int],
    work: Callable[[list[Task], epath.Path], None],
    *,
    bar: Progress,
    units: int,
    log: Callable[[int, epath.Path], None],
) -> None:
    """Makes the missing blocks; several processes divide them. Returns when all blocks exist.

    Of n processes, each takes every n-th missing block. A block's content does not depend on which process
    makes it, and a restart may have a different number of processes.

    Args:
      blocks, missing: the blocks, and `blocks.missing()`.
      work: work(tasks of the block, file) writes the file, which appears when it is complete.
      bar: counts `units` per task of blocks that exist or that others make. `work` counts its own.
      log: log(number, file), in order, in the first process, for every block.
    """
    phase, files = blocks.phase, blocks.files
    done = set(range(len(files))) - set(missing)
    own = missing[jax.process_index() :: jax.process_count()]
    logged = 0

    def look() -> None:
        """In the first process: counts blocks that others have finished, and logs blocks in order."""
        nonlocal logged
        for number in set(missing) - set(own) - done:
            if files[number].exists():
                done.add(number)
                phase.keep(blocks.names[number])
                bar.update(units * len(blocks.tasks[number]))
        while logged in done:
            log(logged, files[logged])
            logged += 1

    if processes.first():
        if done:
            bar.update(units * sum(len(blocks.tasks[number]) for number in done))
        if 0 < len(missing) < jax.process_count():
            _LOG.info(
                "%s: %d blocks for %d processes, so some have nothing to do; smaller blocks"
                " (block_size = %d) would help",
                phase.name, len(missing), jax.process_count(), blocks.size,
            )  # fmt: skip
        look()
    for number in own:
        begin = time.monotonic()
        work(blocks.tasks[number], files[number])
        done.add(number)
        phase.keep(blocks.names[number])
        phase.add_seconds(time.monotonic() - begin)
        if processes.first():
            look()
    begin = time.monotonic()
    processes.together(f"{phase.name}: blocks", seconds=None, meanwhile=look)
    if processes.first():
        _await_files(files)
        look()
        phase.add_seconds(time.monotonic() - begin)


def _await_files(files: Sequence[epath.Path], seconds: float = 60) -> None:
    """Waits until the directory lists files that other processes have made.

    Network file systems cache listings for a while, and a block that is not listed would be missing from
    the results.

    Raises:
      UserError: a file is not listed within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while files:
        listed = {path.name for path in files[0].parent.iterdir()}
        unseen = [file for file in files if file.name not in listed]
        if not unseen:
            return
        if time.monotonic() > deadline:
            raise UserError(f"{unseen[0]}: made by another process, but not seen by process 0")
        time.sleep(1)
