"""Worker processes that hold live simulators, for envs/replay.py.

Workers are fresh interpreters: forking a process that has initialised JAX deadlocks.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from envs.base import EnvDataError

START_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Reply:
    """A simulator's reply to an action.

    Attributes:
      observation: feedback text.
      score: points so far; a reward is the difference of two successive scores.
      done: the simulator has ended the episode.
      success: goal reached.
      info: plain JSON-able extras, see StepResult.
    """

    observation: str
    score: float = 0.0
    done: bool = False
    success: bool = False
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Simulator(abc.ABC):
    """One live simulator in a worker process. Any exception except EnvDataError ends the worker.

    A worker makes one per seat, on first use. They may share what is expensive (a JVM).
    """

    @abc.abstractmethod
    def reset(self, task_id: str) -> Reply:
        """Starts a task; the reply has the first observation and the initial score."""

    @abc.abstractmethod
    def step(self, action: str) -> Reply:
        """Plays an action, which may be any string."""

    @abc.abstractmethod
    def ask(self, question: str) -> Any:
        """The answer to a question about the current state, e.g. "actions"; picklable."""

    @abc.abstractmethod
    def plan(self, task_id: str) -> list[str] | None:
        """An expert's actions from the task's start; the simulator may be left in any state."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends what the simulator started."""


class WorkerDied(Exception):
    """A worker ended, broke, or did not answer in time. Its episode is replayed in a new worker."""


class Worker:
    """The parent's side of one worker process with `seats` live simulators."""

    def __init__(self, factory: str, options: Mapping[str, Any], seats: int):
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(p for p in sys.path if p)
        # Its output is not for the terminal. The last line may say why it ended: for the error.
        self._printed = tempfile.TemporaryFile()
        # `multiprocessing` would import the caller's main module (and JAX) again. In a session of its
        # own, Ctrl-C does not reach the worker, and its process group can be killed as a whole.
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import envs.workers as w, sys; w.serve(int(sys.argv[1]))",
             str(theirs.fileno())],
            pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self._printed, env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._connection = Connection(ours.detach())
        self.seats = [Seat(self, number) for number in range(seats)]
        try:
            self.request(START_SECONDS, "start", factory, dict(options))
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, seconds: float, *message: Any) -> Any:
        """Sends one request and waits for its answer.

        Raises:
          WorkerDied: no answer within `seconds`, or the worker broke.
          EnvDataError: the simulator refused the request.
        """
        try:
            self._connection.send(message)
            if not self._connection.poll(seconds):
                raise WorkerDied(f"no answer to {message[0]!r} within {seconds:g} s")
            kind, answer = self._connection.recv()
        except (OSError, EOFError) as error:
            reason = self._last_line() or error or type(error).__name__
            raise WorkerDied(f"the worker ended ({reason})") from None
        if kind == "refused":
            raise EnvDataError(answer)
        if kind == "broken":
            raise WorkerDied(answer)
        return answer

    def _last_line(self) -> str:
        """The last line that the worker printed, "" if there is none."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # the connection closes before the process has ended
        size = os.fstat(self._printed.fileno()).st_size
        text = os.pread(self._printed.fileno(), 4096, max(0, size - 4096))
        return text.decode(errors="replace").strip().rpartition("\n")[2][-200:]

    def stop(self) -> None:
        """Gives the simulator five seconds to end by itself, then kills the worker."""
        with contextlib.suppress(OSError):
            self._connection.send(("close",))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self.kill()

    def kill(self) -> None:
        """Kills the worker and what it started (a JVM is in its process group)."""
        if self._connection.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        self._printed.close()


class Seat:
    """One live simulator of a worker.

    Attributes:
      live: (task id, actions) of its simulator; None: unknown, so it needs a reset.
      used: clock value of the last use, to find the least recently used seat.
    """

    def __init__(self, worker: Worker, number: int):
        self.worker, self._number = worker, number
        self.live: tuple[str, tuple[str, ...]] | None = None
        self.used = 0

    def request(self, seconds: float, verb: str, *arguments: Any) -> Any:
        """See Worker.request."""
        return self.worker.request(seconds, verb, self._number, *arguments)

    def cost(self, state: Any) -> int:
        """Simulator calls that reach a ReplayState; more than its steps if a reset is needed."""
        steps = len(state.actions)
        if self.live is None or self.live[0] != state.task_id:
            return steps + 1
        done = self.live[1]
        return steps - len(done) if state.actions[: len(done)] == done else steps + 1


def serve(file_descriptor: int) -> None:
    """The worker's main loop: one answer per request, until the parent ends."""
    connection = Connection(file_descriptor)
    simulators: dict[int, Simulator] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            verb, *arguments = connection.recv()
            if verb == "close":
                break
            try:
                if verb == "start":
                    module, _, attribute = arguments[0].partition(":")
                    make = functools.partial(
                        getattr(importlib.import_module(module), attribute), **arguments[1]
                    )
                    simulators[0] = make()
                    answer = None
                else:
                    seat, *arguments = arguments
                    if seat not in simulators:
                        simulators[seat] = make()
                    answer = getattr(simulators[seat], verb)(*arguments)
            except EnvDataError as error:
                connection.send(("refused", str(error)))
            except Exception as error:  # a broken simulator: the parent starts another worker
                connection.send(("broken", f"{type(error).__name__}: {error}"))
                break
            else:
                connection.send(("answer", answer))
    for simulator in simulators.values():
        simulator.close()
    os._exit(0)  # finalizers of a broken simulator would print useless tracebacks
