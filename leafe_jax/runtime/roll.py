"""The roll call at the start of a run of several processes, and the messages between them.

Process 0 listens at the coordinator's address. Anybody can reach it: a port scanner, a browser, a process
of another run. What is no greeting of this run is sent away or dropped, and keeps nobody waiting. Messages
are lines of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Any

from leafe_jax.errors import UserError

_MAX_GREETING = 4000  # bytes
_GREETING_SECONDS = 10.0  # for a caller to greet
_MAX_CALLERS = 256  # that have not greeted yet; the oldest is dropped
_LINGER_SECONDS = 5.0  # to tell a problem to processes that come late


@dataclasses.dataclass(frozen=True)
class _Greeting:
    """Who calls: the name of its run, its number, and how many processes it thinks there are."""

    run: str
    process: int
    of: int

    def encode(self) -> dict[str, Any]:
        return {"leafe_jax": 1, **dataclasses.asdict(self)}


def _greeting(line: bytes) -> _Greeting | None:
    """What a caller has said; None if it is no process of this program."""
    try:
        said = decode(line)
        fields = {field.name: said[field.name] for field in dataclasses.fields(_Greeting)}
    except (ValueError, KeyError):
        return None
    right = said.get("leafe_jax") == 1 and type(fields["run"]) is str
    right = right and type(fields["process"]) is int and type(fields["of"]) is int
    return _Greeting(**fields) if right else None


def call(place: tuple[str, int], count: int, run: str, seconds: float) -> dict[int, socket.socket]:
    """Process 0: waits until every other process has called.

    Args:
      place: host and port.
      count: number of processes, this one included.
      run: name of the run.
      seconds: to wait.

    Returns:
      process -> connection.

    Raises:
      UserError: the port is taken; a process did not come, was started twice, or was started with
        another number of processes. All processes that have called, or call within a few seconds,
        are told.
    """
    where = f"--coordinator={place[0]}:{place[1]}"
    try:
        dual = socket.has_dualstack_ipv6()
        server = socket.create_server(
            ("", place[1]), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
        )
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}") from error
    with _Roll(server, count, run) as roll:
        roll.listen(time.monotonic() + seconds)
        late = bool(roll.problem)  # some may still come, and are told
        if not roll.problem and not roll.complete():
            missing = [n for n in range(1, count) if n not in roll.here]
            roll.problem = f"{name(missing)} of {count} did not come within {seconds:.0f} s"
            if roll.stranger:
                roll.problem += f"; a process of another run called: {roll.stranger}"
        roll.tell_all()
        if late:
            roll.listen(time.monotonic() + _LINGER_SECONDS)
        if roll.problem:
            raise UserError(f"{where}: {roll.problem}")
        return roll.here


class _Roll:
    """The state of a roll call.

    Attributes:
      here: process -> connection, of those that have come.
      problem: why the run cannot start, "" if nothing is wrong.
      stranger: name of another run whose process has called.
    """

    def __init__(self, server: socket.socket, count: int, run: str):
        self._server, self._count, self._run = server, count, run
        self._selector = selectors.DefaultSelector()
        self._callers: dict[socket.socket, tuple[bytearray, float]] = {}  # words so far, deadline
        self._told: set[int] = set()
        self.here: dict[int, socket.socket] = {}
        self.problem = self.stranger = ""
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)

    def __enter__(self) -> _Roll:
        return self

    def __exit__(self, *_) -> None:
        for caller in list(self._callers):
            self._drop(caller)
        self._selector.close()
        self._server.close()

    def complete(self) -> bool:
        """Whether all have come, or have been told of the problem."""
        return len(self._told if self.problem else self.here) == self._count - 1

    def listen(self, deadline: float) -> None:
        """Until all have come, a problem is found, or (with a problem) all have been told of it."""
        begun_with = self.problem
        while not self.complete() and self.problem == begun_with:
            now = time.monotonic()
            if now >= deadline:
                return
            for caller, (_, until) in list(self._callers.items()):
                if now >= until:
                    self._drop(caller)
            for key, _ in self._selector.select(min(deadline - now, 1.0)):
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._hear(key.fileobj)

    def tell_all(self) -> None:
        """Tells those that have come that all are there, or what the problem is."""
        for number, connection in self.here.items():
            send(connection, {"problem": self.problem})
            self._told.add(number)

    def _accept(self) -> None:
        try:
            caller, _ = self._server.accept()
        except OSError:  # it has gone again, or there is no descriptor left for it
            return
        caller.setblocking(False)
        if len(self._callers) >= _MAX_CALLERS:
            self._drop(next(iter(self._callers)))
        self._callers[caller] = bytearray(), time.monotonic() + _GREETING_SECONDS
        self._selector.register(caller, selectors.EVENT_READ)

    def _hear(self, caller: socket.socket) -> None:
        if caller not in self._callers:  # dropped a moment ago
            return
        words, _ = self._callers[caller]
        try:
            data = caller.recv(_MAX_GREETING - len(words))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        words += data
        if words.endswith(b"\n"):
            self._greet(caller, _greeting(bytes(words)))
        elif not data or b"\n" in words or len(words) >= _MAX_GREETING:
            self._drop(caller)

    def _greet(self, caller: socket.socket, greeting: _Greeting | None) -> None:
        if greeting is None:
            self._drop(caller)
            return
        count, number = self._count, greeting.process
        if greeting.run != self._run:
            self.stranger = greeting.run
            self._send_away(caller, f"another run is there: {self._run}")
        elif self.problem:
            self._told.add(number)
            self._send_away(caller, self.problem)
        elif greeting.of != count:
            self.problem = (
                f"process {number} was started with --num_processes={greeting.of}, process 0 with"
                f" {count}"
            )
            self._told.add(number)
            self._send_away(caller, self.problem)
        elif not 0 < number < count or number in self.here:
            self.problem = f"process {number} of {count} occurs twice"
            self._send_away(caller, self.problem)
        else:
            self._release(caller)
            self.here[number] = caller

    def _release(self, caller: socket.socket) -> None:
        del self._callers[caller]
        self._selector.unregister(caller)
        caller.setblocking(True)

    def _send_away(self, caller: socket.socket, problem: str) -> None:
        self._release(caller)
        caller.settimeout(1)
        send(caller, {"problem": problem})
        caller.close()

    def _drop(self, caller: socket.socket) -> None:
        self._release(caller)
        caller.close()


def answer(
    place: tuple[str, int], count: int, number: int, run: str, seconds: float
) -> socket.socket:
    """Other processes: calls process 0, which may not be there yet, until it says that all have come.

    Args:
      place, count, run, seconds: as of `call`.
      number: of this process.

    Returns:
      The connection to process 0.

    Raises:
      UserError: it cannot be reached, is something else, or has found a problem.
    """
    where = f"--coordinator={place[0]}:{place[1]}"
    deadline = time.monotonic() + seconds
    while True:
        connection = None
        try:
            connection = socket.create_connection(place, timeout=10)
            send(connection, _Greeting(run, number, count).encode())
            # Process 0 gives up first, and says why.
            connection.settimeout(max(deadline - time.monotonic(), 0) + 30)
            with connection.makefile("rb", buffering=0) as file:
                line = file.readline(_MAX_GREETING)
            if line:
                problem = decode(line)["problem"]
                if problem:
                    raise UserError(f"{where}: {problem}")
                # Its call is over once it has said so to all: it may still find a problem before.
                return connection
            reason = "it hung up"
        except OSError as error:
            reason = error.strerror or str(error)
        except (ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where}: something else than process 0 answers there") from error
        if connection is not None:
            connection.close()
        if time.monotonic() > deadline:
            raise UserError(
                f"{where}: process 0 cannot be reached within {seconds:.0f} s ({reason})"
            )
        time.sleep(0.5)


def decode(line: bytes) -> dict[str, Any]:
    """The message of a line; ValueError if it is none."""
    try:
        message = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError("no object")
    return message


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Sends a message; one that does not arrive is noticed by whoever reads from the connection."""
    try:
        connection.sendall((json.dumps(message) + "\n").encode())
    except OSError:
        pass


def name(numbers: Sequence[int]) -> str:
    """Processes in words, e.g. "processes 1, 3"."""
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"process{'es' if len(numbers) > 1 else ''} {shown}"
