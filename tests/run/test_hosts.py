"""Whole runs in two processes with two (fake) devices each: what one process makes, and how they end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "leafe_jax" / "assets" / "base"
QUICKSTART = str(ROOT / "configs" / "quickstart.py")
SETTINGS = {
    "search.tree.num_tasks": 6, "search.tree.block_size": 2, "evaluate.num_tasks": 3,
    "evaluate.block_size": 1, "evaluate.num_samples": 2,
    # One copy computes what another does, but copies have a cache each: the table counts what was
    # found in it.
    "sampler.copies": 1, "sampler.compile_ahead": False,
    # Above rounding errors: Adam would divide those by themselves (see test_layouts).
    "leafe.train.eps": 1e-6, "leafe.train.num_epochs": 3,
}  # fmt: skip
PLAYED = {"phases": "('explore','evaluate','report')", "methods": "('base',)"}


# A line of Gloo's is written in these pieces, and by several threads: one line's may come between
# another's, and leave a number or an end of line alone. All come before the run's own output.
GLOO = re.compile(
    r"(\[Gloo\] Rank |\d+| is connected to | peer ranks\. "
    r"|Expected number of connected peer ranks is : |\n)*"
)


def start(workdir, flags=(), devices=1, **changes):
    settings = {**SETTINGS, **{k.replace("__", "."): v for k, v in changes.items()}}
    command = [sys.executable, "-m", "leafe_jax.main", f"--config={QUICKSTART}:smoke"]
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *overrides, *flags], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
             "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
    )  # fmt: skip


def start_two(workdir, changes=({}, {}), workdirs=None, flags=(), **settings):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = workdirs or (workdir, workdir)
    return [
        start(
            where[number],
            (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}", *flags),
            devices=2, **settings, **changes[number],
        )
        for number in range(2)
    ]  # fmt: skip


def finish(process):
    """(exit code, stdout after Gloo's lines, stderr)."""
    try:
        out, err = process.communicate(timeout=900)
    finally:
        process.kill()
    return process.returncode, out[GLOO.match(out).end() :], err


def errors(err):
    return [line for line in err.splitlines() if line.startswith("error: ")]


def trees(workdir):
    return b"".join(p.read_bytes() for p in sorted((workdir / "trees/tree").glob("*.jsonl")))


def steps(workdir):
    """The names of metrics.jsonl's lines, and the values of what the sampler did."""
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    played = [x for x in lines if not any(name.startswith("leafe/") for name in x)]
    return [sorted(x) for x in lines], played


def assert_same_run(workdir, out, expected, expected_out):
    assert out == expected_out
    assert trees(workdir) == trees(expected)
    assert steps(workdir) == steps(expected)
    found, wanted = (json.loads((w / "results.json").read_text()) for w in (workdir, expected))
    for method in wanted["fits"]:
        ours, theirs = (
            load_file(w / method / "model/model.safetensors") for w in (workdir, expected)
        )
        for name, value in theirs.items():
            assert np.abs(ours[name] - value).max() <= 1e-5 * max(np.abs(value).max(), 1), name
    for method, result in wanted["methods"].items():
        ours = found["methods"][method]
        assert (ours["families"], ours["budget"]) == (result["families"], result["budget"])
    assert found["protocol"] == wanted["protocol"] and found["made_by"] == wanted["made_by"]
    for part in ("searches", "fits"):
        ours, theirs = (
            {name: {**values, "seconds": None} for name, values in r[part].items()}
            for r in (found, wanted)
        )
        assert ours == theirs


def run_alone(workdir, **settings):
    """(workdir, stdout) of the run of one process."""
    code, out, err = finish(start(workdir, **settings))
    assert code == 0, err
    return workdir, out


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run_alone(tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def played_alone(tmp_path_factory):
    return run_alone(tmp_path_factory.mktemp("played_alone") / "run", **PLAYED)


@pytest.mark.parametrize(
    ("one", "settings", "method"),
    [
        pytest.param("played_alone", PLAYED, "base", marks=pytest.mark.slow),
        pytest.param("alone", {}, "leafe", marks=pytest.mark.slow),
    ],
    ids=["played", "trained"],
)
def test_two_processes_make_the_same_run(tmp_path, request, one, settings, method):
    expected, expected_out = request.getfixturevalue(one)
    workdir = tmp_path / "run"
    (code, out, err), (code1, out1, err1) = map(finish, start_two(workdir, **settings))
    assert code == 0 and code1 == 0, err[-3000:] + err1[-3000:]
    assert_same_run(workdir, out, expected, expected_out)
    # Table, bars, notes, TensorBoard: the first process's.
    assert out1 == "" and "trees" not in err1 and "sampler:" not in err1
    assert "2 processes, 4 devices (cpu), 2 of them this process's" in err
    assert "explore tree: 6/6 trees" in err and f"evaluate {method}: 6/6 episodes" in err
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    device = json.loads((workdir / "results.json").read_text())["device"]
    assert device.endswith("2 processes, 4 devices in all")
    assert not list(workdir.glob(".writable*"))


def test_different_configs(tmp_path):
    changes = ({}, {"search__tree__reflect_every": 4})
    message = "search.tree.reflect_every = 4 in process 1, 8 in process 0: all need the same config"
    for code, out, err in map(finish, start_two(tmp_path / "run", changes=changes)):
        assert code == 2 and out == ""
        assert len(errors(err)) == 1 and message in errors(err)[0], err[-3000:]
    assert not list(tmp_path.glob("run/*/phase.json"))


@pytest.mark.slow
def test_different_workdirs(tmp_path):
    """Another name is another run; the same name elsewhere is seen by what the processes write."""
    both = start_two(None, workdirs=(tmp_path / "a", tmp_path / "b"), flags=("--join_timeout=20",))
    stranger = "process 1 of 2 did not join within 20 s; a process of another run called: b"
    for (code, _, err), message in zip(
        map(finish, both), (stranger, "belongs to another run: a"), strict=True
    ):
        assert code == 2 and len(errors(err)) == 1 and errors(err)[0].endswith(message), err
    workdirs = (tmp_path / "a" / "run", tmp_path / "b" / "run")
    for code, _, err in map(finish, start_two(None, workdirs=workdirs)):
        assert code == 2 and len(errors(err)) == 1
        assert "not the same directory in process 1 as in process 0: must be shared by all" in err


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_killed_while_exploring_then_finished_by_one_alone(tmp_path, alone, killed):
    workdir = tmp_path / "run"
    both = start_two(workdir)
    while not list((workdir / "trees").glob("tree/*.jsonl")):
        time.sleep(0.05)
        assert all(process.poll() is None for process in both)
    both[killed].send_signal(signal.SIGKILL)
    finish(both[killed])
    code, _, err = finish(both[1 - killed])
    assert code == 2
    again = "start all of them again with the same command: finished work is kept"
    assert errors(err) == [f"error: process {killed} of 2 has died or cannot be reached; {again}"]
    made = {p.name: p.stat().st_mtime_ns for p in (workdir / "trees").glob("tree/*.jsonl")}
    code, out, err = finish(start(workdir))
    assert code == 0, err
    assert_same_run(workdir, out, *alone)
    for name, when in made.items():
        assert (workdir / "trees/tree" / name).stat().st_mtime_ns == when, "made once"


def with_trees(alone, workdir):
    workdir.mkdir()
    subprocess.run(["cp", "-r", str(alone[0] / "trees"), str(workdir)], check=True)
    return workdir


@pytest.mark.slow
def test_adapters(tmp_path, alone):
    # Several steps; and an epsilon above the gradients that rounding alone makes.
    settings = {"phases": "('explore','fit')", "leafe__train__lora__rank": 4,
                "leafe__train__num_epochs": 12, "leafe__train__eps": 1e-4}  # fmt: skip
    one, two = with_trees(alone, tmp_path / "one"), with_trees(alone, tmp_path / "two")
    code, _, err = finish(start(one, **settings))
    assert code == 0, err
    for code, _, err in map(finish, start_two(two, **settings)):
        assert code == 0, err
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        ours, theirs = (load_file(w / "leafe" / file) for w in (two, one))
        assert ours.keys() == theirs.keys()
        start_of = load_file(BASE / "model.safetensors") if file.startswith("model") else {}
        for name, value in theirs.items():
            moved = np.abs(value - start_of.get(name, 0.0)).max()
            assert np.abs(ours[name] - value).max() <= 1e-3 * moved, name
            assert moved > 0 or "_proj" not in name, name


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_stopped_while_training(tmp_path, alone, how):
    changes = {"leafe.train.num_epochs": 120, "leafe.train.checkpoint_every": 3}
    workdir = with_trees(alone, tmp_path / "run")
    changed = {k.replace(".", "__"): v for k, v in changes.items()}
    both = start_two(workdir, phases="('explore','fit')", **changed)
    # One that is being written has a longer name, and does not count.
    while not any(p.name.isdigit() for p in (workdir / "leafe").glob("checkpoints/*")):
        time.sleep(0.05)
        assert all(process.poll() is None for process in both)
    both[1].send_signal(how)
    (code, _, err), (code1, _, err1) = map(finish, both)
    if how != signal.SIGKILL:
        assert (code, code1) == (75, 75) and errors(err) == errors(err1) == []
    else:
        assert code == 2 and len(errors(err)) == 1, err[-3000:]
    code, _, err = finish(start(workdir, phases="('explore','fit')", **changed))
    assert code == 0 and not (workdir / "leafe/checkpoints/0").exists(), err
    first_step = next(x for x in err.splitlines() if x.startswith("leafe: "))
    assert not first_step.startswith("leafe: 0/"), "it went on from the checkpoint"
