"""Versions of what a process computes with: its source files and the packages they need."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, TypedDict

import leafe_jax

_ROOT = Path(__file__).resolve().parents[2]
_OURS = ("leafe_jax", "envs")
_PACKAGES = ("jax", "jaxlib", "numpy", "transformers", "tokenizers", "jinja2")


def facts(root: Path = _ROOT) -> dict[str, str]:
    """What must be equal in all processes of a run: package -> version, and file -> hash.

    Files are those of the packages leafe_jax and envs as they are on disk, committed or not, including
    their data.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found | _files(root)


def _files(root: Path) -> dict[str, str]:
    found = {}
    for package in _OURS:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
                found[path.relative_to(root).as_posix()] = digest
    return found


class Code(TypedDict):
    """The code that a process runs.

    Attributes:
      version: of the package leafe_jax.
      commit: what is checked out; None if the package was installed and is in no checkout.
      dirty: files of the packages leafe_jax and envs differ from the commit, or are not in it; None
        without a commit.
      sources: digest of the files of the two packages.
    """

    version: str
    commit: str | None
    dirty: bool | None
    sources: str


def code(root: Path = _ROOT) -> Code:
    """The code that this process runs, as it was on disk at the first call: modules stay as they were
    imported, whatever happens to their files during a run."""
    return dict(_code(root))  # type: ignore[return-value]


@functools.cache
def _code(root: Path) -> Code:
    files = "\n".join(f"{name} {digest}" for name, digest in _files(root).items())
    commit, changes = _git(root, "rev-parse", "HEAD"), None
    if commit is not None:
        changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *_OURS)
    return {
        "version": leafe_jax.__version__,
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
        "sources": hashlib.sha256(files.encode()).hexdigest()[:12],
    }


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None without a checkout (or without git, or if git refuses the directory)."""
    if not (root / ".git").exists():  # else a checkout around an installed package would answer
        return None
    # In a hook, variables of git name the repository that it runs for.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def told(code: Code) -> str:
    """Code in words, e.g. "97d132107c1b with uncommitted changes"."""
    if code["commit"] is None:
        return f"leafe_jax {code['version']} (sources {code['sources']})"
    changes = f" with uncommitted changes (sources {code['sources']})" if code["dirty"] else ""
    return code["commit"][:12] + changes


def all_code(value: Any) -> bool:
    """True if `value` is a list of `Code`, e.g. from a file."""
    kinds = {"version": str, "commit": str | None, "dirty": bool | None, "sources": str}
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and item.keys() == kinds.keys()
        and all(isinstance(item[name], kind) for name, kind in kinds.items())
        for item in value
    )
