"""Runs of several processes: joining, agreeing on decisions, and noticing that a process has died.

Each process holds a TCP connection to process 0 for as long as it lives. The connection has three uses:

* the roll call, before jax's own runtime starts. That runtime would end the process with a stack trace if a
  process is missing or was started twice.
* decisions that all processes must agree on. No device takes part, so one process may still explore while
  another waits, for any length of time.
* it breaks when a process dies, for any reason. The others then report that and stop.

With one process, every function here does nothing.
"""

from __future__ import annotations

import ctypes
import glob
import json
import logging
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import jax

from leafe_jax.errors import UserError
from leafe_jax.runtime import console, roll, stopping

JOIN_SECONDS = 300.0  # time for all processes to join
MEET_SECONDS = 1800.0  # time for all processes to reach a point that none is far from
_SILENT_SECONDS = 30  # a host that acknowledges nothing for this long counts as dead
_SAY_EVERY = 600.0  # seconds between log lines about processes that are waited for
_MAX_MESSAGE = 2**26  # bytes
_AGAIN = "start all of them again with the same command: finished work is kept"
_LOG = logging.getLogger("leafe_jax")

_peers: _Peers | None = None


def first() -> bool:
    """True in the process that prints, draws, and writes everything that a run has one copy of."""
    return jax.process_index() == 0


def several() -> bool:
    """True if this process has joined other processes."""
    return _peers is not None


def together(
    what: str,
    value: Any = None,
    decide: Callable[[list[Any]], Any] | None = None,
    *,
    seconds: float | None = MEET_SECONDS,
    meanwhile: Callable[[], None] | None = None,
) -> Any:
    """The decision of process 0 from the values of all processes; every process gets the same.

    Without `decide` this is a barrier. All processes must make the same calls in the same order.

    Args:
      what: where in the run this is, for messages.
      value: this process's value, as JSON data.
      decide: called in process 0 with the values of all processes, in order. Returns JSON data.
      seconds: how long to wait for the others; None waits for as long as they live.
      meanwhile: called in process 0 every few seconds while it waits.

    Raises:
      UserError: in process 0, if a process did not arrive in time (this ends the others too); or in every
        process, if `decide` raised it.
    """
    if _peers is None:
        return decide([value]) if decide is not None else None
    return _peers.meet(what, value, decide, seconds, meanwhile)


def stop(line: str, code: int = 2) -> None:
    """Prints a line, e.g. "error: ...". With several processes, it also ends this one and all others.

    The others print the line with this process's number. Their exit code is 2 if the line is an error, else
    `code`.
    """
    if _peers is None:
        console.tell(line)
        return
    _peers.stop(line, code)


def leave() -> None:
    """Leaves the run. From now on it is not an error if another process ends."""
    if _peers is not None:
        _peers.leave()


# -- joining ---------------------------------------------------------------------------------------
def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seconds: float = JOIN_SECONDS,
    run: str = "",
) -> None:
    """Joins the other processes of this run, if there are any. Must run before jax looks for devices.

    Without arguments, the environment says which processes there are: SLURM (srun), or a TPU VM with
    several hosts. On a single machine nothing happens.

    Args:
      coordinator: host:port of process 0; the port must be free there.
      num_processes: number of processes.
      process_id: number of this process, from 0 to num_processes - 1.
      seconds: how long to wait for all processes.
      run: name of the run. Processes of a run with another name are rejected.

    Raises:
      UserError: only some of the first three arguments are given, or one is out of range; the port is
        taken; a process is missing, was started twice, or was started with another num_processes.
    """
    global _peers
    explicit = (coordinator, num_processes, process_id)
    if explicit == (None, None, None):
        found = _cluster(os.environ, seconds)
        if found is None:
            return
        coordinator, num_processes, process_id, devices = found
    elif None in explicit:
        raise UserError(
            "--coordinator, --num_processes and --process_id: must be given all three, or none"
        )
    else:
        devices = None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator}: must be host:port, e.g. 10.0.0.1:8476")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id}, --num_processes={num_processes}: must be 0 <= process_id <"
            " num_processes"
        )
    if num_processes == 1:
        return
    place = (host.strip("[]"), int(port))
    if process_id == 0:
        sockets = roll.call(place, num_processes, run, seconds)
    else:
        sockets = {0: roll.answer(place, num_processes, process_id, run, seconds)}
    _peers = _Peers(process_id, num_processes, sockets)
    _explain_aborts()
    jax.distributed.initialize(
        coordinator, num_processes, process_id, devices,
        cluster_detection_method="deactivate",  # already detected
        initialization_timeout=int(seconds) + 1,
    )  # fmt: skip
    stopping.take_back()
    if first():
        _LOG.info(
            "%d processes, %d devices (%s), %d of them this process's", num_processes,
            jax.device_count(), jax.devices()[0].device_kind, jax.local_device_count(),
        )  # fmt: skip


