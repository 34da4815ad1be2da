"""Checkpoints: train state and data position together, so that a resumed run is the same run."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from leafe_jax.errors import UserError
from leafe_jax.runtime.files import make_directory
from leafe_jax.runtime.memory import is_out_of_memory

KEPT = 2


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        # Orbax would report the step to the runtime, whose counter is preemption.py's: a notice
        # that came then would be met at a number that is never reached.
        return False


class Checkpoints:
    """Orbax CheckpointManager over {state, data iterator, identity of the run}.

    Args:
      directory: where steps are kept; the newest two stay, and what could not be read, as
        `<step>.damaged`.
      identity: what a checkpoint must agree with, name -> JSON value.

    Raises:
      UserError: the directory cannot be made, or something else is in the place of a checkpoint.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]):
        # Orbax writes a step under a temporary name and renames it, so a half-written one is
        # never the latest.
        # Orbax takes absolute paths only.
        self._directory, self._identity = Path(directory).absolute(), identity
        make_directory(self._directory)
        for path in self._directory.rglob("*"):  # Orbax would wait for these forever
            if path.name.isdigit() and path.parent == self._directory and not path.is_dir():
                raise UserError(f"{path}: must be the directory of a checkpoint; move it away")
            if not path.is_dir() and not path.is_file():
                raise UserError(f"{path}: must be a file or a directory; move it away")
        self._manager = _Manager(
            self._directory, options=ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True)
        )

    def save(self, step: int, state: Any, data_state: dict[str, Any], must: bool) -> None:
        """Starts saving; returns once the arrays are copied to the host.

        Args:
          step: optimizer steps done.
          state, data_state: what to keep.
          must: if True, wait for a save in progress; if False, skip this save instead: steps do not wait
            for the disk.

        Raises:
          OSError: ENOSPC, the disk has no room; older checkpoints stay as they are.
        """
        if self._manager.latest_step() == step:
            return
        # Asked beforehand: on a disk that fills up during a save Orbax's writers fail one by one. One
        # copy is written, however many devices hold one.
        needed = sum(x.nbytes for x in jax.tree.leaves(state))
        free = shutil.disk_usage(self._directory).free
        # A save is a meeting of all processes: they leave one out, or fail, together.
        busy, full = _any_process(self._manager.is_saving_in_progress(), free < 1.2 * needed)
        if busy and not must:
            return
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data_state),
                identity=ocp.args.JsonSave(self._identity),
            ),
        )

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, data state) of the newest checkpoint that can be read, or None without any.

        Newer ones that cannot be read are renamed, not deleted, and a line says so.

        Args:
          like: ShapeDtypeStructs with the shardings to restore into; those it was saved with may
            have been others.

        Raises:
          UserError: it is of another model or other data, or none of them can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        problems: dict[int, str] = {}
        for step in steps:
            found = self._read(step, like)
            # A process reads its own parts, which may be whole where another one's are not.
            (failed,) = _any_process(isinstance(found, str))
            if not failed:
                for old, problem in problems.items():
                    self._put_aside(old, problem, step)
                if problems:
                    self._manager.reload()
                return step, *found
            problems[step] = found if isinstance(found, str) else "another process cannot read it"
        if not steps:
            return None
        raise UserError(
            f"{self._directory}: the checkpoint of step {steps[0]} cannot be read"
            f" ({problems[steps[0]]}), and no older one can; move the directory away to start anew"
        )

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]] | str:
        """(state, data state), or why it cannot be read.

        Raises:
          UserError: it is of another run.
        """
        # Each process for itself: one that fails would leave the others at Orbax's barrier.
        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader{own}"
        )
        options = ocp.CheckpointManagerOptions(
            read_only=True, create=False, multiprocessing_options=alone
        )
        with ocp.CheckpointManager(self._directory, options=options) as reader:
            try:
                facts = ocp.args.Composite(
                    data=ocp.args.JsonRestore(), identity=ocp.args.JsonRestore()
                )
                found = reader.restore(step, args=facts)
                data_state, identity = dict(found["data"]), dict(found["identity"])
                self._check_identity(step, identity)
                state = ocp.args.Composite(state=ocp.args.StandardRestore(like))
                return reader.restore(step, args=state)["state"], data_state
            except UserError:
                raise
            except Exception as error:  # Orbax raises bare ones, too
                if is_out_of_memory(error):
                    raise
                lines = str(error).strip().splitlines() or [""]
                return f"{type(error).__name__}: {lines[0][:200]}"

    def _check_identity(self, step: int, identity: dict[str, Any]) -> None:
        for name in sorted({*self._identity, *identity}):
            theirs, ours = identity.get(name), self._identity.get(name)
            if theirs != ours:
                raise UserError(
                    f"{self._directory}: the checkpoint of step {step} is of another run:"
                    f" {name} = {theirs!r}, here {ours!r}; move the directory away to start anew"
                )

    def _put_aside(self, step: int, problem: str, good: int) -> None:
        """Orbax writes no step that is there, and none before it."""
        if jax.process_index() == 0:
            path = Path(self._directory) / str(step)
            aside, number = path.with_name(f"{step}.damaged"), 1
            while aside.exists():
                number += 1
                aside = path.with_name(f"{step}.damaged{number}")
            path.rename(aside)
            logging.getLogger("leafe_jax").warning(
                "train: %s: the checkpoint of step %d cannot be read (%s); it is kept as %s, and"
                " training goes on from step %d", self._directory, step, problem, aside.name, good,
            )  # fmt: skip
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"step {step} is aside")

    def close(self) -> None:
        """Waits for pending saves."""
        self._manager.wait_until_finished()
        self._manager.close()


def _any_process(*facts: bool) -> list[bool]:
    """Which of the facts hold in any process; all of them call it."""
    every = multihost_utils.process_allgather(np.asarray(facts))
    return [bool(x) for x in every.reshape(-1, len(facts)).any(axis=0)]
