"""Reading the files of a model directory, which anybody may have made: bounded, and no surprises."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.runtime import files

_MAX_JSON = 2**26  # bytes; the largest index of a known checkpoint has 10 MB
_MAX_FILE = 2**29  # bytes of any other file beside the weights; vocabularies have up to 40 MB
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx")


def shown(value: Any) -> str:
    """`value` as an error message shows it: on one line, and not longer than a line."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def check_directory(directory: Path) -> None:
    """Refuses what a reader would wait for or drown in.

    Raises:
      UserError: a name in it is a pipe, a socket or a device, or a file beside the weights is larger
        than 512 MiB.
    """
    folders = [directory, directory / "additional_chat_templates"]  # others are never looked into
    for entry in [e for f in folders if f.is_dir() for e in sorted(f.iterdir())]:
        try:
            found = entry.stat()
        except OSError:
            continue  # a link to nothing: whoever needs the file says that it is missing
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise UserError(f"{entry}: not a regular file")
        if found.st_size > _MAX_FILE and stat.S_ISREG(found.st_mode):
            if entry.suffix not in _WEIGHTS:
                raise UserError(
                    f"{entry}: {found.st_size} bytes: must be at most {_MAX_FILE}, as it is no"
                    " file of weights"
                )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model directory, of at most 64 MiB.

    Raises:
      UserError: see leafe_jax.runtime.files.read_json.
    """
    return files.read_json(file, _MAX_JSON)
