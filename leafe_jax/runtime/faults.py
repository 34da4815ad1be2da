"""Explains errors of the machine and of libraries that a user can fix, in one line each."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

from leafe_jax.errors import UserError
from leafe_jax.runtime.files import local_path

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of the machine, for which a traceback is no help.
_MACHINE = (errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def explain(error: BaseException, workdir: str) -> str | None:
    """One line that says what went wrong and what to do; None if the error is a bug.

    Args:
      error: the exception that ended the run. Its causes are examined too, because libraries wrap errors.
      workdir: of the run.
    """
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for found in chain:
        message = _explain(found, workdir)
        if message is not None:
            return message
    return None


def _explain(error: BaseException, workdir: str) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    first_line = text.partition("\n")[0][:300]
    if number in _FULL or "No space left on device" in text:
        where = getattr(error, "filename", None) or f"--workdir={workdir}"
        return f"{where}: the disk is full; finished work is kept: free space and run again"
    if number == errno.EFBIG or "File too large" in text:
        return (
            f"--workdir={workdir}: a file is larger than this shell allows (ulimit -f ="
            f" {_limit(resource.RLIMIT_FSIZE, 1024)} KiB); finished work is kept: raise the limit and"
            " run again"
        )
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return (
            f"too many open files (ulimit -n = {_limit(resource.RLIMIT_NOFILE)}); finished work is"
            " kept: raise the limit and run again"
        )
    if "RESOURCE_EXHAUSTED" in text:  # in sampling; training raises its own error (runtime.memory)
        return (
            "a device is out of memory while sampling: raise sampler.tensor, or lower"
            f" sampler.num_pages, num_slots or max_len ({first_line})"
        )
    if "can't start new thread" in text or number == errno.EAGAIN:
        return (
            f"no more threads or processes can be started (ulimit -u = {_limit(resource.RLIMIT_NPROC)},"
            f" ulimit -v = {_limit(resource.RLIMIT_AS, 1024)} KiB); finished work is kept: raise the"
            " limits and run again"
        )
    out_of_memory = isinstance(error, MemoryError) or number == errno.ENOMEM
    if out_of_memory or "failed to map segment" in text or "Cannot allocate memory" in text:
        return (
            f"this machine is out of memory (ulimit -v = {_limit(resource.RLIMIT_AS, 1024)} KiB);"
            " finished work is kept: raise the limit, or lower sampler.num_slots, and run again"
        )
    if number == errno.ENOENT and "usable temporary directory" in text:
        return f"TMPDIR: {error.strerror}"
    if number in _MACHINE or number is not None and _inside(error.filename, workdir):
        return f"{error.filename or '--workdir=' + workdir}: {error.strerror}"
    return None


def _inside(path: object, workdir: str) -> bool:
    """True if a file is in the workdir: then something other than this program removed or replaced it."""
    if not isinstance(path, (str, os.PathLike)):
        return False
    try:
        return Path(path).absolute().is_relative_to(local_path("--workdir=", workdir))
    except (OSError, UserError):  # the current directory was deleted
        return False


def _limit(kind: int, unit: int = 1) -> str:
    soft, _ = resource.getrlimit(kind)
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft // unit)
