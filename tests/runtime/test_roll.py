"""The roll call, on real sockets: processes that call, processes that do not, and strangers."""

import contextlib
import json
import socket
import threading
import time

import pytest

from leafe_jax.errors import UserError
from leafe_jax.runtime import roll


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def dial(port) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except ConnectionRefusedError:  # process 0 does not listen yet
            time.sleep(0.01)


def hold(count, callers, seconds=30.0, before=lambda port: None, late=0.0, in_turn=False):
    """The errors of process 0 ("first") and of each of `callers` (by index); None where there is none.

    Args:
      count: of processes.
      callers: (number, count, run) of each.
      seconds: how long everybody waits.
      before: called with the port before anybody else calls.
      late: seconds between callers.
      in_turn: True lets a caller wait for the answer to the one before it.
    """
    port, found = free_port(), {}

    def run(name, function, *arguments):
        try:
            function(("127.0.0.1", port), *arguments, seconds)
            found[name] = None
        except UserError as error:
            found[name] = str(error).replace(f"--coordinator=127.0.0.1:{port}: ", "")
        except Exception as error:
            found[name] = error

    threads = [threading.Thread(target=run, args=("first", roll.call, count, "mine"))]
    threads[0].start()
    kept = before(port)
    for index, (number, of, name) in enumerate(callers):
        threads.append(threading.Thread(target=run, args=(index, roll.answer, of, number, name)))
        threads[-1].start()
        if in_turn:
            threads[-1].join(timeout=60)
        time.sleep(late)
    for thread in threads:
        thread.join(timeout=60)
    del kept
    return found


def test_all_processes_call():
    assert hold(3, [(2, 3, "mine"), (1, 3, "mine")]) == {"first": None, 0: None, 1: None}


GREETING = {"leafe_jax": 1, "run": "mine", "process": 1, "of": 2}
STRANGERS = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "a list": b"[]\n",
    "not UTF-8": b"\xff\n",
    "an empty line": b"\n",
    "deep": b"[" * 3000 + b"\n",
    "deep objects": b'{"a":' * 700 + b"\n",
    "a flood": b"x" * 1_000_000,
    "a long number": b'{"process": ' + b"9" * 3500 + b"}\n",
    "infinity": json.dumps({**GREETING, "process": float("inf")}).encode() + b"\n",
    "a true number": json.dumps({**GREETING, "process": True}).encode() + b"\n",
    "a text number": json.dumps({**GREETING, "process": "1"}).encode() + b"\n",
    "a list of runs": json.dumps({**GREETING, "run": ["mine"]}).encode() + b"\n",
    "another program": json.dumps({**GREETING, "leafe_jax": None}).encode() + b"\n",
    "two lines": json.dumps(GREETING).encode() + b"\nmore",
}


@pytest.mark.parametrize("sent", STRANGERS.values(), ids=STRANGERS.keys())
def test_strangers_are_not_counted(sent):
    def call(port):
        with dial(port) as connection, contextlib.suppress(OSError):
            connection.sendall(sent)

    assert hold(2, [(1, 2, "mine")], before=call) == {"first": None, 0: None}


def test_callers_that_say_nothing_keep_nobody_waiting():
    def call(port):
        kept = [dial(port) for _ in range(20)]
        for connection in kept:
            connection.sendall(b"{")
        return kept

    begin = time.monotonic()
    assert hold(2, [(1, 2, "mine")], seconds=30.0, before=call) == {"first": None, 0: None}
    assert time.monotonic() - begin < 5


def test_more_silent_callers_than_allowed(monkeypatch):
    monkeypatch.setattr(roll, "_MAX_CALLERS", 4)
    found = hold(
        2, [(1, 2, "mine")], seconds=20.0, before=lambda port: [dial(port) for _ in range(9)]
    )
    assert found == {"first": None, 0: None}


def test_a_process_of_another_run_is_rejected():
    found = hold(2, [(1, 2, "other"), (1, 2, "mine")], in_turn=True)
    assert found == {"first": None, 0: "belongs to another run: mine", 1: None}
    found = hold(2, [(1, 2, "other")], seconds=2.0)
    assert found["first"] == (
        "process 1 of 2 did not join within 2 s; a process of another run called: other"
    )


def test_all_are_told_which_processes_are_missing():
    text = "processes 1, 3 of 4 did not join within 1 s"
    assert hold(4, [(2, 4, "mine")], seconds=1.0) == {"first": text, 0: text}


def test_a_process_that_was_started_twice(monkeypatch):
    monkeypatch.setattr(roll, "_LINGER_SECONDS", 0.5)
    found = hold(3, [(1, 3, "mine"), (1, 3, "mine")])
    assert set(found.values()) == {"process 1 of 3 was started twice"} and len(found) == 3


def test_another_number_of_processes():
    text = "process 1 was started with --num_processes=3, process 0 with 2"
    assert hold(2, [(1, 3, "mine")]) == {"first": text, 0: text}


def test_processes_that_call_late_are_told_the_problem():
    text = "process 1 was started with --num_processes=2, process 0 with 4"
    found = hold(4, [(1, 2, "mine"), (2, 4, "mine"), (3, 4, "mine")], seconds=30.0, late=0.4)
    assert found == {"first": text, 0: text, 1: text, 2: text}


@pytest.mark.parametrize(
    "said", [b"220 mail.example.org ESMTP\n", b"[" * 3000 + b"\n", b"7\n", b"{}\n", b"\xff\n"]
)
def test_another_program_answers(said):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak():
            server.accept()[0].sendall(said)

        threading.Thread(target=speak).start()
        place = server.getsockname()
        with pytest.raises(UserError, match="another program answers there, not process 0"):
            roll.answer(place, 2, 1, "mine", 1.0)


def test_nobody_answers():
    with pytest.raises(UserError, match=r"process 0 was not reached within 1 s \(.*refused"):
        roll.answer(("127.0.0.1", free_port()), 2, 1, "mine", 1.0)
