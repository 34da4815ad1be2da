"""Runs untrusted Python programs: `run(program, stdin=..., limits=...)`, or a `Sandbox` pool.

The strongest mechanism that works on this machine is used and named in the log; see
`mechanisms.py` for what there is and docs/SECURITY.md for what each contains.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import functools
import logging
import os
import queue
import tempfile
from collections.abc import Sequence
from typing import Any

from envs.errors import EnvDataError
from envs.options import check_option
from envs.sandbox import mechanisms
from envs.sandbox.guest import PACKAGES
from envs.sandbox.worker import MAX_OUTPUT_BYTES, Guest, Job, Limits, Result

__all__ = [
    "MAX_OUTPUT_BYTES",
    "PACKAGES",
    "Job",
    "Limits",
    "Result",
    "Sandbox",
    "available",
    "run",
    "strongest",
]

MECHANISMS = ("", *mechanisms.NAMES)  # what the option takes; "" is the strongest that works
MAX_WORKERS = 1024
_log = logging.getLogger(__name__)

# Asked of a mechanism before it is trusted: does it run programs, and is the host out of sight?
_PROBE = """
import os, sys
try:
    open({path!r}).read()
    seen = True
except OSError:
    seen = False
print("hello", seen)
"""


@functools.cache
def _trial(name: str) -> str:
    """Why mechanism `name` does not work here, or ""."""
    reason = mechanisms.missing(name)
    if reason:
        return reason
    guest = Guest(name)
    try:
        with tempfile.NamedTemporaryFile() as secret:
            os.chmod(secret.name, 0o644)
            result = guest.run(Job(_PROBE.format(path=secret.name)))
    finally:
        guest.close()
    if result.status != "ok":
        return result.error.strip().rpartition("\n")[2] or result.status
    if result.output.split() != ["hello", str(name == "rlimits")]:
        return "shows the host's files"
    return ""


def available() -> tuple[str, ...]:
    """The mechanisms that work on this machine, strongest first."""
    return tuple(name for name in mechanisms.NAMES if not _trial(name))


def strongest(allow_weak: bool = False) -> str:
    """The strongest mechanism that works here.

    Args:
      allow_weak: accept resource limits alone where nothing else works.

    Raises:
      EnvDataError: nothing works, or nothing but resource limits and they are not allowed.
    """
    reasons = {}
    for name in mechanisms.NAMES[: None if allow_weak else -1]:
        reasons[name] = _trial(name)
        if not reasons[name]:
            if name == "rlimits":
                _log.warning(
                    "sandbox: RESOURCE LIMITS ALONE; programs can read this machine's files"
                )
            return name
    raise mechanisms.refusal(reasons)


class Sandbox:
    """A pool of guests; safe to use from several threads.

    Args:
      mechanism: one of mechanisms.NAMES; "" takes the strongest that works here.
      allow_weak: whether "rlimits", resource limits alone, may be used.
      workers: guests at the same time; 0 is one per core of this machine.

    Raises:
      EnvDataError: an argument is not allowed, or the mechanism does not work here.
    """

    def __init__(self, mechanism: str = "", allow_weak: bool = False, workers: int = 0):
        _check_settings(mechanism, workers)
        if mechanism == "rlimits" and not allow_weak:
            raise EnvDataError("env.options.mechanism = 'rlimits': needs allow_weak=True")
        if mechanism and _trial(mechanism):
            raise mechanisms.refusal({mechanism: _trial(mechanism)})
        self.mechanism = mechanism or strongest(allow_weak)
        self.workers = workers or len(os.sched_getaffinity(0))
        _log.info("sandbox: %s (%s)", self.mechanism, mechanisms.LABELS[self.mechanism])
        self._guests = [Guest(self.mechanism) for _ in range(self.workers)]
        self._idle: queue.SimpleQueue[Guest] = queue.SimpleQueue()
        for guest in reversed(self._guests):
            self._idle.put(guest)
        self._pool = concurrent.futures.ThreadPoolExecutor(self.workers)

    def run(self, job: Job) -> Result:
        """Runs one program on the next guest that is free."""
        guest = self._idle.get()
        try:
            return guest.run(job)
        finally:
            self._idle.put(guest)

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        """Runs programs side by side; results in the order of `jobs`."""
        return self.map(self.run, jobs)

    def map(self, function, items: Sequence) -> list:
        """`function` of every item, side by side; it may `run` programs, one after another."""
        return list(self._pool.map(function, items))

    def close(self) -> None:
        """Ends all guests."""
        self._pool.shutdown()
        for guest in self._guests:
            guest.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _check_settings(mechanism: Any, workers: Any) -> None:
    allowed = f"one of {', '.join(mechanisms.NAMES)}, or '' for the strongest"
    check_option("mechanism", mechanism, mechanism in MECHANISMS, allowed)
    right = type(workers) is int and 0 <= workers <= MAX_WORKERS
    check_option("workers", workers, right, f"from 0 to {MAX_WORKERS}")


def shared(mechanism: str = "", allow_weak: bool = False, workers: int = 0) -> Sandbox:
    """The process's pool with these settings, ended when the process ends.

    Raises:
      EnvDataError: as `Sandbox`.
    """
    _check_settings(mechanism, workers)  # first: a list, for one, cannot be looked up
    return _shared(mechanism, allow_weak, workers)


@functools.cache
def _shared(mechanism: str, allow_weak: bool, workers: int) -> Sandbox:
    pool = Sandbox(mechanism, allow_weak, workers)
    atexit.register(pool.close)
    return pool


def run(
    program: str,
    stdin: str | bytes = "",
    limits: Limits | None = None,
    tests: str = "",
    allow_weak: bool = False,
) -> Result:
    """Runs one Python program in the strongest sandbox that this machine has.

    Args:
      program: source text.
      stdin: what it reads; text is encoded as UTF-8.
      limits: None is `Limits()`.
      tests: source that runs after the program in the same namespace, unseen by standard input.
      allow_weak: accept resource limits alone where nothing stronger works.

    Raises:
      EnvDataError: no mechanism works here.
    """
    return shared(allow_weak=allow_weak).run(Job(program, stdin, tests, limits or Limits()))
