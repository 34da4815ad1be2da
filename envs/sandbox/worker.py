"""The host's side of one guest: starts it, talks to it, replaces it if it misbehaves."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import struct
import subprocess
import time

from envs.base import EnvDataError
from envs.sandbox import guest, mechanisms, seccomp

START_SECONDS = 30.0  # for a guest to start, on a busy machine
GRACE_SECONDS = 10.0  # after a run's wall limit, until the guest counts as lost
CLOSE_SECONDS = 5.0  # for a guest to exit when told to
MAX_OUTPUT_BYTES = 1 << 30
_MIB = 1 << 20


class GuestLost(Exception):
    """The guest died, hung, or broke the protocol."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one run may use.

    Attributes:
      cpu_seconds: CPU time of all threads.
      wall_seconds: elapsed time.
      memory_bytes: address space, including 50 MB for the interpreter.
      output_bytes: of standard output, and of standard error.
      open_files: open descriptors.
      threads: threads of the program's user; further processes are not allowed.

    Raises:
      EnvDataError: a limit is out of range.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float = 30.0
    memory_bytes: int = 512 * _MIB
    output_bytes: int = 4 * _MIB
    open_files: int = 32
    threads: int = 32

    def __post_init__(self):
        for name, least, most in (
            ("cpu_seconds", 0.01, 3600), ("wall_seconds", 0.01, 3600),
            ("memory_bytes", 64 * _MIB, 1 << 40), ("output_bytes", 1, MAX_OUTPUT_BYTES),
            ("open_files", 8, 1024), ("threads", 1, 1024),
        ):  # fmt: skip
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most:
                raise EnvDataError(
                    f"sandbox limit {name} = {value!r}: must be a number from {least} to {most}"
                )


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one run.

    Attributes:
      status: ok, runtime_error, compile_error, time_limit, memory_limit, output_limit, or
        sandbox_error if the sandbox itself failed twice.
      output: standard output; bytes that are not UTF-8 are replaced.
      error: standard error; if it is long, its middle is cut out, so the last line is kept.
      seconds: CPU time.
      peak_memory: most resident bytes.
      mechanism: one of mechanisms.NAMES.
      exit_code: of the program; -n if signal n ended it.
      wall_seconds: elapsed time.
      finished: the tests of the job reached their end; False if it has none.
    """

    status: str
    output: str
    error: str
    seconds: float
    peak_memory: int
    mechanism: str
    exit_code: int = 0
    wall_seconds: float = 0.0
    finished: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of `prelude`, `program` and `tests`, in this order and in one namespace.

    Attributes:
      program: source text. With tests, its `__name__` is not "__main__", as if they imported it.
      stdin: standard input.
      tests: source that raises if the program is wrong; "": none.
      limits: limits of the run.
      prelude: a source of its own, so that line numbers of the program do not change.
    """

    program: str
    stdin: str | bytes = ""
    tests: str = ""
    limits: Limits = Limits()
    prelude: str = ""


def _as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


class Guest:
    """One guest process; not thread-safe."""

    def __init__(self, mechanism: str):
        self.mechanism = mechanism
        self.process: subprocess.Popen | None = None

    def run(self, job: Job) -> Result:
        """Runs one program. A lost guest is replaced, and the program is tried once more."""
        for _ in range(2):
            try:
                if self.process is None:
                    self._start()
                result = self._exchange(job)
                if not mechanisms.is_warm(self.mechanism):
                    self.close()
                return result
            except (GuestLost, OSError, struct.error) as error:
                self.close(lost=True)
                reason = str(error)
        return Result("sandbox_error", "", reason, 0.0, 0, self.mechanism)

    def _start(self) -> None:
        self.process = subprocess.Popen(
            mechanisms.command(self.mechanism),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # The program can read bubblewrap's environment, so it gets none of ours. Without a fixed
            # seed, sets of strings would have another order in every worker.
            env={"PYTHONHASHSEED": "0"},
            start_new_session=True,  # one signal kills the guest and all that it started
        )
        rules = seccomp.make_filter() or b""
        deadline = time.monotonic() + START_SECONDS
        try:
            self.process.stdin.write(struct.pack("<I", len(rules)) + rules)
            if self._read(len(guest.MAGIC), deadline) != guest.MAGIC:
                raise GuestLost("the guest did not greet")
        except (GuestLost, OSError) as error:
            said = self._complaint()
            self.close(lost=True)
            raise GuestLost(said or str(error)) from None

    def _complaint(self) -> str:
        """The last line of output of a guest that did not start."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        said = self.process.stderr.read(65536).decode(errors="replace").strip()
        return said.rpartition("\n")[2]

    def _exchange(self, job: Job) -> Result:
        limits = job.limits
        parts = [_as_bytes(text) for text in (job.program, job.tests, job.stdin, job.prelude)]
        header = guest.REQUEST.pack(
            guest.MAGIC,
            *(float(limits.cpu_seconds), float(limits.wall_seconds)),
            *(int(limits.memory_bytes), int(limits.output_bytes)),
            *(int(limits.open_files), int(limits.threads)),
            *map(len, parts),
        )
        deadline = time.monotonic() + limits.wall_seconds + GRACE_SECONDS
        self._write(header + b"".join(parts), deadline)
        reply = guest.REPLY.unpack(self._read(guest.REPLY.size, deadline))
        magic, status, exit_code, finished, cpu, wall, peak, out_size, err_size = reply
        if (
            magic != guest.MAGIC
            or status >= len(guest.STATUSES)
            or out_size > limits.output_bytes
            or err_size > guest.ERROR_BYTES
        ):
            raise GuestLost("the guest's reply makes no sense")
        out = self._read(out_size, deadline).decode("utf-8", "replace")
        err = self._read(err_size, deadline).decode("utf-8", "replace")
        name = guest.STATUSES[status]
        return Result(name, out, err, cpu, peak, self.mechanism, exit_code, wall, finished)

    def _wait_for(self, fd: int, writing: bool, deadline: float) -> None:
        # poll, not select: descriptors above 1023 are common in a process with many files.
        poller = select.poll()
        poller.register(fd, select.POLLOUT if writing else select.POLLIN)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise GuestLost("the guest does not answer")

    def _write(self, data: bytes, deadline: float) -> None:
        fd = self.process.stdin.fileno()
        view = memoryview(data)
        while view:
            self._wait_for(fd, True, deadline)
            view = view[os.write(fd, view[: select.PIPE_BUF]) :]

    def _read(self, size: int, deadline: float) -> bytes:
        fd = self.process.stdout.fileno()
        parts = []
        while size:
            self._wait_for(fd, False, deadline)
            part = os.read(fd, min(size, _MIB))
            if not part:
                raise GuestLost("the guest died")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self, lost: bool = False) -> None:
        """Ends and reaps the guest and everything in it; does not wait for one that is `lost`."""
        if self.process is None:
            return
        process, self.process = self.process, None
        # A healthy guest exits when its channel closes, and its launcher reaps what is inside. After
        # a kill, the machine's init would have to, and may not.
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0 if lost else CLOSE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
