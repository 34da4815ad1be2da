"""A phase on disk: its directory, its record, and the check that its work is still there."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from leafe_jax.errors import UserError
from leafe_jax.run.config import RunConfig
from leafe_jax.run.depends import relevant
from leafe_jax.runtime import processes, sources
from leafe_jax.runtime.files import checksum, fingerprint, make_directory, read_json, write_json

_LOG = logging.getLogger("leafe_jax")
_SCHEMA = 4  # 4 (since 2026-12): `made_by`
_AWAY = "restore the file, or move the phase's directory away to make it again"


class Phase:
    """A phase's directory and its record, which the first process keeps for all.

    Args:
      workdir: the run's directory.
      name: e.g. "evaluate/base".
      config: all settings.

    Attributes:
      record: `phase.json` (docs/FORMATS.md).
      is_new: there was no record.

    Raises:
      UserError: the directory was made with another config, or phase.json cannot be read.
    """

    def __init__(self, workdir: epath.Path, name: str, config: RunConfig):
        self.name, self.directory = name, workdir / name
        self.record_path = self.directory / "phase.json"
        self._is_method = name in config.method or name in config.variants
        own = json.loads(json.dumps(relevant(config, name)))
        self.record: dict[str, Any] = {
            "schema": _SCHEMA, "phase": name, "done": False, "config": own, "seconds": 0.0,
            "files": {}, "made_of": {}, "made_by": [],
        }  # fmt: skip
        self._code = sources.code()  # now: the files may be others by the time that work begins
        found = processes.together(name, decide=lambda _: self._read())
        self.is_new = found is None
        if found is not None:
            if found["done"] or self._claimed():
                self._refuse_changes(own, found)
            else:  # what it was going to be made of may be changed, too
                found |= {"files": {}, "made_of": {}, "made_by": []}
            self.record |= {**found, "schema": _SCHEMA, "config": own}

    def begin(self) -> None:
        """Claims the directory for this config, and notes which code works in it from now on; called once
        everything it needs has been loaded."""
        make_directory(self.directory)
        if self._code not in self.record["made_by"]:
            self.record["made_by"].append(self._code)
        self.record["done"] = False  # True if what it had left was lost
        self._write()

    def _claimed(self) -> bool:
        """True if the directory holds results that a different config would invalidate. What training
        needs shows in its first steps (rows that do not fit, memory), so until a method's first
        checkpoint every field may change.
        """
        if not self._is_method:
            return True
        checkpoints = self.directory / "checkpoints"
        return processes.together(
            f"{self.name}: checkpoints",
            decide=lambda _: (
                checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())
            ),
        )

    def _read(self) -> dict[str, Any] | None:
        return read_record(self.directory) if self.record_path.exists() else None

    def _refuse_changes(self, config: dict[str, Any], record: dict[str, Any]) -> None:
        known = dict(record["config"])
        if "model" in record["made_of"] and _is_there(config.get("model.path")):
            # The model's files are compared instead of their path: both may have been moved.
            known["model.path"] = config["model.path"]
        for field in sorted({*known, *config}):
            if known.get(field) != config.get(field):
                raise UserError(
                    f"{field} = {config.get(field)!r}, but phase {self.name!r} of this workdir was"
                    f" made with {known.get(field)!r} ({self.record_path}): use that value or another"
                    " --workdir"
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

    # -- what it has left --------------------------------------------------------------------------
    def keep(self, name: str) -> None:
        """Notes the checksum of a file or model directory that is complete (first process only)."""
        if processes.first():
            self.record["files"][name] = _digest(self.directory / name)

    def intact(self, outputs: Mapping[str, Callable[[epath.Path], Any]]) -> bool:
        """Whether the phase is done and has all it should have left; a line names what it has not.

        Args:
          outputs: name of a file or model directory -> a check of its content, which raises UserError.
            Only what has no checksum yet is checked so; then it gets one.
        """

        def look(_: Any) -> bool:
            before, problems = dict(self.record["files"]), []
            for name, check in outputs.items():
                problem = self.problem(name, check)
                if problem is not None:
                    problems.append(problem)
            for problem in problems:
                _LOG.warning("%s: %s; it is made again", self.name, problem)
            if not problems and before != self.record["files"]:
                self._write()
            return not problems

        return self.done and processes.together(f"{self.name}: files", decide=look)

    def problem(self, name: str, check: Callable[[epath.Path], Any]) -> str | None:
        """What is wrong with a file or directory that the phase has left, or None (see `intact`).

        A phase that is not done may have files of a moment before the kill, which have no checksum.
        """
        path = self.directory / name
        if not path.exists():
            return f"{path} is missing"
        try:
            if name in self.record["files"]:
                if _digest(path) != self.record["files"][name]:
                    return f"{path} is damaged: it is not as it was written (another checksum)"
            else:
                check(path)
                self.keep(name)
        except UserError as error:
            return f"{path} is damaged: {error}"
        return None

    def made_of(self, source: str, digest: str, what: str) -> None:
        """Notes what the phase takes up; all processes call it with the first one's digest.

        Args:
          source: its name in the record, e.g. "model".
          digest: of its content.
          what: the source in words, for the message.

        Raises:
          UserError: the phase was begun with other content.
        """
        made_of = self.record["made_of"]
        if source not in made_of:
            made_of[source] = digest
            if self.done:  # others are written when work begins
                self._write()
        if made_of[source] != digest:
            raise UserError(
                f"{self.directory}: was made from other content of {what} than is there now; restore"
                " that, or move this directory away to make it again"
            )


def _is_there(model_path: str | None) -> bool:
    return model_path == "" or model_path is not None and Path(model_path).expanduser().is_dir()


def _digest(path: epath.Path) -> str:
    return fingerprint(path) if path.is_dir() else checksum(path)


def read_record(directory: epath.Path) -> dict[str, Any]:
    """A phase's record.

    Raises:
      UserError: it cannot be read, or is no record of a phase.
    """
    path = directory / "phase.json"
    try:
        found = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {_AWAY}") from error
    record = dict(found)
    known = ("schema", "phase", "done", "config", "seconds", "files", "made_of", "made_by")
    for field in known:
        if field not in record:
            raise UserError(f"{path}: field {field!r} is missing; {_AWAY}")
    if record["schema"] != _SCHEMA or isinstance(record["schema"], bool):
        raise UserError(
            f"{path}: schema = {record['schema']!r}: must be {_SCHEMA}; the workdir was made by"
            " another version of leafe_jax: use another --workdir"
        )
    seconds = record["seconds"]
    rules = (
        ("phase", isinstance(record["phase"], str), "a name"),
        ("done", isinstance(record["done"], bool), "true or false"),
        ("config", isinstance(record["config"], dict), "an object"),
        (
            "seconds",
            isinstance(seconds, (int, float))
            and not isinstance(seconds, bool)
            and 0 <= seconds < math.inf,
            "a number, 0 or more",
        ),
        ("files", _all_texts(record["files"]), "an object of texts"),
        ("made_of", _all_texts(record["made_of"]), "an object of texts"),
        ("made_by", sources.all_code(record["made_by"]), "a list of versions of the code"),
    )
    for field, fits, allowed in rules:
        if not fits:
            shown = repr(record[field])[:100]
            raise UserError(f"{path}: {field} = {shown}: must be {allowed}; {_AWAY}")
    return {field: record[field] for field in known}


def _all_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def finished(directory: epath.Path) -> bool:
    """Whether a phase's directory has all of its work, as its record says."""
    return (directory / "phase.json").exists() and read_record(directory)["done"]
