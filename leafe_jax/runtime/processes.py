"""Several processes, one program: coming together, agreeing, and noticing when one of them is gone.

Where a run has several processes, each holds a TCP connection to the first one for as long as it lives. It
takes the roll before jax's own runtime starts, which ends the process with a stack trace where a process
is missing or there twice; it carries what has to be agreed on; and it breaks when a process dies, in
whatever way, so that the others can say so and stop. No device takes part: one process may still explore
while another waits, however long.

With one process everything here does nothing.
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

JOIN_SECONDS = 300.0  # for all processes to come
MEET_SECONDS = 1800.0  # for all processes to come to a point that none has far to
_SILENT_SECONDS = 30  # a host that does not even acknowledge for so long is gone
_SAY_EVERY = 600.0  # seconds between lines about who is waited for
_MAX_MESSAGE = 2**26  # bytes
_AGAIN = "start all of them again with the same command: finished work is kept"
_LOG = logging.getLogger("leafe_jax")

_peers: _Peers | None = None


def first() -> bool:
    """Whether this is the process that prints, draws and writes what there is one of."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether this run has joined others."""
    return _peers is not None


def together(
    what: str,
    value: Any = None,
    decide: Callable[[list[Any]], Any] | None = None,
    *,
    seconds: float | None = MEET_SECONDS,
    meanwhile: Callable[[], None] | None = None,
) -> Any:
    """All processes come here; the first one decides from what they bring; all get the decision.

    Without `decide` it is a barrier. Calls must come in the same order everywhere.

    Args:
      what: where in the run this is, for messages.
      value: what this process brings; JSON.
      decide: called in the first process with the values of all, in order; its result is JSON.
      seconds: to wait for the others; None waits as long as they live.
      meanwhile: called in the first process every few seconds while it waits.

    Raises:
      UserError: a process did not come in time (in the first process, which ends the others); or
        `decide` raised it, then in every process.
    """
    if _peers is None:
        return decide([value]) if decide is not None else None
    return _peers.meet(what, value, decide, seconds, meanwhile)


def stop(line: str, code: int = 2) -> None:
    """Prints a line, e.g. "error: ..."; with several processes tells the others and ends this one.

    They end too, with the line and this process's number; with code 2 where the line is an error,
    otherwise with `code`.
    """
    if _peers is None:
        console.tell(line)
        return
    _peers.stop(line, code)


