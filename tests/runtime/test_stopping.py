"""Signals and dying threads: one line, the right exit code, no process left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESUME = "finished work is kept: run the same command again to resume"

CHILD = """
import hashlib, os, signal, sys, threading, time
from leafe_jax.runtime import console, stopping

def end(line, code):
    console.tell(line)
    os._exit(code)

def work():
    if how == "python":
        while True:
            time.sleep(0.01)
    if how in ("lock", "late"):
        threading.Event().wait()
    if how == "C":  # where no Python code runs, as in a compiler
        hashlib.pbkdf2_hmac("sha256", b"x", b"x", 10**9)
    if how == "swallowed":
        while True:
            try:
                time.sleep(0.01)
            except BaseException:
                pass
    if how == "destructor":
        class Slow:
            def __del__(self):
                time.sleep(20)
        while True:
            Slow()
    if how == "thread":
        def die():
            raise ValueError("what the thread died of")
        threading.Thread(target=die).start()
        threading.Event().wait()

how = sys.argv[1]
stopping._GRACE = 20 if how in ("python", "lock", "late", "thread") else 0.5
try:
    with stopping.handlers(end):
        print("begun", flush=True)
        try:
            work()
        finally:
            print("closed", flush=True)
except stopping.Stopped as stopped:
    if how == "late":  # a second signal, before the line of the first
        os.kill(os.getpid(), stopped.number)
    end(str(stopped), stopped.code)
except ValueError as error:
    end(f"main has it: {error}", 1)
"""


def start(how):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert child.stdout.readline() == "begun\n"
    return child


def end(child):
    """(standard output after its first line, standard error)."""
    # Not communicate(), which loses what readline() has buffered beyond its line.
    child.wait(timeout=60)
    return child.stdout.read(), child.stderr.read()


@pytest.mark.parametrize("how", ["python", "lock", "late", "C", "swallowed", "destructor"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_one_line_and_the_exit_code(how, number, code):
    child = start(how)
    time.sleep(0.1)
    for _ in range(3):  # repeatedly and to the whole group, as terminals, shells and schedulers do
        os.killpg(child.pid, number)
        time.sleep(0.02)
    out, err = end(child)
    assert (child.returncode, err) == (code, f"stopped by {number.name}; {RESUME}\n")
    if how in ("python", "lock"):
        assert out == "closed\n"


def test_a_thread_that_dies_is_the_run_s_failure():
    child = start("thread")
    out, err = end(child)
    assert (child.returncode, out) == (1, "closed\n")
    assert err == "main has it: what the thread died of\n"


SWALLOWED = """
import os, signal, sys
from leafe_jax import main
from leafe_jax.run import experiment
from leafe_jax.errors import UserError

def run(*_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    except BaseException as error:
        raise UserError(f"the tokenizer cannot be read: {error}") from error

experiment.run = run
sys.exit(main.main(sys.argv))
"""


def test_a_signal_that_a_library_turns_into_its_own_error(tmp_path):
    arguments = [f"--config={ROOT}/configs/quickstart.py:smoke", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED, *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (75, f"stopped by SIGTERM; {RESUME}\n")


def run(workdir, *overrides, config="quickstart.py:smoke"):
    command = [sys.executable, "-m", "leafe_jax.main", f"--config={ROOT}/configs/{config}"]
    # A shell that starts the tests in the background has them ignore Ctrl-C, and children inherit that. With
    # a handler here they begin with the default.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(
        [*command, f"--workdir={workdir}", *overrides], stdout=subprocess.PIPE, cwd=ROOT,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, handler)
    return child


def handles(child, number) -> bool:
    """True once the process has a handler for the signal."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("wait", [0.0, 0.5, 1.5])
def test_a_signal_while_modules_are_imported(tmp_path, wait):
    child = run(tmp_path)
    while not handles(child, signal.SIGTERM):  # the interpreter itself has not started yet
        assert child.poll() is None
        time.sleep(0.01)
    time.sleep(wait)
    os.killpg(child.pid, signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (75, "")
    assert re.fullmatch("stopped by SIGTERM.*run the same command again.*\n", err)


def seen(child, text):
    """Reads standard error up to a line that contains `text`."""
    lines = []
    for line in child.stderr:
        lines.append(line)
        if text in line:
            return
    raise AssertionError("".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_in_every_phase_and_then_a_complete_run(tmp_path, number, code):
    training = (
        "--config.leafe.train.num_epochs=60",
        "--config.leafe.train.checkpoint_every=20",
    )
    for text in ("attention", "explore tree: 1/", "leafe: 0/", "evaluate base: 1/", "leafe: 1/"):
        child = run(tmp_path, *training)
        seen(child, text)
        os.killpg(child.pid, number)
        time.sleep(0.05)
        os.killpg(child.pid, number)
        err = child.stderr.read()
        child.wait(timeout=120)
        assert child.returncode == code and "Traceback" not in err, text
        told = [line for line in err.splitlines() if "stopped by" in line or "told to stop" in line]
        assert len(told) == 1, err
        assert subprocess.run(["pgrep", "-g", str(child.pid)]).returncode == 1, "nobody is left"
    child = run(tmp_path, *training)
    out, err = child.communicate(timeout=400)
    assert child.returncode == 0 and "Pass@1" in out, err
