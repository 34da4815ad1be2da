"""A phase on disk: its directory, its record, and the blocks that its work is cut into."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from envs.base import Environment, Task
from leafe_jax.errors import UserError
from leafe_jax.settings import relevant


class Phase:
    """A phase's directory and its record.

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
        if self.record_path.exists():
            self.record = json.loads(self.record_path.read_text())
            self._refuse_changes(own)

    def begin(self) -> None:
        """Claims the directory for this config; called once everything it needs has been loaded."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write()

    def _refuse_changes(self, config: dict[str, Any]) -> None:
        known = self.record["config"]
        for field in sorted({*known, *config}):
            if known.get(field) != config.get(field):
                raise UserError(
                    f"{field} = {config.get(field)!r}, but phase {self.name!r} of this workdir was"
                    f" made with {known.get(field)!r}: use that value or another --workdir"
                )

    def _write(self) -> None:
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


def write_json(path: epath.Path, data: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of one."""
    temporary = path.parent / (path.name + ".partial")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    temporary.replace(path)


def blocks(tasks: list[Task], size: int) -> Iterator[tuple[int, list[Task]]]:
    for number, begin in enumerate(range(0, len(tasks), size)):
        yield number, tasks[begin : begin + size]


def first_tasks(env: Environment, split: str, number: int, field: str) -> list[Task]:
    tasks = list(env.list_tasks(split))
    if number > len(tasks):
        raise UserError(f"{field} = {number}: split {split!r} has {len(tasks)} tasks")
    return tasks[:number] if number else tasks
