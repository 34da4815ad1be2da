"""The smoke quickstart as a user runs it, made once for all test processes."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, str, str]:
    """(workdir, stdout, stderr) of a complete run. Other test processes read it, too: change copies only."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    directory = root / "smoke"
    directory.mkdir(exist_ok=True)
    said = directory / "said.json"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            workdir = os.path.relpath(directory / "run", ROOT)  # relative, as the README has it
            config = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"
            done = subprocess.run(
                [sys.executable, "-m", "leafe_jax.main", config, f"--workdir={workdir}"],
                capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            said.write_text(json.dumps([done.stdout, done.stderr]))
    return directory / "run", *json.loads(said.read_text())
