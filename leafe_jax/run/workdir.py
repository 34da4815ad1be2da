"""One run at a time in a workdir: a lock that the kernel releases when its process dies."""

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

import jax

from leafe_jax.errors import UserError
from leafe_jax.runtime import processes
from leafe_jax.runtime.files import local_path, read_text, remove

LOCK_FILE = ".lock"
# What file systems answer that have no locks (some network file systems, as mounted).
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_held: set[int] = set()  # descriptors


def _forget() -> None:
    """In a child made by fork without exec: it must not keep its parent's locks."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def locked(workdir: Path, name: str) -> Iterator[None]:
    """A context in which no other run writes to `workdir`, which must exist.

    In a run of several processes all of them call it, and process 0 holds the lock for all. A file
    system without locks gets a warning and no lock.

    Args:
      workdir: the directory.
      name: of the directory in messages, e.g. "--workdir=runs/a".

    Raises:
      UserError: another run holds the lock (the message names its host, process and start), or the
        lock file cannot be made.
    """
    descriptor: int | None = None

    def take(_) -> None:
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
    """The descriptor that holds the lock, or None on a file system without locks."""
    try:
        # A link could lead to a file of somebody else's, and a FIFO would block.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(file, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENOTDIR):  # the directory itself, whatever the file
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
        holder = _holder(descriptor)
        os.close(descriptor)
        raise UserError(
            f"{name}: in use by {holder}; wait until it ends, or take another --workdir"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
        os.close(descriptor)
        logging.getLogger("leafe_jax").warning(
            "%s: this file system has no locks (%s): make sure that no other run writes there",
            name, error.strerror,
        )  # fmt: skip
        return None
    except UserError:
        os.close(descriptor)
        raise
    _held.add(descriptor)
    return descriptor


def _holder(descriptor: int) -> str:
    """Who holds the lock, in words."""
    try:
        found = json.loads(os.pread(descriptor, 1000, 0))
        host, started, pid = str(found["host"]), str(found["started"]), int(found["pid"])
    except (ValueError, KeyError, TypeError):  # it has taken the lock, and not yet written
        return "another run"
    words = f"process {pid} on host {host}, started {started}"
    return words if words.isprintable() else "another run"


@contextlib.contextmanager
def opened(workdir: str) -> Iterator[Path]:
    """A context with the workdir: made, absolute, locked, and the same in all processes.

    Args:
      workdir: as the user wrote it.

    Raises:
      UserError: it cannot be made, written or locked, or a process writes elsewhere.
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
    """Checks that all processes can write, and write to the same directory."""
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
        # A killed run may have left such a file: its token is another.
        apart = [number for number, token in enumerate(tokens) if not holds(number, token)]
        if apart:
            raise UserError(
                f"{name}: process {apart[0]} writes elsewhere than process 0: all need the same"
                " directory, e.g. on a network file system"
            )

    try:
        processes.together("workdir", token, compare)
    finally:
        probe.unlink(missing_ok=True)
