"""Devices that run out of memory: one error that says while doing what, and which fields help."""

from __future__ import annotations

import contextlib
import functools
import mmap
import resource
import threading
from collections.abc import Iterator

from leafe_jax.errors import UserError

DIVIDE = "divide the model over more devices (train.mesh.fsdp, train.mesh.tensor)"


# ArrayRecord's library starts this number of threads when it is first used, and hangs or crashes where
# one cannot be started.
_RECORD_THREADS = 66
_RECORD_BYTES = 2 * 2**30  # addresses that their stacks and heaps reserve


@functools.cache
def check_room() -> None:
    """Tries whether ArrayRecord's threads can be started.

    Raises:
      UserError: they cannot, for the limits of this process.
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
            f"train: the examples' reader needs {_RECORD_THREADS} threads and"
            f" {_RECORD_BYTES // 2**30} GiB of addresses ({', '.join(limits)}): raise the limits and run"
            " again; finished work is kept"
        ) from error


def _start_threads(number: int) -> None:
    """Starts threads, all there at the same time, and ends them; RuntimeError if one cannot start."""
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
    """Whether an error is a device's lack of memory; libraries pass on its text in errors of theirs."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def needed_for(doing: str, remedy: str) -> Iterator[None]:
    """A context that explains a lack of memory in it.

    Args:
      doing: what is being done, after "while".
      remedy: the fields that help, as a request.

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
            f"train: a device is out of memory while {doing}: {remedy}; leafe_jax.tools.plan counts the"
            f" bytes beforehand ({str(error).splitlines()[0]})"
        ) from error
