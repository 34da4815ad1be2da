"""Runs untrusted Python programs: `run(program, stdin=..., limits=...)`, or a `Sandbox` pool.

It uses the strongest mechanism that works on this machine and logs its name. mechanisms.py lists the
mechanisms; docs/SECURITY.md says what each contains.
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

# Run before a mechanism is trusted: does it run programs, and does it hide the host's files?
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
    """Why mechanism `name` does not work here; "" if it does."""
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
      allow_weak: True accepts resource limits alone if nothing else works.

    Raises:
      EnvDataError: nothing works, or only resource limits, which are not allowed.
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
    """A pool of guests; thread-safe.

    Args:
      mechanism: one of mechanisms.NAMES; "": the strongest that works here.
      allow_weak: True allows "rlimits", resource limits alone.
      workers: number of guests; 0: one per core.

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
        """Runs one program on the next free guest."""
        guest = self._idle.get()
        try:
            return guest.run(job)
        finally:
            self._idle.put(guest)

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        """Runs programs in parallel; results in the order of `jobs`."""
        return self.map(self.run, jobs)

    def map(self, function, items: Sequence) -> list:
        """`function` of every item, in parallel; it may `run` programs, one at a time."""
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
    """The process's pool with these settings; it ends with the process.

    Raises:
      EnvDataError: as `Sandbox`.
    """
    _check_settings(mechanism, workers)  # first, since a list cannot be a key of the cache
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
      stdin: its standard input; text is encoded as UTF-8.
      limits: None: `Limits()`.
      tests: source that runs after the program in the same namespace.
      allow_weak: True accepts resource limits alone if nothing stronger works.

    Raises:
      EnvDataError: no mechanism works here.
    """
    return shared(allow_weak=allow_weak).run(Job(program, stdin, tests, limits or Limits()))
