"""Interrupted runs end with the same bits; errors; what is told to stop saves first."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import trainer
from trainer import equal, run_fit

from leafe_jax.errors import UserError
from leafe_jax.training import checkpoint
from leafe_jax.training import trainer as loop

ROOT = Path(__file__).resolve().parents[2]


def trainer_command(tmp_path, name, out=None, **settings):
    """tests/trainer.py, with its checkpoints in tmp_path/name."""
    return [sys.executable, str(ROOT / "tests/trainer.py"), str(tmp_path / name),
            str(tmp_path / f"{out or name}.npz"), json.dumps(settings)]  # fmt: skip


def child(tmp_path, name, out=None, devices=1, **settings):
    """`trainer_command` in a process of its own."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        trainer_command(tmp_path, name, out, **settings),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def finish(process) -> list[str]:
    """Its lines, a step each."""
    lines = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0, lines
    return lines


def same_file(a, b) -> bool:
    left, right = np.load(a), np.load(b)
    return left.files == right.files and all(np.array_equal(left[k], right[k]) for k in left.files)


class Killed(Exception):
    pass


def stop_at(wanted, pause=0.0):
    def progress(step, total):
        time.sleep(pause)
        if step == wanted:
            raise Killed

    return progress


def stop_once_saved(directory, wanted):
    """Stops at step `wanted`, but not before a checkpoint is written."""

    def progress(step, total):
        while step == wanted:
            if any(path.name.isdigit() for path in directory.iterdir()):
                raise Killed
            time.sleep(0.05)

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What `run_fit` trains with its own settings, uninterrupted."""
    return run_fit(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    """The same for 12 epochs, by a process: the file of its parameters."""
    directory = tmp_path_factory.mktemp("whole")
    finish(child(directory, "whole", num_epochs=12))
    return directory / "whole.npz"


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_bits_also_with_batches_of_examples(tmp_path):
    settings = dict(batch_examples=7, batch_size=8)
    whole = run_fit(tmp_path / "whole", **settings)

    with pytest.raises(Killed):
        run_fit(tmp_path / "cut", progress=stop_once_saved(tmp_path / "cut", 5), **settings)
    steps = []
    resumed = run_fit(tmp_path / "cut", log=lambda step, _: steps.append(step), **settings)
    assert steps[0] in (3, 5) and steps[-1] == 9  # 60 examples
    assert equal(whole, resumed)
    with pytest.raises(UserError, match="train.batch_examples = 7, here 8"):
        run_fit(tmp_path / "cut", batch_examples=8, batch_size=8)


def test_interrupted_training_ends_with_the_same_bits(tmp_path, whole):
    with pytest.raises(Killed):
        run_fit(tmp_path / "cut", progress=stop_once_saved(tmp_path / "cut", 5))
    steps = []
    resumed = run_fit(tmp_path / "cut", log=lambda step, _: steps.append(step))
    assert steps[0] in (3, 5) and equal(whole, resumed)  # 4 was saved, or left out for 2's sake
    # A finished run is not trained again.
    again = run_fit(tmp_path / "cut", log=lambda step, _: steps.append(-1))
    assert -1 not in steps and equal(whole, again)


def test_old_checkpoints_go_and_half_written_ones_do_not_count(tmp_path):
    whole = run_fit(tmp_path / "whole", num_epochs=4)
    kept = {path.name for path in (tmp_path / "whole").iterdir() if path.name.isdigit()}
    assert len(kept) == checkpoint.KEPT
    with pytest.raises(Killed):
        run_fit(tmp_path / "cut", num_epochs=4, progress=stop_at(9, 0.1))
    time.sleep(1)  # for a save in flight
    newest = max(int(p.name) for p in (tmp_path / "cut").iterdir() if p.name.isdigit())
    # As a kill in the middle of writing leaves it: under the temporary name, with some content.
    half = tmp_path / "cut" / f"{newest + 2}.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    (half / "state" / "manifest.ocdbt").write_bytes(b"half")
    steps = []
    resumed = run_fit(tmp_path / "cut", num_epochs=4, log=lambda step, _: steps.append(step))
    assert steps[0] == newest + 1 and equal(whole, resumed)


def test_a_save_in_progress_is_not_waited_for(tmp_path, monkeypatch):
    saved = checkpoint.Checkpoints(tmp_path, {})
    state = {"x": jax.numpy.ones(3)}
    monkeypatch.setattr(saved._manager, "is_saving_in_progress", lambda: True)
    saved.save(1, state, {}, must=False)
    assert saved._manager.latest_step() is None
    saved.save(2, state, {}, must=True)
    saved.close()
    assert checkpoint.Checkpoints(tmp_path, {}).restore(state)[0] == 2


def test_loop_errors(tmp_path, monkeypatch):
    start = trainer.params()
    with monkeypatch.context() as patch:
        bad = {**start, "final_norm": {"scale": start["final_norm"]["scale"] * np.inf}}
        patch.setattr(trainer, "params", lambda _: bad)
        with pytest.raises(UserError, match="not finite for 3 steps in a row") as error:
            run_fit(tmp_path / "nan")
    saved = np.load(str(error.value).split("its batch is in ")[1].split(";")[0])
    assert saved["tokens"].shape == (4, 24) and saved["segment_ids"].max() > 0
    with pytest.raises(UserError, match="train.mesh: data = 3"):
        run_fit(tmp_path / "mesh", mesh=dict(data=3, fsdp=1, tensor=1))


def test_out_of_memory_names_the_fields(tmp_path):
    def full(*_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"
        )

    with pytest.raises(
        UserError, match="train.accumulation.*train.remat.*train.mesh.fsdp"
    ) as error:
        run_fit(tmp_path, log=full)
    assert str(error.value).endswith("(RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)")


MANY = "Used {}K of {}K hbm. Exceeded hbm capacity by 1.0K."  # of a whole program, by libtpu
TEMPORARIES = "Out of memory while trying to allocate {}.0KiB."  # by XLA on a GPU


@pytest.mark.parametrize(
    ("text", "needed", "room", "said"),
    [
        # 80 KB of parameters: a state of 240, and 80 of gradients that are summed.
        (MANY, 1240, 900, "set train.accumulation = 2, which fits (it is 1), or train.remat"),
        (MANY, 1240, 650, "set train.accumulation = 4, which fits (it is 1), or train.remat"),
        (MANY, 1240, 500, "no train.accumulation (it is 1) saves enough: set train.remat"),
        (
            TEMPORARIES,
            1000,
            700,
            "set train.accumulation = 2, which fits (it is 1), or train.remat",
        ),
        (
            TEMPORARIES,
            1000,
            500,
            "set train.accumulation = 4, which fits (it is 1), or train.remat",
        ),
        (TEMPORARIES, 1000, None, "raise train.accumulation (it is 1), set train.remat"),
    ],
)
def test_out_of_memory_names_an_accumulation_that_fits(
    tmp_path, monkeypatch, text, needed, room, said
):
    free = None if room is None else room * 1024
    monkeypatch.setattr("leafe_jax.runtime.memory.free_bytes", lambda devices: free)

    def full(*_):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text.format(needed, room)}\nmore")

    with pytest.raises(UserError) as error:
        run_fit(tmp_path, log=full)
    start = f"train: a device is out of memory while training: {said.partition(' train.remat')[0]}"
    assert str(error.value).startswith(start) and "train.mesh.fsdp" in str(error.value)


@pytest.mark.parametrize("where", ["load_params", "init_state"])
def test_out_of_memory_at_the_start(tmp_path, monkeypatch, where):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    if where == "init_state":
        monkeypatch.setattr(loop, "init_state", full)
    else:
        monkeypatch.setattr(trainer, "place", lambda _: full)
    message = "while loading the weights and making the optimizer's state: .*train.mesh.fsdp"
    with pytest.raises(UserError, match=message) as error:
        run_fit(tmp_path)
    assert "sampl" not in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def slowly(tmp_path_factory):
    """(directory, parameters) of `run_fit` at a pace at which every checkpoint is written."""
    directory = tmp_path_factory.mktemp("slowly")
    return directory, run_fit(directory, progress=lambda *_: time.sleep(0.1))


def broken(directory, step, how):
    """Damages a checkpoint as a disk or a hurried hand would."""
    if how == "truncated":
        largest = max(
            (directory / str(step)).rglob("*"), key=lambda p: p.is_file() and p.stat().st_size
        )
        os.truncate(largest, largest.stat().st_size // 2)
    else:
        shutil.rmtree(directory / str(step) / how)


@pytest.mark.parametrize("how", ["truncated", "state", "data", "identity"])
def test_a_damaged_checkpoint_is_put_aside(tmp_path, caplog, slowly, how):
    source, whole = slowly
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    older, newest = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    broken(tmp_path, newest, how)
    files = sorted(
        p.relative_to(tmp_path / str(newest)) for p in (tmp_path / str(newest)).rglob("*")
    )
    steps = []
    with caplog.at_level("WARNING", logger="leafe_jax"):
        resumed = run_fit(tmp_path, log=lambda step, _: steps.append(step))
    assert steps[0] == older + 1 and equal(whole, resumed)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "leafe_jax"]
    assert f"the checkpoint of step {newest} cannot be read" in line and str(tmp_path) in line
    assert f"kept as {newest}.damaged, and training goes on from step {older}" in line
    aside = tmp_path / f"{newest}.damaged"
    assert sorted(p.relative_to(aside) for p in aside.rglob("*")) == files
    # The step is saved again, and the next start finds it.
    again = run_fit(tmp_path, log=lambda step, _: steps.append(-1))
    assert -1 not in steps and equal(whole, again)


def test_no_checkpoint_can_be_read(tmp_path, slowly):
    shutil.copytree(slowly[0], tmp_path, dirs_exist_ok=True)
    older, newest = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    for step, how in ((older, "identity"), (newest, "truncated")):
        broken(tmp_path, step, how)
    message = f"{tmp_path}: the checkpoint of step {newest} cannot be read .*no older one can"
    with pytest.raises(UserError, match=message) as error:
        run_fit(tmp_path)
    assert "\n" not in str(error.value)
    assert {str(older), str(newest)} <= {p.name for p in tmp_path.iterdir()}


def test_checkpoint_of_another_model(tmp_path, slowly):
    shutil.copytree(slowly[0], tmp_path, dirs_exist_ok=True)
    newest = max(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    for field, had, here in (("num_layers", 2, 1), ("hidden_size", 32, 16)):
        message = f"step {newest} is of another run: model.{field} = {had}, here {here}"
        with pytest.raises(UserError, match=message):
            run_fit(tmp_path, config=dataclasses.replace(trainer.CONFIG, **{field: here}))
    with pytest.raises(UserError, match="is of another run: data = '[0-9a-f]+', here"):
        run_fit(tmp_path, made=trainer.examples(seed=1))
    with pytest.raises(UserError, match="train.batch_size = 4, here 2"):
        run_fit(tmp_path, batch_size=2)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text("")])
def test_something_else_in_place_of_a_checkpoint(tmp_path, make):
    make(tmp_path / "2")
    with pytest.raises(UserError, match="2: must be the directory of a checkpoint; move it away"):
        checkpoint.Checkpoints(tmp_path, {})
    (tmp_path / "2").unlink()
    (tmp_path / "1").mkdir()
    os.mkfifo(tmp_path / "1" / "_CHECKPOINT_METADATA")
    with pytest.raises(UserError, match="_CHECKPOINT_METADATA: must be a file or a directory; mo"):
        checkpoint.Checkpoints(tmp_path, {})


def old_optimizer(train, num_steps, average):
    """What make_optimizer made before norms and biases were spared: weights of any shape decay."""
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.adamw(
            optax.join_schedules(
                [
                    optax.linear_schedule(train.learning_rate / 3, train.learning_rate, 2),
                    optax.constant_schedule(train.learning_rate),
                ],
                [2],
            ),
            b1=train.b1, b2=train.b2, eps=train.eps, weight_decay=train.weight_decay,
        ),
    )  # fmt: skip


@pytest.mark.slow
def test_a_checkpoint_of_before_norms_were_spared(tmp_path, monkeypatch, whole):
    """Without weight decay it is resumed to the same bits; with, it is of another run."""
    with monkeypatch.context() as old, pytest.raises(Killed):
        old.setattr(loop, "make_optimizer", old_optimizer)
        run_fit(tmp_path / "run", progress=stop_at(3))
    message = "is of another run: train.decayed = None, here 'matrices'; move the directory away"
    with pytest.raises(UserError, match=message):
        run_fit(tmp_path / "run", weight_decay=0.1)
    steps = []
    resumed = run_fit(tmp_path / "run", log=lambda step, _: steps.append(step))
    assert steps[0] == 3 and equal(resumed, whole)


def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch, whole):
    usage = checkpoint.shutil.disk_usage

    def full(path):
        steps = [p for p in tmp_path.iterdir() if p.name.isdigit()]
        return usage(path)._replace(free=0) if steps else usage(path)

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", full)
    with pytest.raises(OSError, match="No space left on device"):
        run_fit(tmp_path, progress=lambda *_: time.sleep(0.1))
    monkeypatch.undo()
    steps = []
    resumed = run_fit(tmp_path, log=lambda step, _: steps.append(step))
    assert steps[0] == 3 and equal(resumed, whole)


@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGKILL,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGTERM, signal.SIGUSR1)),
    ],
)
def test_killed_process_resumes_to_the_same_bits(tmp_path, sent, whole_file):
    # Slow enough to be hit in the middle. Saves are written beside the steps: on a busy machine the
    # first may take many of them.
    process = child(tmp_path, "cut", slow=0.05, num_epochs=12)
    for line in process.stdout:
        saved = any(path.name.isdigit() for path in (tmp_path / "cut").iterdir())
        if int(line.split()[0]) >= 7 and saved:
            process.send_signal(sent)
            break
    process.communicate(timeout=300)
    assert process.returncode == (-9 if sent == signal.SIGKILL else 75)
    assert not (tmp_path / "cut.npz").exists()
    lines = finish(child(tmp_path, "cut", num_epochs=12))
    assert int(lines[0].split()[0]) > 2, "it did not start over"
    assert same_file(tmp_path / "cut.npz", whole_file)


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    """kill -9 at 20 random moments of stepping and saving."""
    settings = dict(count=200, num_epochs=8, checkpoint_every=3)
    finish(child(tmp_path, "whole", **settings))
    rng, kills, longest, begun = random.Random(0), 0, 0, []

    def saves():
        return [p for p in (tmp_path / "cut").glob("*") if p.name.isdigit()]

    while kills < 20:
        process = child(tmp_path, "cut", slow=0.05, **settings)
        first = process.stdout.readline()
        begun.append(int(first.split()[0]))
        # From the first step on: a process needs some seconds to get there. Every third goes on to its
        # first save, however long that takes on a busy machine.
        time.sleep(rng.uniform(0.0, 1.2))
        if kills % 3 == 2:
            last = max((int(p.name) for p in saves()), default=0)
            while max((int(p.name) for p in saves()), default=0) == last and process.poll() is None:
                time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate(timeout=300)[0].splitlines()
        longest = max(longest, int([first, *rest][-1].split()[0]))
        kills += 1
        assert process.returncode == -9, "the run must be longer than the kills take"
    lines = finish(child(tmp_path, "cut", **settings))
    assert int(lines[0].split()[0]) <= longest + 1
    assert begun == sorted(begun) and len(set(begun)) > 5, "they go on from where they were"
    assert same_file(tmp_path / "cut.npz", tmp_path / "whole.npz")


def test_a_save_that_fails_in_its_thread_ends_the_training(tmp_path, monkeypatch):
    """At the next save; the last one at the end."""
    failing, reached = [2], threading.Event()

    def finalize(self, step):
        if step in failing:
            reached.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO), "checkpoint")
        return original(self, step)

    original = checkpoint._Manager._finalize_checkpoint
    monkeypatch.setattr(checkpoint._Manager, "_finalize_checkpoint", finalize)
    seen = []

    def wait(step, total):
        seen.append((step, total))
        if step == 3:  # a save in progress would make the next one be left out
            assert reached.wait(60)
            time.sleep(1)

    with pytest.raises(OSError, match="Input/output error"):
        run_fit(tmp_path / "between", progress=wait)
    assert seen[-1][0] < seen[-1][1]
    failing[:] = [seen[-1][1]]
    with pytest.raises(OSError, match="Input/output error"):
        run_fit(tmp_path / "last")


def test_an_example_that_a_reading_thread_cannot_read_ends_the_training():
    class Damaged(list):
        def __getitem__(self, index):
            if threading.current_thread() is not threading.main_thread():
                raise OSError(errno.EIO, os.strerror(errno.EIO), "examples")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="Input/output error"):
        list(trainer.batches(Damaged(trainer.examples())))


def test_told_to_stop_in_the_last_step(tmp_path, caplog, whole):
    """It leaves all the same: what comes after the training may take longer than there is time."""

    def progress(step, total):
        if step == total:
            os.kill(os.getpid(), signal.SIGTERM)

    with caplog.at_level("INFO", logger="leafe_jax"), pytest.raises(SystemExit) as left:
        run_fit(tmp_path / "cut", progress=progress)
    assert left.value.code == 75
    (line,) = [r.getMessage() for r in caplog.records if "told to stop" in r.getMessage()]
    last = max(int(p.name) for p in (tmp_path / "cut").iterdir() if p.name.isdigit())
    assert line == f"train: told to stop; step {last} is saved; the same command goes on from there"
    steps = []
    again = run_fit(tmp_path / "cut", log=lambda step, _: steps.append(step))
    assert steps == [] and equal(again, whole)
