"""The on-policy loop: it learns, and it can be stopped anywhere."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bandit import engine as make_engine
from bandit import run
from trainer import equal

from leafe_jax.methods import loop as loops


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def test_it_raises_the_reward(tmp_path, engine):
    logged = {}
    run(tmp_path, engine, logged, iterations=12, probe_every=0)
    reward = [logged[i, "reward"] for i in range(12)]
    assert np.mean(reward[:2]) < 0.75 and np.mean(reward[-2:]) > 0.9, reward
    # Before the first step of an iteration the trainer has the sampler's weights.
    assert max(logged[i, "sampler_gap"] for i in range(12)) < 1e-5
    assert logged[0, "reference_kl"] < logged[11, "reference_kl"]
    assert logged[11, "entropy"] < logged[0, "entropy"]
    assert {"clip_fraction", "ratio", "ratio_std", "signal", "invalid", "reply_tokens",
            "success_low", "success_high", "grad_norm"} <= {name for _, name in logged}  # fmt: skip


class Stopped(BaseException):
    """As a kill, but within the process."""


@pytest.mark.parametrize(
    "mode, overlap",
    [
        ("dialogue", False), ("dialogue", True),
        pytest.param("window", False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, engine, monkeypatch, mode, overlap):
    logged, exported = {}, {}
    whole, loop = run(tmp_path / "whole", engine, logged, mode, exported, overlap=overlap)
    assert loop.state.iteration == 4 and loop.state.best["iteration"] in (2, 4)
    again, kept = {}, {}
    # Stops after so many calls of these functions, each time on from where the last one left off.
    for name, count in (
        ("sample", 1), ("_train", 1), ("_swap", 2), ("_save", 1), ("_probe", 1), ("_train", 2),
    ):  # fmt: skip
        with monkeypatch.context() as patched:
            original, calls = getattr(loops.Loop, name), []

            def stop(self, *args, original=original, calls=calls, count=count, **kwargs):
                result = original(self, *args, **kwargs)
                calls.append(1)
                if len(calls) == count:
                    raise Stopped
                return result

            patched.setattr(loops.Loop, name, stop)
            with pytest.raises(Stopped):
                run(tmp_path / "cut", engine, again, mode, kept, overlap=overlap)
    resumed, other = run(tmp_path / "cut", engine, again, mode, kept, overlap=overlap)
    assert equal(resumed, whole) and again == logged
    assert other.state == loop.state and equal(kept["best"], exported["best"])


def program(directory, out, *arguments) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("bandit.py")), str(directory), str(out)]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen([*command, *arguments], cwd=root, env=environment)


@pytest.mark.slow
def test_kills_at_ten_moments_change_nothing(tmp_path):
    """kill -9 of a whole process, later each time; weights and curve are those of a run without kills."""
    arguments = ("grpo", '{"iterations": 30, "probe_every": 3}')
    begin = time.monotonic()
    assert program(tmp_path / "whole", tmp_path / "whole.npz", *arguments).wait() == 0
    seconds = time.monotonic() - begin
    rng, kills = random.Random(0), 0
    while True:
        process = program(tmp_path / "cut", tmp_path / "cut.npz", *arguments)
        try:
            # Late enough that a start gets to work, or the run would never end.
            process.wait(timeout=seconds * rng.uniform(0.25, 0.7) if kills < 10 else None)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert process.returncode == 0 and kills >= 3
    whole, cut = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "cut"))
    assert all(np.array_equal(whole[name], cut[name]) for name in whole.files)
    lines = (tmp_path / "whole.txt").read_text().splitlines()
    # A program that was resumed has logged what came after its last checkpoint.
    assert set((tmp_path / "cut.txt").read_text().splitlines()) <= set(lines)
