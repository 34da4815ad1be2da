"""Processes join, agree, and notice a death; with real processes and real sockets."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from leafe_jax.errors import UserError
from leafe_jax.runtime import processes

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import os, sys, time
from leafe_jax.runtime import processes
from leafe_jax.errors import UserError
how = sys.argv[1]
flags = (sys.argv[2], int(sys.argv[3]), int(sys.argv[4])) if len(sys.argv) > 2 else ()
try:
    processes.join(*flags)
except UserError as error:
    print("error:", error, file=sys.stderr)
    os._exit(2)
import jax
me = jax.process_index()
print(me, jax.process_count(), flush=True)
def refuse(values):
    raise UserError(f"no good: {values}")
print(processes.together("sum", 10 * me, sum), flush=True)
try:
    processes.together("refused", me, refuse)
except UserError as error:
    print(error, flush=True)
if how == f"die {me}":
    os.kill(os.getpid(), 9)
if how == f"stop {me}":
    processes.stop("error: my own fault")
if how == f"leave {me}":
    processes.leave()
    os._exit(0)
if how != "go on":
    try:
        processes.together("a long wait", seconds=None)
    except UserError as error:
        processes.stop(f"error: {error}")
    time.sleep(30)
processes.together("the end")
processes.leave()
print("done", flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(how, arguments=((), ()), environments=({}, {})):
    return [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, how, *map(str, own)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
        )
        for own, environment in zip(arguments, environments)
    ]  # fmt: skip


def explicit(count=2):
    port = free_port()
    return [(f"127.0.0.1:{port}", count, number) for number in range(count)]


def finish(children):
    """(exit code, lines of stdout, our error lines on stderr) of each process."""
    found = []
    for child in children:
        out, err = child.communicate(timeout=300)
        # Gloo and jax's runtime print lines of their own.
        lines = [line for line in out.splitlines() if "[Gloo]" not in line]
        found.append((child.returncode, lines, [x for x in err.splitlines() if "error: " in x]))
    return found


AGREED = ["10", "no good: [0, 1]"]


def test_two_processes_agree_and_leave():
    first, second = finish(start("go on", explicit()))
    assert first == (0, ["0 2", *AGREED, "done"], [])
    assert second == (0, ["1 2", *AGREED, "done"], [])


def test_slurm_is_found_in_the_environment():
    # jax derives the port from the job number: one of 4096 ports from 61440 on.
    job = next(n for n in range(100, 4000) if _is_free(61440 + n))
    slurm = dict(SLURM_JOB_ID=str(job), SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2",
                 SLURM_STEP_NUM_NODES="1")  # fmt: skip
    environments = [{**slurm, "SLURM_PROCID": n, "SLURM_LOCALID": n} for n in ("0", "1")]
    first, second = finish(start("go on", environments=environments))
    assert first == (0, ["0 2", *AGREED, "done"], [])
    assert second == (0, ["1 2", *AGREED, "done"], [])


def _is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("dead", [0, 1])
def test_the_others_end_with_one_line_when_one_is_killed(dead):
    results = finish(start(f"die {dead}", explicit()))
    assert results[dead][0] == -signal.SIGKILL
    code, out, errors = results[1 - dead]
    assert code == 2 and "done" not in out
    again = "start all of them again with the same command: finished work is kept"
    assert errors == [f"error: process {dead} of 2 has died or cannot be reached; {again}"]


@pytest.mark.parametrize("failed", [0, 1])
def test_the_others_print_the_error_of_one(failed):
    results = finish(start(f"stop {failed}", explicit()))
    assert results[failed][0] == 2 and results[failed][2] == ["error: my own fault"]
    other = results[1 - failed]
    assert other[0] == 2
    assert other[2] == [f"error: process {failed} of 2 has stopped: my own fault"]


def test_one_that_has_left_is_not_waited_for():
    first, second = finish(start("leave 1", explicit()))
    assert second[0] == 0
    assert first[0] == 2 and first[2] == ["error: a long wait: process 1 of 2 has left"]


# -- what comes over the network --------------------------------------------------------------------
# One child process imports the module and forks for each message.
PEERS = """
import json, os, socket, subprocess, sys
from leafe_jax.runtime import processes
def connected():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return socket.create_connection(server.getsockname()), server.accept()[0]
for number, sent, closed in eval(sys.stdin.read()):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 2)
        here, there = connected()
        peers = processes._Peers(number, 2, {1 - number: here})
        there.sendall(sent)
        if closed:
            there.shutdown(socket.SHUT_WR)
        peers.meet("the start", 1, sum, 20, None)
        os._exit(0)
    os.close(write)
    with open(read) as file:
        said = file.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]))
