"""Versions of what a process computes with: its source files and the packages they need."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
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
    for package in ("leafe_jax", "envs"):
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
                found[path.relative_to(root).as_posix()] = digest
    return found
