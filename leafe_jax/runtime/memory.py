"""How much memory devices have and lacked, and a check that ArrayRecord's threads can start."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import mmap
import re
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+) ?([KMGT]?)(?:i?B| ?bytes)?"
# (pattern, True if the sizes are a whole program's and the device's). The first two are libtpu's when it
# compiles, the third when it allocates; the others are those of XLA's allocator on a GPU.
_MISSING = (
    (re.compile(rf"Used {_SIZE} of {_SIZE} hbm"), True),
    (re.compile(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"), False),
    (re.compile(rf"[Aa]ttempting to (?:allocate|reserve) {_SIZE}.*?There are {_SIZE} free"), False),
    (re.compile(rf"request for [\d.]+\w+ \({_SIZE}\)"), False),
    (re.compile(rf"[Oo]ut of memory(?: while trying to allocate| allocating) {_SIZE}"), False),
)


@dataclasses.dataclass(frozen=True)
class Shortage:
    """How much memory was missing on a device, in bytes.

    Attributes:
      needed: what a program or an allocation asked for.
      room: what there was for it.
      whole: True if `needed` is a whole program's memory, with its arguments and results.
    """

    needed: int
    room: int
    whole: bool

    @property
    def bytes(self) -> int:
        """Bytes that were missing. Fragments may be too small although their sum is not."""
        return max(self.needed - self.room, self.needed // 20, 1)


def free_bytes(devices: Sequence[Any]) -> int | None:
    """Bytes that the allocator can still give on the device with the least; None if a device does not say,
    as on CPU."""
    found = []
    for device in devices:
        stats = device.memory_stats()
        if not stats or "bytes_limit" not in stats:
            return None
        found.append(stats["bytes_limit"] - stats["bytes_in_use"])
    return min(found, default=None)


def shortage(error: BaseException, devices: Sequence[Any]) -> Shortage | None:
    """How much memory was missing, by the text of an error or of what caused it; None if it does not say.

    Args:
      error: for which `is_out_of_memory` is True.
      devices: that the program ran on. On a GPU the text does not say how much was free.
    """
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())
        for pattern, whole in _MISSING:
            match = pattern.search(text)
            if match is None:
                continue
            needed, *stated = [
                round(float(number.rstrip(".")) * _UNITS[unit])
                for number, unit in zip(match.groups()[::2], match.groups()[1::2], strict=True)
            ]
            # Temporaries must go beside what is there, which the text may ignore.
            free = None if whole else free_bytes(devices)
            room = min([*stated, *([] if free is None else [free])], default=None)
            return None if room is None else Shortage(needed, room, whole)
        cause = cause.__cause__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """True if a device ran out of memory. The text is tested, because libraries wrap the error."""
    return any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "CUDA_ERROR_OUT_OF_MEMORY"))


@contextlib.contextmanager
def needed_for(doing: str, remedy: str | Callable[[BaseException], str]) -> Iterator[None]:
    """A context in which running out of device memory becomes a UserError with a remedy.

    Args:
      doing: what the context does; completes "while ...".
      remedy: what to do, as an imperative that names fields; or a function that says it for an error.

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
        todo = remedy if isinstance(remedy, str) else remedy(error)
        raise UserError(
            f"train: a device is out of memory while {doing}: {todo}; leafe_jax.tools.plan predicts the"
            f" bytes ({str(error).splitlines()[0]})"
        ) from error
