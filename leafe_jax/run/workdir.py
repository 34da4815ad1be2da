"""The lock that allows one run at a time in a workdir. The kernel releases it when the process dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from leafe_jax.errors import UserError
from leafe_jax.runtime import processes
from leafe_jax.runtime.files import local_path, read_text, remove

LOCK_FILE = ".lock"


class InUse(UserError):
    """Another run writes to the directory."""


# Errors of file systems without locks (some network file systems, depending on how they are mounted).
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_held: set[int] = set()  # file descriptors that hold locks


def _forget() -> None:
    """Drops the parent's locks in a child process that was forked without exec."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def locked(workdir: Path, name: str) -> Iterator[None]:
    """A context in which no other run writes to `workdir`.

    With several processes, all of them must call it; process 0 holds the lock for all. On a file system
    without locks, it logs a warning and takes no lock.

    Args:
      workdir: the directory; it must exist.
      name: of the directory in messages, e.g. "--workdir=runs/a".

    Raises:
      InUse: another run holds the lock; the message gives its host, process and start time.
      UserError: the lock file cannot be made.
    """
    descriptor: int | None = None

    def take(_: Any) -> None:
        nonlocal descriptor
        descriptor = _take(workdir / LOCK_FILE, name)

    processes.together("lock", decide=take)
    try:
        yield
    finally:
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)


def _take(file: Path, name: str) -> int | None:
    """The file descriptor that holds the lock, or None on a file system without locks."""
    try:
        # Without these flags a link could lead to somebody else's file, and a FIFO would block.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(file, flags, 0o666)
    except OSError as error:
        if error.errno in (
            errno.EROFS,
            errno.ENOTDIR,
        ):  # the problem is the directory, not the file
            raise UserError(f"{name}: cannot be written: {error.strerror}") from error
        raise UserError(f"{name}: cannot be locked: {file}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{name}: cannot be locked: {file}: not a regular file")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder = {
            "host": socket.gethostname(), "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        }  # fmt: skip
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
    except BlockingIOError as error:
        other = _holder(descriptor)
        os.close(descriptor)
        raise InUse(
            f"{name}: in use by {other}; wait until it ends, or use another directory"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
        os.close(descriptor)
        logging.getLogger("leafe_jax").warning(
            "%s: this file system has no locks (%s); make sure that no other run writes there",
            name, error.strerror,
        )  # fmt: skip
        return None
    except UserError:
        os.close(descriptor)
        raise
    _held.add(descriptor)
    return descriptor


def _holder(descriptor: int) -> str:
    """Who holds the lock, as text."""
    try:
        found = json.loads(os.pread(descriptor, 1000, 0))
        host, started, pid = str(found["host"]), str(found["started"]), int(found["pid"])
    except (ValueError, KeyError, TypeError):  # the holder has not written its record yet
        return "another run"
    words = f"process {pid} on host {host}, started {started}"
    return words if words.isprintable() else "another run"


@contextlib.contextmanager
def opened(workdir: str) -> Iterator[Path]:
    """A context with the workdir's absolute path: the directory exists, is locked, and is the same in all
    processes.

    Args:
      workdir: path as the user wrote it.

    Raises:
      UserError: it cannot be made, written to or locked, or it is not the same directory in all processes.
    """
    root, name = local_path("--workdir=", workdir), f"--workdir={workdir}"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name}: cannot be written: {error.strerror}") from error
    with locked(root, name):
        _check_same(root, name)
        yield root


def _check_same(root: Path, name: str) -> None:
    """Checks that all processes can write to the directory, and that it is the same one."""
    index, token = jax.process_index(), secrets.token_hex()

    def probe_of(number: int) -> Path:
        return root / f".writable{number or ''}"

    def holds(number: int, token: str) -> bool:
        try:
            return read_text(probe_of(number), 1000) == token
        except UserError:
            return False

    probe = probe_of(index)
    try:
        remove(probe)  # a FIFO would block
        with open(probe, "x") as file:
            file.write(token)
    except OSError as error:
        raise UserError(f"{name}: cannot be written: {error.strerror}") from error

    def compare(tokens: list[str]) -> None:
        # The token tells the file of this run from one that a killed run left.
        apart = [number for number, token in enumerate(tokens) if not holds(number, token)]
        if apart:
            raise UserError(
                f"{name}: not the same directory in process {apart[0]} as in process 0: must be shared by"
                " all processes, e.g. on a network file system"
            )

    try:
        processes.together("workdir", token, compare)
    finally:
        probe.unlink(missing_ok=True)
