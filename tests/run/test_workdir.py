"""The lock of a workdir, with real processes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leafe_jax.errors import UserError
from leafe_jax.main import main
from leafe_jax.run.report import write as report
from leafe_jax.run.workdir import LOCK_FILE, locked, opened
from leafe_jax.runtime import processes

ROOT = Path(__file__).resolve().parents[2]
HOLD = "import sys, time\nfrom leafe_jax.run.workdir import opened\n"
HOLD += "with opened(sys.argv[1]):\n    {work}print('held', flush=True)\n    time.sleep(600)\n"


@pytest.fixture
def hold():
    """hold(workdir, work) starts a process that runs `work` and then holds the lock."""
    started = []

    def start(workdir, work="") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD.format(work=work), str(workdir)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def smoke(monkeypatch, config, workdir) -> int:
    arguments = ["main", f"--config={ROOT}/configs/{config}.py:smoke", f"--workdir={workdir}"]
    monkeypatch.setattr(sys, "argv", arguments)
    return main(arguments)


def test_a_second_run_is_refused_until_the_first_is_dead(hold, tmp_path, monkeypatch, capsys):
    first = hold(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")  # another name of the same directory
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    for config in ("quickstart", "unaided_sweep"):
        assert smoke(monkeypatch, config, tmp_path / "link") == 2
        error = capsys.readouterr().err
        assert error.startswith(
            f"error: --workdir={tmp_path}/link: in use by process {first.pid} on"
        )
        assert f"host {os.uname().nodename}, started 2" in error and error.count("\n") == 1
    assert before == sorted(p.name for p in (tmp_path / "run").iterdir()), "nothing is written"
    first.send_signal(signal.SIGKILL)
    first.wait()
    with opened(str(tmp_path / "run")):
        pass
    with opened(str(tmp_path / "run")):  # and the lock is free once a run has ended
        pass


def test_the_report_is_refused_too(hold, tmp_path, capsys):
    (tmp_path / "results.json").write_text(
        '{"schema": 4, "methods": {}, "differences": [], "searches": {}, "fits": {}, "versions": {}, "config": {},'
        ' "config_hash": "", "protocol": {}, "made_by": {}, "device": ""}'
    )
    hold(tmp_path)
    assert report.main([f"--workdir={tmp_path}"]) == 2
    assert "in use by process" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "work",
    [
        "import os; os.fork() or time.sleep(600); ",  # without exec
        "import subprocess; subprocess.Popen(['sleep', '600'], close_fds=False); ",
        "import multiprocessing as m; c = m.get_context('forkserver'); "
        "p = c.Process(target=time.sleep, args=(600,)); p.start(); ",
    ],
)
def test_children_do_not_keep_the_lock(hold, tmp_path, work):
    first = hold(tmp_path, work)
    children = subprocess.run(
        ["pgrep", "-P", str(first.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    try:
        first.kill()
        first.wait()
        with opened(str(tmp_path)):
            pass
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)


def test_one_process_cannot_hold_it_twice(tmp_path):
    """Like two runs in one notebook."""
    with opened(str(tmp_path)):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            with opened(str(tmp_path)):
                pass


def test_a_holder_without_a_valid_record(hold, tmp_path):
    hold(tmp_path)
    for content in ("", "[]", '{"host": "\\u001b[31m", "pid": 1, "started": ""}'):
        (tmp_path / LOCK_FILE).write_text(content)
        with pytest.raises(UserError, match="in use by another run;"):
            with opened(str(tmp_path)):
                pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path, f"--workdir={tmp_path}"):
        pass
    assert "has no locks (No locks available); make sure that no other run" in caplog.text


def test_what_cannot_be_locked(tmp_path):
    target = tmp_path / "precious"
    target.write_text("kept")
    for number, make in enumerate((Path.mkdir, os.mkfifo, lambda p: p.symlink_to(target))):
        workdir = tmp_path / str(number)
        workdir.mkdir()
        make(workdir / LOCK_FILE)
        begin = time.monotonic()
        with pytest.raises(UserError, match="cannot be locked: ") as caught:
            with opened(str(workdir)):
                pass
        assert "\n" not in str(caught.value) and time.monotonic() - begin < 10
    assert target.read_text() == "kept"


def test_leftovers_of_the_write_check(tmp_path):
    os.mkfifo(tmp_path / ".writable")
    with opened(str(tmp_path)):
        pass
    assert not (tmp_path / ".writable").exists()
    (tmp_path / ".writable").mkdir()
    with pytest.raises(UserError, match=r"\.writable: cannot be written: Is a directory"):
        with opened(str(tmp_path)):
            pass


def test_another_directory_is_noticed_after_a_killed_run(tmp_path, monkeypatch):
    """A file that process 1 of a killed run left must not be taken for one of this run."""
    (tmp_path / ".writable1").write_text("")

    def together(what, value=None, decide=None, **_):
        return decide([value, "0" * len(value)] if what == "workdir" else [value])

    monkeypatch.setattr(processes, "together", together)
    with pytest.raises(UserError, match="not the same directory in process 1 as in process 0"):
        with opened(str(tmp_path)):
            pass


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "file/below", "loop"):
        with pytest.raises(UserError, match=f"--workdir={tmp_path}/{name}: cannot be written: "):
            with opened(f"{tmp_path}/{name}"):
                pass
