"""A phase on disk: its directory, its record, and the blocks that its work is cut into."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from envs.base import Task
from leafe_jax import processes
from leafe_jax.errors import UserError
from leafe_jax.progress import Progress
from leafe_jax.settings import relevant

_LOG = logging.getLogger("leafe_jax")


class Phase:
    """A phase's directory and its record, which the first process keeps for all.

    Args:
      workdir: the run's directory.
      name: e.g. "evaluate/base".
      config: the whole config.

    Raises:
      UserError: the directory was made with another config.
    """

    def __init__(self, workdir: epath.Path, name: str, config):
        self.name, self.directory = name, workdir / name
        self.record_path = self.directory / "phase.json"
        own = json.loads(json.dumps(relevant(config, name)))
        self.record = {"phase": name, "done": False, "config": own, "seconds": 0.0}
        found = processes.together(name, decide=lambda _: self._read())
        if found is not None:
            if found["done"] or self._claimed():
                self._refuse_changes(own, found["config"])
            self.record = {**found, "config": own}

    def begin(self) -> None:
        """Claims the directory for this config; called once everything it needs has been loaded."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write()

    def _claimed(self) -> bool:
        """Whether something is there that another config would spoil. What training needs shows in its
        first steps (rows that do not fit, memory), so until its first checkpoint all may be changed.
        """
        if self.name != "distill":
            return True
        checkpoints = self.directory / "checkpoints"
        return processes.together(
            f"{self.name}: checkpoints",
            decide=lambda _: (
                checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())
            ),
        )

    def _read(self) -> dict[str, Any] | None:
        return json.loads(self.record_path.read_text()) if self.record_path.exists() else None

    def _refuse_changes(self, config: dict[str, Any], known: dict[str, Any]) -> None:
        for field in sorted({*known, *config}):
            if known.get(field) != config.get(field):
                raise UserError(
                    f"{field} = {config.get(field)!r}, but phase {self.name!r} of this workdir was"
                    f" made with {known.get(field)!r}: use that value or another --workdir"
                )

    def _write(self) -> None:
        if processes.first():
            write_json(self.record_path, self.record)

    @property
    def done(self) -> bool:
        return self.record["done"]

    def add_seconds(self, seconds: float) -> None:
        """Books wall time of a finished part (what a killed run spent on an unfinished one is lost)."""
        self.record["seconds"] += seconds
        self._write()

    def finish(self) -> None:
        self.record["done"] = True
        self._write()


def finished(directory: epath.Path) -> bool:
    """Whether a phase's directory has all of its work."""
    record = directory / "phase.json"
    return record.exists() and json.loads(record.read_text())["done"]


def write_json(path: epath.Path, data: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of one."""
    temporary = path.parent / (path.name + ".partial")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    temporary.replace(path)


def run_blocks(
    phase: Phase,
    tasks: Sequence[Task],
    size: int,
    file_name: str,
    work: Callable[[list[Task], epath.Path], None],
    *,
    bar: Progress,
    units: int,
    log: Callable[[int, epath.Path], None],
) -> None:
    """Does the blocks that have no file yet; several processes divide them.

    The first process looks which are missing, and each takes every n-th of those: no clock decides. A
    block's content does not depend on who makes it, and a restart may have another number of processes.
    Returns when all blocks are there.

    Args:
      phase, tasks: the phase, and all its tasks.
      size: tasks of a block.
      file_name: of a block's file in the phase's directory, e.g. "trees/{:04d}.jsonl".
      work: work(tasks of the block, file) makes the file; it appears when it is complete.
      bar: counts `units` a task. `work` counts its own.
      log: log(number, file), in order, in the first process, for every block.
    """
    cut = [list(tasks[begin : begin + size]) for begin in range(0, len(tasks), size)]
    files = [phase.directory / file_name.format(number) for number in range(len(cut))]
    missing = processes.together(
        phase.name, decide=lambda _: [n for n, file in enumerate(files) if not file.exists()]
    )
    done = set(range(len(cut))) - set(missing)
    own = missing[jax.process_index() :: jax.process_count()]
    logged = 0

    def look() -> None:
        """In the first process: counts what the others have finished, and logs what is next."""
        nonlocal logged
        for number in set(missing) - set(own) - done:
            if files[number].exists():
                done.add(number)
                bar.update(units * len(cut[number]))
        while logged in done:
            log(logged, files[logged])
            logged += 1

    if processes.first():
        if done:
            bar.update(units * sum(len(cut[number]) for number in done))
        if 0 < len(missing) < jax.process_count():
            _LOG.info(
                "%s: %d blocks for %d processes, so some have nothing to do; smaller blocks"
                " (block_size = %d) would help", phase.name, len(missing), jax.process_count(), size,
            )  # fmt: skip
        look()
    for number in own:
        begin = time.monotonic()
        work(cut[number], files[number])
        done.add(number)
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
    """Waits until the listing has files that other processes have made: network file systems keep
    listings for a while, and a block that is overlooked would be missing from the results.

    Raises:
      UserError: it does not come to have them.
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
