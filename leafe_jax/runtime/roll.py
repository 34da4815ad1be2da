"""The roll call at the start of a run of several processes, and the messages between them.

Process 0 listens at the coordinator's address. Anything can connect to it: a port scanner, a browser, a
process of another run. A caller without a valid greeting of this run is rejected or dropped, and delays
nobody. Messages are lines of JSON.
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
_GREETING_SECONDS = 10.0  # time that a caller has to send its greeting
_MAX_CALLERS = 256  # most callers that have not greeted yet; beyond it the oldest is dropped
_LINGER_SECONDS = 5.0  # how long process 0 reports a problem to processes that call late


@dataclasses.dataclass(frozen=True)
class _Greeting:
    """What a caller says: the name of its run, its number, and its number of processes."""

    run: str
    process: int
    of: int

    def encode(self) -> dict[str, Any]:
        return {"leafe_jax": 1, **dataclasses.asdict(self)}


def _greeting(line: bytes) -> _Greeting | None:
    """The greeting in a caller's line; None if the caller is not a process of this program."""
    try:
        said = decode(line)
        fields = {field.name: said[field.name] for field in dataclasses.fields(_Greeting)}
    except (ValueError, KeyError):
        return None
    right = said.get("leafe_jax") == 1 and type(fields["run"]) is str
    right = right and type(fields["process"]) is int and type(fields["of"]) is int
    return _Greeting(**fields) if right else None


def call(place: tuple[str, int], count: int, run: str, seconds: float) -> dict[int, socket.socket]:
    """Waits in process 0 until every other process has called; returns process -> connection.

    Args:
      place: host and port.
      count: number of processes, including this one.
      run: name of the run.
      seconds: how long to wait.

    Raises:
      UserError: the port is taken; or a process is missing, was started twice, or was started with another
        number of processes. Processes that have called, or call within a few seconds, get the same error.
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
        late = bool(roll.problem)  # more processes may call, and must get the error too
        if not roll.problem and not roll.complete():
            missing = [n for n in range(1, count) if n not in roll.here]
            roll.problem = f"{name(missing)} of {count} did not join within {seconds:.0f} s"
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
      here: process -> connection, for processes that have called.
      problem: why the run cannot start; "" if nothing is wrong.
      stranger: name of another run, if one of its processes has called.
    """

    def __init__(self, server: socket.socket, count: int, run: str):
        self._server, self._count, self._run = server, count, run
        self._selector = selectors.DefaultSelector()
        self._callers: dict[socket.socket, tuple[bytearray, float]] = {}  # bytes so far, deadline
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
        """True if all processes have called or, with a problem, all have been told of it."""
        return len(self._told if self.problem else self.here) == self._count - 1

    def listen(self, deadline: float) -> None:
        """Serves callers until the roll call is complete, a new problem is found, or the deadline."""
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
        """Tells the processes that have called that the roll is complete, or what the problem is."""
        for number, connection in self.here.items():
            send(connection, {"problem": self.problem})
            self._told.add(number)

    def _accept(self) -> None:
        try:
            caller, _ = self._server.accept()
        except OSError:  # the caller is gone, or no file descriptor is left for it
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
            self._send_away(caller, f"belongs to another run: {self._run}")
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
            self.problem = f"process {number} of {count} was started twice"
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
    """Calls process 0 from another process; returns the connection once all processes have called.

    Process 0 may start later than this process.

    Args:
      place, count, run, seconds: as for `call`.
      number: of this process.

    Raises:
      UserError: process 0 cannot be reached or has found a problem; or the port belongs to another program.
    """
    where = f"--coordinator={place[0]}:{place[1]}"
    deadline = time.monotonic() + seconds
    while True:
        connection = None
        try:
            connection = socket.create_connection(place, timeout=10)
            send(connection, _Greeting(run, number, count).encode())
            # Waits longer than process 0, which gives up first and says why.
            connection.settimeout(max(deadline - time.monotonic(), 0) + 30)
            with connection.makefile("rb", buffering=0) as file:
                line = file.readline(_MAX_GREETING)
            if line:
                problem = decode(line)["problem"]
                if problem:
                    raise UserError(f"{where}: {problem}")
                # Process 0 says this once its roll call is over. Until then it may find a problem.
                return connection
            reason = "it closed the connection"
        except OSError as error:
            reason = error.strerror or str(error)
        except (ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where}: another program answers there, not process 0") from error
        if connection is not None:
            connection.close()
        if time.monotonic() > deadline:
            raise UserError(f"{where}: process 0 was not reached within {seconds:.0f} s ({reason})")
        time.sleep(0.5)


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line. Raises ValueError if there is none."""
    try:
        message = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Sends a message. Errors are ignored, because the thread that reads the connection notices them."""
    try:
        connection.sendall((json.dumps(message) + "\n").encode())
    except OSError:
        pass


def name(numbers: Sequence[int]) -> str:
    """Process numbers as text, e.g. "processes 1, 3"."""
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"process{'es' if len(numbers) > 1 else ''} {shown}"
