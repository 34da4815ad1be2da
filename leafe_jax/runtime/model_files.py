"""Reads the files of a model directory. The directory may be hostile, so sizes and kinds are checked."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.runtime import files

_MAX_JSON = 2**26  # bytes; the largest index of a known checkpoint has 10 MB
_MAX_FILE = 2**29  # bytes of any other file except weights; vocabularies have up to 40 MB
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx")


def shown(value: Any) -> str:
    """`value` for an error message: one line of at most 120 characters."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def check_directory(directory: Path) -> None:
    """Checks that no file of the directory would block a reader or fill its memory.

    Raises:
      UserError: an entry is a pipe, a socket or a device; or a file other than weights is larger than 512
        MiB.
    """
    folders = [directory, directory / "additional_chat_templates"]  # no other folder is ever read
    for entry in [e for f in folders if f.is_dir() for e in sorted(f.iterdir())]:
        try:
            found = entry.stat()
        except OSError:
            continue  # a dangling link: whoever needs the file reports that it is missing
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise UserError(f"{entry}: not a regular file")
        if found.st_size > _MAX_FILE and stat.S_ISREG(found.st_mode):
            if entry.suffix not in _WEIGHTS:
                raise UserError(
                    f"{entry}: {found.st_size} bytes: must be at most {_MAX_FILE}, because it does not"
                    " hold weights"
                )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model directory. The file may have at most 64 MiB.

    Raises:
      UserError: see leafe_jax.runtime.files.read_json.
    """
    return files.read_json(file, _MAX_JSON)
