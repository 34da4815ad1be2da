"""Eight (fake) devices, or two processes with two each, compute what one device computes."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from test_trainer import ROOT, child, finish, trainer_command

LAYOUTS = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2))
# Heads, width and vocabulary that 8 and 2 divide; the loss in pieces on every device, with a rest.
MODEL = dict(vocab_size=48, hidden_size=32, num_layers=2)
# Adam divides gradients of the size of rounding errors by themselves: with its usual epsilon those
# weights move by the learning rate this way or that (1e-6 still let one weight through).
SETTINGS = dict(count=60, batch_size=8, num_epochs=2, eps=1e-5, learning_rate=1e-3, loss_chunk=10,
                model=MODEL, checkpoint_every=3)  # fmt: skip

_MANY = """
import json, sys
sys.path.insert(0, {tests!r})
import trainer
for name, changes, directory in json.loads({runs!r}):
    print("layout", name, flush=True)
    trainer.main(directory, directory + ".npz", json.dumps({{**json.loads({settings!r}), **changes}}))
"""


def mesh(layout):
    return dict(zip(("data", "fsdp", "tensor"), layout, strict=True))


def assert_same_training(lines, path, expected_lines, expected_path):
    losses, expected = ([float(x.split()[1]) for x in some] for some in (lines, expected_lines))
    assert len(losses) >= 5
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    left, right = np.load(path), np.load(expected_path)
    for name in right.files:
        difference = np.abs(left[name] - right[name]).max()
        assert difference <= 1e-5 * np.abs(right[name]).max(), (name, difference)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    path = tmp_path_factory.mktemp("one")
    return path, finish(child(path, "one", **SETTINGS))


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
def test_layouts_on_eight_devices(tmp_path, one_device, every):
    """And a batch in parts with everything computed again; with every layout, and adapters."""
    path, expected = one_device
    plain = LAYOUTS if every else LAYOUTS[2:3]
    layouts = [("x".join(map(str, x)), dict(mesh=mesh(x))) for x in plain]
    parts = dict(accumulation=2, remat="full", scan_layers=True)
    layouts += [("parts", dict(mesh=mesh((1, 4, 2)), **parts))]
    if every:
        layouts += [("parts of 2x2x2", dict(mesh=mesh((2, 2, 2)), **parts))]
        adapters = dict(lora=dict(rank=4, targets=["q_proj", "o_proj", "down_proj"]))
        alone = finish(child(tmp_path, "alone", **SETTINGS, **adapters))
        layouts += [("adapters", dict(mesh=mesh((2, 2, 2)), **adapters))]
    runs = [(*layout, str(tmp_path / f"run{i}")) for i, layout in enumerate(layouts)]
    code = _MANY.format(
        tests=str(ROOT / "tests"), runs=json.dumps(runs), settings=json.dumps(SETTINGS)
    )
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=False,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    parts = done.stdout.split("layout ")[1:]
    assert len(parts) == len(runs), done.stderr[-3000:]
    for part, (name, _, directory) in zip(parts, runs):
        title, *lines = part.splitlines()
        assert title == name
        if name == "adapters":
            assert_same_training(lines, directory + ".npz", alone, tmp_path / "alone.npz")
        else:
            assert_same_training(lines, directory + ".npz", expected, path / "one.npz")


@pytest.mark.slow
def test_a_checkpoint_of_one_layout_goes_on_under_another(tmp_path, one_device):
    path, expected = one_device
    first = child(tmp_path, "run", devices=4, mesh=mesh((1, 2, 2)), slow=0.1, **SETTINGS)
    for line in first.stdout:
        if line.startswith("5 "):  # 3 is saved
            first.send_signal(signal.SIGTERM)
            break
    first.communicate(timeout=300)
    assert first.returncode == 75
    lines = finish(child(tmp_path, "run", devices=2, mesh=mesh((2, 1, 1)), scan_layers=True, **SETTINGS))  # fmt: skip
    assert int(lines[0].split()[0]) >= 6
    rest = expected[-len(lines) :]
    assert_same_training(lines * 5, tmp_path / "run.npz", rest * 5, path / "one.npz")


def start_two(command):
    """A command in two processes with two devices each, for trainer.join_processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                 "PYTHONPATH": str(ROOT), "LEAFE_TEST_RANK": str(rank),
                 "LEAFE_TEST_PROCESSES": "2", "LEAFE_TEST_PORT": port},
        )
        for rank in range(2)
    ]  # fmt: skip


def two_processes(tmp_path, name, **settings):
    return start_two(trainer_command(tmp_path, name, **settings))


