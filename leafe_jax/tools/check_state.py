"""The part of tools.check that writes a checkpoint, reads it back and compares it bit by bit."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leafe_jax.tools.bench_models import RANDOM
from leafe_jax.tools.bench_training import BenchTrain
from leafe_jax.tools.check_lines import OWN_FAULT, Line, Part, guarded
from leafe_jax.tools.check_machine import NO_MEMORY
from leafe_jax.tools.hardware import GIB, compute_dtype
from leafe_jax.training.checkpoint import Checkpoints

_DISK = (
    "do not keep checkpoints there: choose a directory on another disk (--directory here, --workdir in"
    " a run); if they differ there, too, the machine's memory is faulty"
)


def checkpoint(part: Part) -> Iterator[Line]:
    """One line: a train state after a step is saved and restored, and compared bit by bit."""
    yield guarded("checkpoint", _DISK, NO_MEMORY, lambda: _checkpoint(part))


def _checkpoint(part: Part) -> Line:
    # As the part "train" does with the shape "tiny": its compiled program is in the cache then.
    rows = 4 * jax.device_count()
    train = BenchTrain(f"{RANDOM}{part.shape}", rows, 64, compute_dtype())
    train.step()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), train.state
    )
    before = jax.tree.map(np.asarray, train.state)
    size = sum(x.nbytes for x in jax.tree.leaves(before))
    try:
        with tempfile.TemporaryDirectory(dir=part.directory or None) as directory:
            identity = {"made by": "leafe_jax.tools.check"}
            begin = time.perf_counter()
            store = Checkpoints(Path(directory) / "checkpoints", identity)
            store.save(1, train.state, {"position": 1}, must=True)
            store.close()
            middle = time.perf_counter()
            store = Checkpoints(Path(directory) / "checkpoints", identity)
            found = store.restore(like)
            store.close()
            end = time.perf_counter()
    except OSError as error:
        text = f"{error.strerror or error} ({size / GIB:.2f} GiB in {error.filename})"
        return Line("checkpoint", "failed", text, f"free space there, or {_DISK}")
    if found is None:
        return Line("checkpoint", "failed", "what was saved is not there", _DISK)
    step, train.state, data = found
    differ = _differences(before, train.state)
    if (step, data) != (1, {"position": 1}):
        differ.append("step or data position")
    figures = {"bytes": size, "save_s": middle - begin, "restore_s": end - middle}
    if differ:
        text = f"{len(differ)} arrays differ after save and restore, first {differ[0]}"
        return Line("checkpoint", "failed", text, _DISK, figures)
    if not np.isfinite(train.step()):  # the restored state has the step's shardings
        text = "the loss of a step from the restored state is not finite"
        return Line("checkpoint", "failed", text, OWN_FAULT, figures)
    text = (
        f"{size / GIB:.2f} GiB bit-exact after save ({figures['save_s']:.1f} s) and restore"
        f" ({figures['restore_s']:.1f} s)"
    )
    return Line("checkpoint", "ok", text, "", figures)


def _differences(before: Any, after: Any) -> list[str]:
    """Names of the arrays that are not equal bit by bit."""
    found = []
    flat, _ = jax.tree_util.tree_flatten_with_path(before)
    for (path, old), new in zip(flat, jax.tree.leaves(after), strict=True):
        new = np.asarray(new)
        if (old.shape, old.dtype) != (new.shape, new.dtype) or old.tobytes() != new.tobytes():
            found.append(jax.tree_util.keystr(path))
    return found