def leave() -> None:
    """Says goodbye: from here on another process's end is no error."""
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
    """Joins the other processes of this run, if there are any; before jax looks for devices.

    Without arguments they come from the environment: SLURM (srun) or a TPU VM with several hosts; on one
    machine nothing happens.

    Args:
      coordinator: host:port of process 0, with a port that is free there.
      num_processes, process_id: how many, and which of 0 .. num_processes - 1 this is.
      seconds: to wait for all of them.
      run: name of the run; processes of a run with another name are sent away.

    Raises:
      UserError: not all three or out of range; the port is taken; a process is missing or was started
        twice, or has another number of processes.
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
            "--coordinator, --num_processes and --process_id belong together: all three or none"
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
        cluster_detection_method="deactivate",  # it is known already
        initialization_timeout=int(seconds) + 1,
    )  # fmt: skip
    stopping.take_back()
    if first():
        _LOG.info(
            "%d processes, %d devices (%s), %d of them this process's", num_processes,
            jax.device_count(), jax.devices()[0].device_kind, jax.local_device_count(),
        )  # fmt: skip


def _cluster(env, seconds: float) -> tuple[str, int, int, Sequence[int] | None] | None:
    """(coordinator, number of processes, own number, own devices) where a scheduler started several."""
    slurm = "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_NTASKS", 1)) > 1
    if not slurm and _tpu_hosts(env) == 1:
        return None
    # Not public; jax.distributed.initialize does the same, but only together with the rest.
    from jax._src.clusters import ClusterEnv

    coordinator, count, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, int(seconds)
    )
    if coordinator is None or not count:
        return None
    # jax gives every SLURM task one GPU; a task that is alone on its node has them all.
    if slurm and env.get("SLURM_STEP_NUM_NODES") == env["SLURM_NTASKS"]:
        devices = list(range(int(env.get("SLURM_GPUS_ON_NODE", 0)))) or None
    return coordinator, count, number, devices


def _tpu_hosts(env) -> int:
    """Hosts of the TPU slice (or slices) that this machine belongs to; 1 where there is no TPU."""
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
    """Has the last word where jax's runtime aborts the process, after its own message.

    It does so when process 0, which runs its service, dies; there is no other way to be told.
    """
    global _handler

    def explain(_: int) -> None:
        if _peers is not None:
            _peers.end(
                "error: jax's runtime has ended this process (its message is above), most likely since"
                f" another one died; {_AGAIN}"
            )
        os._exit(2)

    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)  # must not be collected
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)


# -- together --------------------------------------------------------------------------------------
class _Peers:
    """The other processes: a star with the first one in the middle.

    Args:
      number, count: this process, and how many there are.
      sockets: process -> connection: to all others in the first process, to that one elsewhere.
    """

    def __init__(self, number: int, count: int, sockets: dict[int, socket.socket]):
        self.number, self.count, self._sockets = number, count, sockets
        self._changed = threading.Condition()
        self._round = 0
        self._brought: dict[int, dict[int, Any]] = {}  # round -> process -> value
        self._decided: dict[int, dict[str, Any]] = {}  # round -> decision
        self._gone: set[int] = set()  # who has said goodbye
        self._last_words = threading.Lock()  # held by whoever ends this process
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
            values[0] = json.loads(json.dumps(value))  # the same types as the others'
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
                    how = "has left" if gone else f"has not come within {seconds:.0f} s"
                    raise UserError(f"{what}: {roll.name(gone or missing)} of {self.count} {how}")
                if missing and now - said > _SAY_EVERY:
                    said = now
                    _LOG.info("%s: waiting for %s of %d", what, roll.name(missing), self.count)
                if meanwhile is not None:
                    meanwhile()
            return self._brought.pop(self._round)

    def stop(self, line: str, code: int) -> None:
        """See `stop`; does not return."""
        # Before the others hear of it: the first process sends what it is told to all, and they end too.
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
        """Prints the one line and ends this process; does not return."""
        self._last_words.acquire()  # never released: a second one waits for the end
        self._end(line, code)

    def _end(self, line: str, code: int) -> None:
        console.tell(line)
        # jax's runtime may be about to print the stack of what has just been said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for connection in self._sockets.values():
            try:  # what has been sent arrives before the end does
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        time.sleep(0.2)
        os._exit(code)

    def _tell(self, message: dict[str, Any]) -> None:
        for connection in self._sockets.values():
            roll.send(connection, message)

    def _listen(self, peer: int, connection: socket.socket) -> None:
        """Takes what a process sends, until its connection ends or it sends what nobody expects."""
        problem = "has died or cannot be reached"
        try:
            with connection.makefile("rb") as file:
                while (line := file.readline(_MAX_MESSAGE)).endswith(b"\n"):
                    self._take(peer, roll.decode(line))
                if len(line) == _MAX_MESSAGE:
                    raise ValueError("too long")
        except OSError:
            pass
        except (ValueError, KeyError, TypeError):
            problem = "has sent something that is no message of this program"
        if peer not in self._gone:
            lost = f"error: process {peer} of {self.count} {problem}; {_AGAIN}"
            if self.number == 0:
                self._tell({"stop": lost, "code": 2})
            self.end(lost)

    def _take(self, peer: int, message: dict[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for what is no message."""
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
        raise TypeError(f"{number!r} is no number")
    return number


def _decide(decide, values: list[Any]) -> dict[str, Any]:
    try:
        decision = decide(values) if decide is not None else None
    except UserError as error:
        return {"error": str(error)}
    return {"decision": json.loads(json.dumps(decision))}  # the same types in all


def _keep_alive(connection: socket.socket) -> None:
    """A host that vanishes without a word (power, network) is noticed too."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _SILENT_SECONDS // 3),
        ("TCP_KEEPINTVL", _SILENT_SECONDS // 6),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", 1000 * _SILENT_SECONDS),
    ):
        if hasattr(socket, name):  # Linux has them all
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
