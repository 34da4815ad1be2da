"""Checkpoints: train state and data position together, so that a resumed run is the same run."""

from __future__ import annotations

import errno
import os
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from leafe_jax.errors import UserError

KEPT = 2


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        # Orbax would report the step to the runtime, whose counter is preemption.py's: a notice
        # that came then would be met at a number that is never reached.
        return False


class Checkpoints:
    """Orbax CheckpointManager over {state, data iterator, identity of the run}.

    Args:
      directory: where steps are kept; the newest two stay.
      identity: what a checkpoint must agree with, name -> JSON value.
    """

    def __init__(self, directory, identity: dict[str, Any]):
        # Orbax writes a step under a temporary name and renames it, so a half-written one is
        # never the latest.
        self._directory, self._identity = directory, identity
        self._manager = _Manager(
            directory, options=ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True)
        )

    def save(self, step: int, state: Any, data_state: dict[str, Any], must: bool) -> None:
        """Starts saving; returns once the arrays are copied to the host.

        Args:
          step: optimizer steps done.
          state, data_state: what to keep.
          must: wait for a save that is still being written, which is otherwise reason to leave this
            one out: the step does not wait for the disk.

        Raises:
          OSError: ENOSPC, the disk has no room; older checkpoints stay as they are.
        """
        if self._manager.latest_step() == step:
            return
        # All processes have to decide alike; only one alone can go by what it sees.
        busy = jax.process_count() == 1 and self._manager.is_saving_in_progress()
        if busy and not must:
            return
        # Asked beforehand: on a disk that fills up during a save Orbax's writers fail one by one.
        needed = sum(s.data.nbytes for x in jax.tree.leaves(state) for s in x.addressable_shards)
        if shutil.disk_usage(self._directory).free < 1.2 * needed:
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
        """(step, state, data state) of the newest checkpoint, or None.

        Args:
          like: ShapeDtypeStructs with the shardings to restore into; those it was saved with may
            have been others.

        Raises:
          UserError: it is of another model or other data, or cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        where = f"{self._directory}: the checkpoint of step {step}"
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    data=ocp.args.JsonRestore(), identity=ocp.args.JsonRestore()
                ),
            )
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise UserError(f"{where} cannot be read: {str(error).splitlines()[0]}") from error
        for name in sorted({*self._identity, *found["identity"]}):
            theirs, ours = found["identity"].get(name), self._identity.get(name)
            if theirs != ours:
                raise UserError(
                    f"{where} is of another run: {name} = {theirs!r}, here {ours!r}; move the"
                    " directory away to start anew"
                )
        state = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
        )
        return step, state["state"], found["data"]

    def close(self) -> None:
        """Waits for pending saves."""
        self._manager.wait_until_finished()
        self._manager.close()
