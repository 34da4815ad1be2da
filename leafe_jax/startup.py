"""What has to be settled before jax starts its backends; imports nothing of it."""

from __future__ import annotations

import ctypes
import glob
import os
import sys

# malloc.h; -1 never trims.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_DEVICE_FILES = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg")


def prefer_cpu() -> bool:
    """Whether jax should not look for accelerators: there are none, and nobody asked for any.

    With libtpu installed (the tests need it) jax looks for a TPU, over the network too, and complains
    at length; without any device file there is nothing to look for.
    """
    if "JAX_PLATFORMS" in os.environ:
        return False
    return not any(glob.glob(pattern) for pattern in _DEVICE_FILES)


def keep_freed_memory() -> None:
    """Lets the C library keep what XLA's CPU backend frees, for its next call.

    glibc gives every large block back to the system at once and takes it, page by page, again. XLA asks
    for such blocks at every call; where pages are slow to come (virtual machines) that took up to ten
    times as long as the work on them. Peak memory is the same, but it stays with the process.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 * 2**20)):
        mallopt(option, value)
