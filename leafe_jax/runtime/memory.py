"""Errors for devices that run out of memory, and a check that ArrayRecord's threads can start."""

from __future__ import annotations

import contextlib
import functools
import mmap
import resource
import threading
from collections.abc import Iterator

from leafe_jax.errors import UserError

DIVIDE = "shard the model over more devices (train.mesh.fsdp, train.mesh.tensor)"

# ArrayRecord's library starts this many threads when it is first used. It hangs or crashes if one of them
# cannot start.
_RECORD_THREADS = 66
_RECORD_BYTES = 2 * 2**30  # address space that their stacks and heaps reserve


@functools.cache
def check_room() -> None:
    """Checks that ArrayRecord's threads can start.

    Raises:
      UserError: they cannot, because of this process's limits.
    """
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        if soft != resource.RLIM_INFINITY:
            mmap.mmap(-1, _RECORD_BYTES).close()
        _start_threads(_RECORD_THREADS)
    except (OSError, RuntimeError, MemoryError) as error:
        limits = [
            f"ulimit -{letter} = {'unlimited' if value == resource.RLIM_INFINITY else value // unit}"
            for letter, value, unit in (
                ("v", soft, 1024),
                ("u", resource.getrlimit(resource.RLIMIT_NPROC)[0], 1),
            )
        ]
        raise UserError(
            f"train: reading examples needs {_RECORD_THREADS} threads and {_RECORD_BYTES // 2**30} GiB of"
            f" addresses ({', '.join(limits)}); finished work is kept: raise the limits and run again"
        ) from error


def _start_threads(number: int) -> None:
    """Starts `number` threads that exist at the same time, and ends them.

    Raises:
      RuntimeError: a thread cannot start.
    """
    leave, started = threading.Event(), []
    try:
        for _ in range(number):
            thread = threading.Thread(target=leave.wait)
            thread.start()
            started.append(thread)
    finally:
        leave.set()
        for thread in started:
            thread.join()


def is_out_of_memory(error: BaseException) -> bool:
    """True if a device ran out of memory. The text is tested, because libraries wrap the error."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def needed_for(doing: str, remedy: str) -> Iterator[None]:
    """A context in which running out of device memory becomes a UserError with a remedy.

    Args:
      doing: what the context does; completes "while ...".
      remedy: what to do, as an imperative that names fields.

    Raises:
      UserError: a device ran out of memory.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"train: a device is out of memory while {doing}: {remedy}; leafe_jax.tools.plan predicts the"
            f" bytes ({str(error).splitlines()[0]})"
        ) from error