@pytest.mark.slow
def test_two_processes(tmp_path, one_device):
    path, expected = one_device
    first, second = two_processes(tmp_path, "two", mesh=mesh((1, 2, 2)), **SETTINGS)
    lines = finish(first)
    assert finish(second) == [], "only the first process logs"
    assert_same_training(lines, tmp_path / "two.npz", expected, path / "one.npz")


@pytest.mark.slow
def test_two_processes_with_batches_of_examples(tmp_path):
    """The mesh asks for a multiple of four rows, one device for none; the batches are the same."""
    settings = {**SETTINGS, "batch_examples": 9, "batch_size": 12}
    first, second = two_processes(tmp_path, "two", mesh=mesh((2, 2, 1)), **settings)
    lines = finish(first)
    assert finish(second) == []
    expected = finish(child(tmp_path, "one", **settings))
    assert len(expected) == 14  # 120 examples
    assert_same_training(lines, tmp_path / "two.npz", expected, tmp_path / "one.npz")


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(1, 2, 2), (2, 2, 1)])
def test_one_of_two_processes_is_told_to_stop(tmp_path, one_device, layout):
    """Both save at the same step; one alone goes on from there, with their parameters."""
    path, expected = one_device
    first, second = two_processes(tmp_path, "two", mesh=mesh(layout), slow=0.2, **SETTINGS)
    lines = []
    for line in first.stdout:  # not communicate(): it loses what the iterator has read ahead
        lines.append(line)
        if line.startswith("1 "):
            second.send_signal(signal.SIGTERM)
    assert second.communicate(timeout=300)[0] == "", "only the first process logs"
    assert first.wait(timeout=300) == second.returncode == 75
    rest = finish(child(tmp_path, "two", scan_layers=True, **SETTINGS))
    steps = [int(line.split()[0]) for line in (*lines, *rest)]
    assert steps == list(range(1, len(expected) + 1)) and len(lines) >= 1 and len(rest) >= 1
    assert_same_training([*lines, *rest], tmp_path / "two.npz", expected, path / "one.npz")


_THREE_FITS = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import trainer
trainer.join_processes()
import jax
for number in range(3):
    if number == 2:
        if jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)  # for the news to get around
    try:
        trainer.run_fit({directory!r} + str(number), mesh=dict(data=2, fsdp=2, tensor=1))
    except SystemExit as left:
        print("left with", left.code, "in", number)
        raise
"""


@pytest.mark.slow
def test_a_notice_between_two_fits_stops_the_next(tmp_path):
    """All are as long, so that the third one's steps have numbers that have been there."""
    code = _THREE_FITS.format(tests=str(ROOT / "tests"), directory=str(tmp_path / "fit"))
    for process in start_two([sys.executable, "-c", code]):
        lines = process.communicate(timeout=200)[0].splitlines()
        assert process.returncode == 75, lines
        assert lines[-1] == "left with 75 in 2"
    assert [p.name for p in (tmp_path / "fit2").iterdir() if p.name.isdigit()] == ["1"]


_ALIKE = """
import os, sys
sys.path.insert(0, {tests!r})
import trainer
trainer.join_processes()
import jax, jax.numpy as jnp
from pathlib import Path
from leafe_jax.training import checkpoint
from leafe_jax.models.sharding import make_mesh

first = jax.process_index() == 0
mesh = make_mesh(dict(data=4, fsdp=1, tensor=1))
def placed(*axes):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
state = dict(
    copied=jax.device_put(jnp.arange(4000.0), placed()),
    divided=jax.device_put(jnp.arange(1000.0), placed("data")),
)
def steps():
    return sorted(int(p.name) for p in Path({directory!r}).iterdir() if p.name.isdigit())

saved = checkpoint.Checkpoints({directory!r}, {{}})
usage = checkpoint.shutil.disk_usage
def free(count):
    checkpoint.shutil.disk_usage = lambda path: usage(path)._replace(free=count)
# Eight bytes more than a fifth above 4 x 5,000.
free(24008)
saved.save(1, state, {{}}, must=True)
saved._manager.wait_until_finished()
# No room, on one host only.
free(24008 if first else 23992)
try:
    saved.save(2, state, {{}}, must=True)
except OSError as error:
    assert "No space left" in str(error)
    print("full")
checkpoint.shutil.disk_usage = usage
# One host is still writing.
saving = saved._manager.is_saving_in_progress
saved._manager.is_saving_in_progress = lambda: not first
saved.save(3, state, {{}}, must=False)
saved._manager.is_saving_in_progress = saving
assert steps() == [1], steps()
saved.save(4, state, {{}}, must=True)
saved.close()
assert steps() == [1, 4], steps()
# One host's part of the newest is gone.
saved = checkpoint.Checkpoints({directory!r}, {{}})
read = checkpoint.Checkpoints._read
if not first:
    checkpoint.Checkpoints._read = lambda self, step, like: (
        "truncated" if step == 4 else read(self, step, like)
    )
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
step, found, _ = saved.restore(like)
for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state)):
    for x, y in zip(a.addressable_shards, b.addressable_shards):
        assert x.device == y.device and (x.data == y.data).all()
assert step == 1 and steps() == [1] and (Path({directory!r}) / "4.damaged").is_dir()
saved.save(4, state, {{}}, must=True)
saved.close()
print("alike")
"""


