"""Paths that a user names, and files that are found whole or not at all."""

import os
from pathlib import Path

import pytest
import trainer

from leafe_jax import files
from leafe_jax.errors import UserError


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
        ("gs://bucket/run", "--workdir=gs://bucket/run: must be a directory; a bucket"),
        ("file://runs/a", "names the host 'runs'"),
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