def _cluster(env, seconds: float) -> tuple[str, int, int, Sequence[int] | None] | None:
    """(coordinator, number of processes, own number, own devices), or None unless a scheduler started
    several processes."""
    slurm = "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_NTASKS", 1)) > 1
    if not slurm and _tpu_hosts(env) == 1:
        return None
    # A private function: jax.distributed.initialize calls it too, but not separately from the rest.
    from jax._src.clusters import ClusterEnv

    coordinator, count, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, int(seconds)
    )
    if coordinator is None or not count:
        return None
    # jax gives every SLURM task one GPU. A task that is alone on its node should have all of the node's.
    if slurm and env.get("SLURM_STEP_NUM_NODES") == env["SLURM_NTASKS"]:
        devices = list(range(int(env.get("SLURM_GPUS_ON_NODE", 0)))) or None
    return coordinator, count, number, devices


def _tpu_hosts(env) -> int:
    """Number of hosts in the TPU slices that this machine belongs to; 1 if it has no TPU."""
    platforms = env.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        return 1
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/*"):
        return 1
    slices = int(env.get("MEGASCALE_NUM_SLICES") or 1)
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if not hosts and "TPU_SKIP_MDS_QUERY" not in env:
        request = urllib.request.Request(
            "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
            "worker-network-endpoints",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with urllib.request.urlopen(request, timeout=3) as answer:
                hosts = answer.read().decode(errors="replace")
        except (urllib.error.URLError, OSError):  # not on Google Cloud
            hosts = ""
    return slices * len((hosts or "").split(","))


def _explain_aborts() -> None:
    """Prints an explanation when jax's runtime aborts the process, after the runtime's own message.

    The runtime aborts when process 0, which hosts its service, dies. It offers no other notification.
    """
    global _handler

    def explain(_: int) -> None:
        if _peers is not None:
            _peers.end(
                "error: jax's runtime has ended this process (its message is above), most likely because"
                f" another process died; {_AGAIN}"
            )
        os._exit(2)

    # Global, because it must not be garbage-collected.
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)


# -- agreeing --------------------------------------------------------------------------------------
class _Peers:
    """Connections to the other processes, in a star around process 0.

    Args:
      number: of this process.
      count: number of processes.
      sockets: process -> connection. Process 0 has one to each other process; the others have one to it.
    """

    def __init__(self, number: int, count: int, sockets: dict[int, socket.socket]):
        self.number, self.count, self._sockets = number, count, sockets
        self._changed = threading.Condition()
        self._round = 0
        self._brought: dict[int, dict[int, Any]] = {}  # round -> process -> value
        self._decided: dict[int, dict[str, Any]] = {}  # round -> decision
        self._gone: set[int] = set()  # processes that have left the run
        self._last_words = threading.Lock()  # held by the thread that ends this process
        for peer, connection in sockets.items():
            _keep_alive(connection)
            threading.Thread(target=self._listen, args=(peer, connection), daemon=True).start()

    def meet(self, what, value, decide, seconds, meanwhile) -> Any:
        """See `together`."""
        self._round += 1
        if self.number:
            roll.send(self._sockets[0], {"at": self._round, "value": value})
            with self._changed:
                self._changed.wait_for(lambda: self._round in self._decided)
                answer = self._decided.pop(self._round)
        else:
            values = self._wait_for_all(what, seconds, meanwhile)
            values[0] = json.loads(json.dumps(value))  # so that it has the same types as the others
            answer = _decide(decide, [values[n] for n in range(self.count)])
            self._tell({"round": self._round, **answer})
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["decision"]

    def _wait_for_all(self, what: str, seconds: float | None, meanwhile) -> dict[int, Any]:
        begin = said = time.monotonic()
        with self._changed:
            brought = self._brought.setdefault(self._round, {})
            while len(brought) < self.count - 1:
                self._changed.wait(timeout=2)
                now = time.monotonic()
                missing = [n for n in range(1, self.count) if n not in brought]
                gone = [n for n in missing if n in self._gone]
                if gone or missing and seconds is not None and now - begin > seconds:
                    how = "has left" if gone else f"did not arrive within {seconds:.0f} s"
                    raise UserError(f"{what}: {roll.name(gone or missing)} of {self.count} {how}")
                if missing and now - said > _SAY_EVERY:
                    said = now
                    _LOG.info("%s: waiting for %s of %d", what, roll.name(missing), self.count)
                if meanwhile is not None:
                    meanwhile()
            return self._brought.pop(self._round)

    def stop(self, line: str, code: int) -> None:
        """See `stop`; does not return."""
        # Before telling the others: process 0 forwards the message to all, and they end this process too.
        self._last_words.acquire()
        me = f"process {self.number} of {self.count}"
        if line.startswith("error: "):
            told, code_there = f"error: {me} has stopped: {line.removeprefix('error: ')}", 2
        else:
            told, code_there = f"{me}: {line}", code
        self._tell({"stop": told, "code": code_there})
        self._end(line, code)

    def leave(self) -> None:
        """See `leave`."""
        with self._changed:
            self._gone |= set(range(self.count))
        self._tell({"bye": True})

    def end(self, line: str, code: int = 2) -> None:
        """Prints the line and ends this process; does not return."""
        self._last_words.acquire()  # never released: a second thread waits here until the process ends
        self._end(line, code)

    def _end(self, line: str, code: int) -> None:
        console.tell(line)
        # jax's runtime may be about to print a stack trace for the same failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for connection in self._sockets.values():
            try:  # delivers what was sent before the connection closes
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        time.sleep(0.2)
        os._exit(code)

    def _tell(self, message: dict[str, Any]) -> None:
        for connection in self._sockets.values():
            roll.send(connection, message)

    def _listen(self, peer: int, connection: socket.socket) -> None:
        """Handles a process's messages until its connection ends or it sends an invalid one."""
        problem = "has died or cannot be reached"
        try:
            with connection.makefile("rb") as file:
                while (line := file.readline(_MAX_MESSAGE)).endswith(b"\n"):
                    self._take(peer, roll.decode(line))
                if len(line) == _MAX_MESSAGE:
                    raise ValueError("too long")
        except OSError:
            pass
        except (ValueError, KeyError, TypeError, RecursionError):  # the last of nested JSON
            problem = "has sent an invalid message"
        if peer not in self._gone:
            lost = f"error: process {peer} of {self.count} {problem}; {_AGAIN}"
            if self.number == 0:
                self._tell({"stop": lost, "code": 2})
            self.end(lost)

    def _take(self, peer: int, message: dict[str, Any]) -> None:
        """Handles one message. Raises KeyError, TypeError or ValueError if it is invalid."""
        if "stop" in message:
            line, code = str(message["stop"]), _checked(message["code"])
            if self.number == 0:
                self._tell({"stop": line, "code": code})
            self.end(line, code)
        with self._changed:
            if "bye" in message:
                self._gone.add(peer)
            elif self.number == 0:
                self._brought.setdefault(_checked(message["at"]), {})[peer] = message["value"]
            else:
                answer = {
                    k: message[k] for k in (("error",) if "error" in message else ("decision",))
                }
                self._decided[_checked(message["round"])] = answer
            self._changed.notify_all()


def _checked(number: Any) -> int:
    if type(number) is not int:
        raise TypeError(f"{number!r}: must be an integer")
    return number


def _decide(decide, values: list[Any]) -> dict[str, Any]:
    try:
        decision = decide(values) if decide is not None else None
    except UserError as error:
        return {"error": str(error)}
    # Through JSON in process 0 as well, so that all processes get the same types.
    return {"decision": json.loads(json.dumps(decision))}


def _keep_alive(connection: socket.socket) -> None:
    """Makes the connection break if its host vanishes (power failure, network failure)."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _SILENT_SECONDS // 3),
        ("TCP_KEEPINTVL", _SILENT_SECONDS // 6),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", 1000 * _SILENT_SECONDS),
    ):
        if hasattr(socket, name):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
