"""Paths that a user gives, and files that a reader finds complete or not at all."""

import os
import time
from pathlib import Path

import pytest
import trainer

from leafe_jax.errors import UserError
from leafe_jax.models import hf
from leafe_jax.runtime import files
from leafe_jax.training.records import write_examples


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/a", "{cwd}/runs/a"),
        (".", "{cwd}"),
        ("/runs/a", "/runs/a"),
        ("file:///runs/a%20b", "/runs/a b"),
        ("file://localhost/runs/a", "/runs/a"),
        ("~/runs", "{home}/runs"),
    ],
)
def test_paths_are_absolute(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/nobody")
    expected = expected.format(cwd=tmp_path, home="/home/nobody")
    assert files.local_path("--workdir=", text) == Path(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs://bucket/run", "--workdir=gs://bucket/run: must be a local directory; mount a bucket"),
        ("file://runs/a", "has a host, 'runs'"),
        ("", "--workdir='': must be a directory"),
        ("a\0b", "must be a directory"),
        ("~nobody-of-this-name/run", "--workdir=~nobody-of-this-name/run: "),
    ],
)
def test_other_paths_are_refused(text, message):
    with pytest.raises(UserError) as caught:
        files.local_path("--workdir=", text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_training_in_a_relative_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer.run_fit("run", num_epochs=1)
    assert [p for p in os.listdir(tmp_path / "run") if p.isdigit()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "cannot be read: No such file or directory"),
        (lambda p: p.write_text(""), "not JSON"),
        (lambda p: p.write_bytes(bytes(1000)), "not JSON"),
        (lambda p: p.write_bytes(b'{"a": "\xe9"}'), "not UTF-8: 'utf-8' codec"),
        (lambda p: p.write_text("[" * 200_000), "nested too deeply"),
        (lambda p: p.write_text('{"a": ' * 200_000), "nested too deeply"),
        (lambda p: p.write_text('{"a": ' + "9" * 5000 + "}"), "not JSON"),
        (lambda p: p.write_text("[1]"), "expected an object, found list"),
        (lambda p: p.write_text("null"), "expected an object, found NoneType"),
        (lambda p: p.write_text('{"a": {"b": 1, "b": 2}}'), "b: named twice"),
        (lambda p: p.mkdir(), "cannot be read: "),
        (lambda p: os.mkfifo(p), "not a regular file"),
        (lambda p: p.symlink_to("/dev/zero"), "not a regular file"),
        (lambda p: p.symlink_to(p.name), "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_damaged_json_is_one_line_with_the_file(make, message, tmp_path):
    file = tmp_path / "phase.json"
    make(file)
    begin = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        files.read_json(file)
    text = str(caught.value)
    assert text.startswith(str(file)) and "\n" not in text and len(text) < 400
    try:  # a line may hold any value, and a file without lines is valid
        list(files.read_json_lines(file))
    except UserError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
    assert time.monotonic() - begin < 10


def test_json_has_no_nan(tmp_path):
    file = tmp_path / "results.json"
    files.write_json(file, {"old": 1})
    data = {"methods": {"base": [{"value": 0.5}, {"value": float("nan")}]}}
    with pytest.raises(
        UserError, match=r"results.json: methods.base\[1\].value = nan: must be a finite"
    ):
        files.write_json(file, data)
    assert files.read_json(file) == {"old": 1}


@pytest.fixture
def done(monkeypatch):
    """Records calls of fsync and rename, in order."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(old, new):
        calls.append(("rename", os.fspath(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return calls


def test_a_file_is_on_disk_before_it_is_renamed(tmp_path, done):
    """fsync of the file, the rename, fsync of the directory: in this order."""
    for path, write in (
        (tmp_path / "a.json", lambda path: files.write_json(path, {})),
        (tmp_path / "b.record", lambda path: write_examples(path, trainer.examples())),
    ):
        done.clear()
        write(path)
        assert done == [
            ("fsync", f"{path}.partial"), ("rename", str(path)), ("fsync", str(tmp_path)),
        ]  # fmt: skip


def test_a_model_is_on_disk_before_it_is_renamed(tmp_path, done):
    path = tmp_path / "model"
    hf.save(path, trainer.CONFIG, trainer.params())
    partial = f"{path}.partial"
    written = {("fsync", f"{partial}/{file.name}") for file in path.iterdir()}
    *first, directory, renamed, parent = done
    assert set(first) == written and len(written) >= 2
    assert [directory, renamed, parent] == [
        ("fsync", partial), ("rename", str(path)), ("fsync", str(tmp_path)),
    ]  # fmt: skip


def test_an_unfinished_file_does_not_exist(tmp_path):
    path = tmp_path / "trees.jsonl"
    with pytest.raises(KeyError), files.whole(path) as file:
        file.write("half")
        raise KeyError
    assert not path.exists()
    path.mkdir()
    with pytest.raises(UserError, match=r"trees.jsonl: cannot be written: Is a directory"):
        with files.whole(path):
            pass
    path.rmdir()
    (tmp_path / "trees.jsonl.partial").unlink()
    (tmp_path / "trees.jsonl.partial").mkdir()
    with pytest.raises(UserError, match=r"trees.jsonl: cannot be written: Is a directory"):
        with files.whole(path):
            pass
    with pytest.raises(UserError, match=r"trees.jsonl.partial/x: cannot be written: "):
        (tmp_path / "trees.jsonl.partial").rmdir()
        (tmp_path / "trees.jsonl.partial").write_text("")
        files.make_directory(tmp_path / "trees.jsonl.partial" / "x")


@pytest.mark.parametrize("how", ["FIFO", "link"])
def test_anything_under_the_partial_name_is_removed(tmp_path, how):
    """A FIFO would block, and a link would lead to somebody else's file."""
    other = tmp_path / "other"
    other.write_text("mine")
    for name, write in (
        ("a.json", lambda path: files.write_json(path, {})),
        ("b.record", lambda path: write_examples(path, trainer.examples())),
    ):
        partial = tmp_path / f"{name}.partial"
        os.mkfifo(partial) if how == "FIFO" else partial.symlink_to(other)
        write(tmp_path / name)
        assert (tmp_path / name).is_file() and not partial.exists()
    assert other.read_text() == "mine"


def test_a_model_directory_has_a_fingerprint(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(40 << 20))
    (tmp_path / "config.json").write_text("{}")
    first = files.fingerprint(tmp_path)
    (tmp_path / "notes.md").write_text("no part of the model")
    assert files.fingerprint(tmp_path) == first
    with open(weights, "r+b") as file:
        file.seek((40 << 20) - 1)
        file.write(b"x")
    assert files.fingerprint(tmp_path) != first
    weights.write_bytes(bytes((40 << 20) - 1))
    assert files.fingerprint(tmp_path) != first
