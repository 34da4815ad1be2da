"""Reading the files of a model directory, which anybody may have made: bounded, and no surprises."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from leafe_jax.errors import UserError

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
    for entry in sorted(directory.iterdir()):
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


def read_text(file: Path, max_bytes: int) -> str:
    """The text of a regular file.

    Raises:
      UserError: not readable, not a regular file, too long, or not UTF-8.
    """
    try:
        # Without waiting: to open a pipe would else take until somebody writes to it.
        opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(opened, "rb") as stream:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise UserError(f"{file}: not a regular file")
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise UserError(f"{file}: longer than {max_bytes} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8: {error}") from error


def parse_json(text: str | bytes, where: Path | str) -> Any:
    """The value of JSON text; no name may occur twice in an object.

    Raises:
      UserError: it is none; `where` is named.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UserError(f"{where}: {', '.join(map(str, twice[:5]))}: named twice")
        return data

    try:
        return json.loads(text, object_pairs_hook=once)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{where}: not JSON: {reason}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: see `read_text` and `parse_json`; or no object.
    """
    data = parse_json(read_text(file, _MAX_JSON), file)
    if not isinstance(data, dict):
        raise UserError(f"{file}: not JSON: expected an object, found {type(data).__name__}")
    return data
