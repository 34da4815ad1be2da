"""Settings that must be made before jax starts its backends. This module does not import jax."""

from __future__ import annotations

import ctypes
import glob
import os
import resource
import sys

# From malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_DEVICE_FILES = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg")

_MIN_ADDRESS_SPACE = 4 * 2**30  # bytes; the smoke quickstart succeeds with 4.4 GiB on two cores
_MIN_FILES = 64  # file descriptors; a run with checkpoints has about 40 open


def prepare() -> str | None:
    """Makes all settings that must precede the import of jax.

    Returns:
      One line that says why a run cannot start on this machine, or None if it can.
    """
    problem = _limits()
    if problem is not None:
        return problem
    # Cache compiled programs on disk, so that the second run starts at once.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache_directory())
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if prefer_cpu():
        os.environ["JAX_PLATFORMS"] = "cpu"
    keep_freed_memory()
    return None


def _limits() -> str | None:
    """Raises the limit on open files as far as allowed. Returns one line about a limit that is too low for
    any run, or None."""
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
            " unlimited: XLA and thread stacks reserve far more addresses than they use memory"
        )
    return None


def _cache_directory() -> str:
    """Directory for compiled programs; "" (no cache) if the home directory cannot be written to."""
    path = os.path.join(os.path.expanduser("~"), ".cache", "leafe_jax", "xla")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        return ""
    return path if os.access(path, os.W_OK | os.X_OK) else ""


def prefer_cpu() -> bool:
    """True if jax should not look for accelerators: there is no device file, and JAX_PLATFORMS is unset.

    With libtpu installed, as for the tests, jax looks for a TPU, even over the network, and logs long
    warnings. Without a device file there is nothing to find.
    """
    if "JAX_PLATFORMS" in os.environ:
        return False
    return not any(glob.glob(pattern) for pattern in _DEVICE_FILES)


def keep_freed_memory() -> None:
    """Makes the C library keep memory that XLA's CPU backend frees, for its next call.

    By default glibc returns every large block to the system at once, and faults it in again page by page.
    XLA allocates such blocks in every call. Where page faults are slow (virtual machines) they took up to
    ten times as long as the work itself. Peak memory does not change, but the process keeps it.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 * 2**20)):
        mallopt(option, value)
