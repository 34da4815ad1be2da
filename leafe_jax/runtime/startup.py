"""What has to be settled before jax starts its backends; imports nothing of it."""

from __future__ import annotations

import ctypes
import glob
import os
import resource
import sys

# malloc.h; -1 never trims.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_DEVICE_FILES = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg")

_MIN_ADDRESS_SPACE = 4 * 2**30  # bytes; the smoke quickstart ends well with 4.4 GiB on two cores
_MIN_FILES = 64  # descriptors; a run with checkpoints has about 40 open


def prepare() -> str | None:
    """Settles everything that comes before jax is imported.

    Returns:
      What keeps a run from starting on this machine, in one line; None if nothing does.
    """
    problem = _limits()
    if problem is not None:
        return problem
    # Compiled programs are kept, so that the second run starts at once.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache_directory())
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if prefer_cpu():
        os.environ["JAX_PLATFORMS"] = "cpu"
    keep_freed_memory()
    return None


def _limits() -> str | None:
    """Raises what may be raised; says which limit is too low for any run."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < _MIN_FILES:
        return f"ulimit -n = {hard}: must be at least {_MIN_FILES} open files"
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY and space < _MIN_ADDRESS_SPACE:
        return (
            f"ulimit -v = {space // 1024} KiB: must be at least {_MIN_ADDRESS_SPACE // 1024} KiB, or"
            " unlimited: XLA and the threads' stacks reserve more addresses than they use memory"
        )
    return None


def _cache_directory() -> str:
    """Where compiled programs are kept; "" keeps none, where there is no home to write to."""
    path = os.path.join(os.path.expanduser("~"), ".cache", "leafe_jax", "xla")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        return ""
    return path if os.access(path, os.W_OK | os.X_OK) else ""


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