"""


def what_peers_say(cases):
    done = subprocess.run(
        [sys.executable, "-c", PEERS], input=repr(cases), stdout=subprocess.PIPE, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


BAD = {
    "garbage": b"\x00\xff\xfe garbage\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "not UTF-8": b'{"at": 1, "value": "\xff"}\n',
    "a list": b"[1]\n",
    "a number": b"7\n",
    "nothing": b"null\n",
    "deep": b"[" * 100_000 + b"\n",
    "other fields": b'{"hello": "you"}\n',
    "no value": b'{"at": 1}\n',
    "no decision": b'{"round": 1}\n',
    "round is a list": b'{"at": [1], "round": [1], "value": 1, "decision": 1}\n',
    "stop without a code": b'{"stop": "\\u001b[2J"}\n',
}


def test_a_malformed_message_is_one_line():
    cases = [(number, sent, False) for number in (0, 1) for sent in BAD.values()]
    found = what_peers_say(cases)
    assert len(found) == len(cases)
    for (number, sent, _), (code, said) in zip(cases, found):
        assert (code, said) == (
            2,
            f"error: process {1 - number} of 2 has sent an invalid message;"
            " start all of them again with the same command: finished work is kept\n",
        ), sent


def test_half_a_message_is_a_death():
    ((code, said),) = what_peers_say([(0, b'{"at": 1, "val', True)])
    assert code == 2 and said.count("\n") == 1
    assert "process 1 of 2 has died or cannot be reached" in said


def test_the_port_is_taken():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"--coordinator=localhost:{port}: Address already"):
            processes.join(f"localhost:{port}", 2, 0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, None), "must be given all three, or none"),
        ((None, 2, 0), "must be given all three, or none"),
        (("host", 2, 0), "--coordinator=host: must be host:port"),
        (("host:port", 2, 0), "--coordinator=host:port: must be host:port"),
        (("host:70000", 2, 0), "must be host:port"),
        (("host:1", 2, 2), "--process_id=2, --num_processes=2: must be 0 <= process_id"),
        (("host:1", 2, -1), "--process_id=-1"),
        (("host:1", 0, 0), "--num_processes=0"),
    ],
)
def test_wrong_flags(arguments, message):
    with pytest.raises(UserError, match=message):
        processes.join(*arguments)


# -- what the environment says ---------------------------------------------------------------------
def test_one_machine_needs_no_flags(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    processes.join()
    assert processes.first() and not processes.several()
    assert processes.together("alone", 3, sum) == 3 and processes.together("alone") is None


def test_slurm_tasks_get_their_gpus(monkeypatch):
    slurm = dict(SLURM_JOB_ID="7", SLURM_STEP_NODELIST="gpu[04-05]", SLURM_NTASKS="2", SLURM_PROCID="1",
                 SLURM_LOCALID="0", SLURM_STEP_NUM_NODES="2", SLURM_GPUS_ON_NODE="8")  # fmt: skip
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    # One task per node has all its GPUs. With several tasks, each has one GPU.
    assert processes._cluster(os.environ, 1) == ("gpu04:61447", 2, 1, list(range(8)))
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")
    assert processes._cluster(os.environ, 1) == ("gpu04:61447", 2, 1, [0])
    # Inside an allocation but not started by srun, it is an ordinary run.
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    assert processes._cluster(os.environ, 1) is None


def test_tpu_hosts(monkeypatch):
    there = ["/dev/accel*"]
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: [x for x in there if x == pattern])
    assert processes._tpu_hosts({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}) == 4
    assert processes._tpu_hosts({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}) == 4
    assert processes._tpu_hosts({"TPU_WORKER_HOSTNAMES": "localhost"}) == 1
    assert processes._tpu_hosts({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}) == 1
    assert processes._tpu_hosts({"TPU_SKIP_MDS_QUERY": "1"}) == 1
    there.clear()
    assert processes._tpu_hosts({"TPU_WORKER_HOSTNAMES": "a,b"}) == 1