def test_two_processes_save_and_restore_alike(tmp_path):
    code = _ALIKE.format(tests=str(ROOT / "tests"), directory=str(tmp_path / "steps"))
    for process in start_two([sys.executable, "-c", code]):
        lines = process.communicate(timeout=200)[0].splitlines()
        assert lines == ["full", "alike"]


@pytest.mark.slow
def test_one_of_two_processes_dies(tmp_path):
    both = two_processes(tmp_path, "two", mesh=mesh((2, 2, 1)), slow=0.2, **SETTINGS)
    for line in both[0].stdout:
        if line.startswith("5 "):
            both[1].kill()
            break
    left = both[0].communicate(timeout=300)[0].splitlines()
    # Where a collective fails, the loop says so. A survivor that waits at a barrier of the runtime
    # instead (in a save) is ended by the runtime when the other one's heartbeat is missed.
    assert both[0].returncode in (2, -signal.SIGABRT)
    if both[0].returncode == 2:
        assert left[-1].startswith("error: train: a step failed ("), left
        assert "mostly because another process of this run has died" in left[-1], left
    lines = finish(child(tmp_path, "two", **SETTINGS))
    assert int(lines[0].split()[0]) >= 4, "the last good checkpoint is used"


_WRONG = """
import dataclasses, json, sys
sys.path.insert(0, {tests!r})
import trainer
from leafe_jax.errors import UserError
for changes in json.loads({cases!r}):
    config = dataclasses.replace(trainer.CONFIG, **changes.pop("model", {{}}))
    try:
        trainer.run_fit({directory!r}, config=config, **changes)
    except UserError as error:
        print(error)
"""
WRONG = {
    "train.mesh: data = 3": dict(mesh=mesh((3, 1, 1))),
    "train.mesh.tensor = 4: must divide the model's num_kv_heads = 2": dict(mesh=mesh((1, 1, 4))),
    "train.batch_size = 6: must be a multiple of 4": dict(mesh=mesh((4, 1, 1)), batch_size=6),
    "train.mesh: fsdp = 4 does not divide": dict(mesh=mesh((1, 4, 1)), model=dict(hidden_size=34)),
}


def test_wrong_meshes(tmp_path):
    code = _WRONG.format(
        tests=str(ROOT / "tests"),
        cases=json.dumps([*WRONG.values()]),
        directory=str(tmp_path / "bad"),
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    for line, message in zip(done.stdout.splitlines(), WRONG, strict=True):
        assert line.startswith(message)
    assert not (tmp_path / "bad").exists()


_SLICES = """
import jax
from jax.experimental import topologies
from leafe_jax.models.sharding import AXES, train_mesh
from leafe_jax.models.settings import MeshConfig
from leafe_jax.models.sharding import train_mesh

def described(name, **options):
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices

def ordered(devices, *sizes):
    return train_mesh(MeshConfig(*sizes), devices).devices

def wired(a, b):
    return sum(abs(x - y) for x, y in zip(a.coords, b.coords)) == 1

chips = described("v5e:4x4")
# The first row's last chip and the second row's first one are three apart.
assert not all(wired(a, b) for a, b in zip(chips, chips[1:]))
ring = ordered(chips, 1, -1, 1)[0, :, 0]
assert sorted(d.id for d in ring) == list(range(16))
assert all(wired(a, b) for a, b in zip(ring, [*ring[1:], ring[0]]))
for row in ordered(chips, 4, 1, 4).reshape(4, 4):
    assert all(wired(a, b) for a, b in zip(row, row[1:]))
two = described("v5e:2x2", num_slices=2)
assert [{d.slice_index for d in part.flat} for part in ordered(two, 2, 4, 1)] == [{0}, {1}]
# Weights divided over both: the slices one after the other, in jax's order.
assert list(ordered(two, 1, 8, 1).flat) == list(two)
# Whatever is no TPU stays in its order.
assert list(ordered(jax.devices(), 2, 2, 2).flat) == jax.devices()
print("neighbours")
"""


def test_a_tpu_slices_axes_follow_its_wires():
    pytest.importorskip("libtpu")
    done = subprocess.run(
        [sys.executable, "-c", _SLICES], capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
             "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
             "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )  # fmt: skip
    assert done.stdout == "neighbours\n", done.stderr[-3000:]
