"""Settings that are made before jax starts, and errors that the machine causes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from leafe_jax.runtime import faults, startup

ROOT = Path(__file__).resolve().parents[2]

# Allocates and frees 64 MB ten times; prints how many page faults that took.
CODE = """
import resource, sys
from leafe_jax.runtime.startup import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import numpy as np
np.ones(2 ** 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2 ** 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc's malloc")
def test_freed_memory_is_used_again():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, check=True).stdout)
        for how in ("given back", "kept")
    }  # fmt: skip
    assert faults["kept"] * 10 < faults["given back"]


def under(limits, *overrides, **settings):
    """(exit code, lines of standard error) of a run in a shell with `limits`."""
    command = (
        f"{limits}; exec {sys.executable} -m leafe_jax.main --config=configs/quickstart.py:smoke"
    )
    done = subprocess.run(
        ["bash", "-c", f"{command} {' '.join(overrides)}"], capture_output=True, text=True, cwd=ROOT,
        timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("limits", "text"),
    [("ulimit -v 3000000", "ulimit -v = 3000000 KiB: must be at least 4194304 KiB"),
     ("ulimit -n 40", "ulimit -n = 40: must be at least 64 open files")],
)  # fmt: skip
def test_a_limit_that_is_too_low_for_any_run(tmp_path, limits, text):
    code, lines = under(limits, f"--workdir={tmp_path}")
    assert code == 2 and len(lines) == 1 and lines[0].startswith(f"error: {text}")


def test_without_a_home_no_programs_are_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")
    assert startup._cache_directory() == ""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert startup._cache_directory() == str(tmp_path / ".cache" / "leafe_jax" / "xla")


READER = """
import resource, sys
from leafe_jax.errors import UserError
from leafe_jax.runtime import memory
used = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * (used + 300_000),) * 2)
try:
    memory.check_room()
except UserError as error:
    print(error)
"""


def test_the_record_reader_is_not_started_without_room():
    done = subprocess.run(
        [sys.executable, "-c", READER], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.startswith("train: reading examples needs 66 threads and 2 GiB"), done


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/w/x"), "/w/x: the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.EROFS, "Read-only file system", "/w/y"), "/w/y: Read-only file system"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (MemoryError(), "ulimit -v"),
        (ImportError("x.so: failed to map segment from shared object"), "ulimit -v"),
        (
            FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
            "TMPDIR: No usable",
        ),
    ],
)
def test_errors_of_the_machine_are_one_line(error, text):
    assert text in faults.explain(error, "w") and "\n" not in faults.explain(error, "w")
    wrapped = RuntimeError("a library's own")
    wrapped.__cause__ = error
    assert text in faults.explain(wrapped, "w")
    assert faults.explain(ValueError("a bug"), "w") is None


def test_missing_files_of_the_run(tmp_path, monkeypatch):
    """Somebody removed or replaced them. A missing file outside the workdir is a bug of the program."""
    monkeypatch.chdir(tmp_path)
    for number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO):
        error = OSError(number, os.strerror(number), str(tmp_path / "run" / "metrics.jsonl"))
        line = f"{tmp_path}/run/metrics.jsonl: {os.strerror(number)}"
        assert faults.explain(error, "run") == line
        assert faults.explain(error, f"file://{tmp_path}/run") == line
        assert faults.explain(error, "other") is None
        assert faults.explain(OSError(number, "x"), "run") is None
