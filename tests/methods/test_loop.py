"""The on-policy loop: it learns, and it can be stopped anywhere."""

import json
import os
import random
import signal
import socket
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
from leafe_jax.models.settings import LoraConfig


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
        ("dialogue", True),
        pytest.param("dialogue", False, marks=pytest.mark.slow),
        pytest.param("window", False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, engine, monkeypatch, mode, overlap):
    logged, exported = {}, {}
    whole, loop = run(tmp_path / "whole", engine, logged, mode, exported, overlap=overlap)
    assert loop.state.iteration == 4 and loop.state.best["iteration"] in (2, 4)
    again, kept = {}, {}
    # Each run is stopped in the given call of a function; the next one resumes it.
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


def test_a_notice_saves_and_leaves(tmp_path, engine, monkeypatch):
    asked = iter([False, True])
    monkeypatch.setattr(loops.Preemption, "asked", lambda self: next(asked, False))
    settings = dict(probe_every=0, iterations=3)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "cut", engine, **settings)
    assert caught.value.code == 75
    resumed, loop = run(tmp_path / "cut", engine, **settings)
    whole, _ = run(tmp_path / "whole", engine, **settings)
    assert loop.state.iteration == 3 and equal(resumed, whole)


def program(directory, out, *arguments, **variables) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("bandit.py")), str(directory), str(out)]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), **variables}
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


def curve(path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in path.read_text().splitlines():
        _, name, value = line.split()
        found.setdefault(name, []).append(float(value))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["eight devices", "two processes"])
def test_other_devices_compute_the_same(tmp_path, layout):
    """Eight fake devices in three axes, and two processes of two, within the rounding of float32."""
    # Adam divides by what is near zero: an epsilon above rounding errors, see test_layouts.
    train = {"eps": 1e-6, "learning_rate": 1e-3}
    flag = "--xla_force_host_platform_device_count="

    def arguments(loss_chunk=8192, **mesh):
        changes = {**train, "mesh": mesh, "loss_chunk": loss_chunk}
        return "grpo", json.dumps({"train": changes, "iterations": 3})

    one = program(
        tmp_path / "one", tmp_path / "one.npz", *arguments(data=1, fsdp=1, tensor=1),
        XLA_FLAGS=flag + "1",
    )  # fmt: skip
    assert one.wait() == 0
    if layout == "eight devices":
        # The loss and the entropy in pieces of each device's half of the vocabulary, with a rest.
        settings = arguments(loss_chunk=6, data=2, fsdp=2, tensor=2)
        others = [program(tmp_path / "o", tmp_path / "0.npz", *settings, XLA_FLAGS=flag + "8")]
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        settings = arguments(data=4, fsdp=1, tensor=1)
        others = [
            program(
                tmp_path / "o", tmp_path / f"{rank}.npz", *settings, XLA_FLAGS=flag + "2",
                BANDIT_RANK=str(rank), BANDIT_PORT=port,
            )
            for rank in range(2)
        ]  # fmt: skip
    assert [other.wait() for other in others] == [0] * len(others)
    expected, found = curve(tmp_path / "one.txt"), curve(tmp_path / "0.txt")
    assert expected.keys() == found.keys() and len(expected["loss"]) == 3
    for name in ("reward", "probe/pass_at_1", "env_steps"):
        assert found[name] == expected[name]
    for name in ("loss", "entropy", "reference_kl", "grad_norm"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5)
    left, right = np.load(tmp_path / "one.npz"), np.load(tmp_path / "0.npz")
    for name in left.files:
        difference = np.abs(left[name] - right[name]).max()
        assert difference <= 1e-4 * np.abs(left[name]).max(), (name, difference)


@pytest.mark.slow
def test_adapters_are_merged_for_the_sampler(tmp_path, engine):
    logged = {}
    lora = LoraConfig(rank=2, alpha=8.0, targets=("q_proj", "down_proj"))
    params, loop = run(tmp_path, engine, logged, iterations=3, probe_every=0, train=dict(lora=lora))
    assert "lm_head" not in params and "embed" not in params
    assert all(logged[i, "sampler_gap"] < 1e-5 for i in range(3))
    # The reference is the model without adapters, which the first iteration's steps leave.
    assert logged[1, "reference_kl"] > logged[0, "reference_kl"] >= 0


@pytest.mark.slow
def test_all_options_at_once(tmp_path, engine):
    """Dropped groups, ratios of whole replies, and weights between sampler and trainer."""
    logged = {}
    options = dict(
        drop_flat_groups=True, max_rounds=2, sequence_ratios=True, sampler_weight_cap=2.0
    )
    options |= dict(advantage="mean", loss_mean="constant", clip_high=0.28)
    _, loop = run(tmp_path, engine, logged, iterations=2, probe_every=0, **options)
    assert loop.state.dropped > 0 and loop.state.rounds > 2
    flat = [logged[i, "dropped_groups"] for i in range(2)]
    assert sum(flat) == loop.state.dropped
    # What is trained on has signal, and the budget has what was dropped.
    assert loop.state.budget.episodes == loop.state.episodes + 4 * loop.state.dropped
    assert logged[0, "sampler_gap"] < 1e-6, "the trainer's own log-probabilities"


@pytest.mark.parametrize("overlap", [False, True])
def test_the_budget_is_spent_to_half_a_group(tmp_path, engine, overlap):
    """An iteration has 16 episodes of one or two steps; the last one has what the budget pays for."""
    _, loop = run(tmp_path, engine, iterations=99, probe_every=0, overlap=overlap, max_env_steps=62)
    state = loop.state
    mean = state.budget.env_steps / state.groups
    assert (
        abs(state.budget.env_steps - 62) <= mean / 2 + 4
    )  # 4: how far a group may be from the mean
    assert state.budget.episodes == state.episodes == 4 * state.groups
    assert state.groups % 4 != 0 and state.iteration == state.groups // 4 + 1
