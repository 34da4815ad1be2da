"""Checkpoints: train state and data position together, so that a resumed run is the same run."""

from __future__ import annotations

import errno
import os
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """Orbax CheckpointManager over {state, data iterator}.

    Args:
      directory: where steps are kept; the newest two stay.
    """

    def __init__(self, directory):
        # Orbax writes a step under a temporary name and renames it, so a half-written one is
        # never the latest.
        self._directory = directory
        self._manager = ocp.CheckpointManager(
            directory, options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        )

    def save(self, step: int, state: Any, data_state: dict[str, Any]) -> None:
        """Starts saving; returns once the arrays are copied to the host."""
        if self._manager.latest_step() == step:
            return
        # Asked beforehand: on a disk that fills up during a save Orbax's writers fail one by one.
        needed = sum(x.nbytes for x in jax.tree.leaves(state))
        if shutil.disk_usage(self._directory).free < 1.2 * needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state)
            ),
        )

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, data state) of the newest checkpoint, or None.

        Args:
          like: a state with the shapes, dtypes and shardings to restore into.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
            ),
        )
        return step, restored["state"], restored["data"]

    def close(self) -> None:
        """Waits for pending saves."""
        self._manager.wait_until_finished()
        self._manager.close()
