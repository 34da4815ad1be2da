"""Paths that a user names, and files that a run leaves: found whole or not at all."""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from leafe_jax.errors import UserError

# Of the files that a model is read from: weights, configs, tokenizer, chat template.
_MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_MAX_JSON = 1 << 31  # bytes; a block of an evaluation may have hundreds of MiB of transcripts
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


# -- paths -----------------------------------------------------------------------------------------
def local_path(name: str, text: str) -> Path:
    """The absolute path that a user means.

    A relative path starts at the current directory. "~" is the home directory, which a shell does not
    expand after "=". `file:///absolute/path` is a path, too.

    Args:
      name: of the flag or field, as it stands before the value in a message, e.g. "--workdir=".
      text: what the user wrote.

    Raises:
      UserError: it is empty, of another scheme, or of a home or current directory that is not there.
    """
    path = text
    if text.startswith("file:/"):
        url = urllib.parse.urlsplit(text)
        if url.netloc not in ("", "localhost"):
            raise UserError(f"{name}{text}: names the host {url.netloc!r}; write file:///{{path}}")
        path = urllib.parse.unquote(url.path)
    elif _SCHEME.match(text):
        raise UserError(
            f"{name}{text}: must be a directory; a bucket has to be mounted (docs/TPU.md)"
        )
    if not path or "\0" in path:
        raise UserError(f"{name}{text!r}: must be a directory")
    try:
        return Path(path).expanduser().absolute()
    except (OSError, RuntimeError) as error:  # no such home; the current directory was deleted
        raise UserError(f"{name}{text}: {error}") from error


# -- reading ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def readable(path: Path) -> Iterator[BinaryIO]:
    """A regular file, opened; a FIFO in its place does not block.

    Raises:
      UserError: nothing there, something else, or no permission.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{path}: cannot be read: not a regular file")
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_text(path: str | os.PathLike, max_bytes: int) -> str:
    """The text of a UTF-8 file.

    Raises:
      UserError: no such file, not a regular file, not readable, longer than `max_bytes`, or not UTF-8.
    """
    with readable(Path(path)) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{path}: longer than {max_bytes} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}") from error


def parse_json(text: str | bytes, where: str | os.PathLike) -> Any:
    """The value of JSON text; no name may occur twice in an object.

    Raises:
      UserError: it is none; `where` is named.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            count = collections.Counter(name for name, _ in pairs)
            twice = [str(name) for name in count if count[name] > 1]
            raise UserError(f"{where}: {', '.join(twice[:5])}: named twice")
        return data

    try:
        # Decoded here: json would guess the encoding of bytes, and let half a surrogate pair pass.
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, object_pairs_hook=once)
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{where}: not JSON: nested too deeply") from error
    except ValueError as error:  # a UnicodeDecodeError is one
        raise UserError(f"{where}: not JSON: {error}") from error


def read_json(path: str | os.PathLike, max_bytes: int = _MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: see `read_text` and `parse_json`; or it is no object.
    """
    data = parse_json(read_text(path, max_bytes), path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: not JSON: expected an object, found {type(data).__name__}")
    return data


def read_json_lines(path: str | os.PathLike) -> Iterator[Any]:
    """The values of a file with one JSON value a line, in order.

    Raises:
      UserError: while it is iterated: the file cannot be read, or a line is no JSON (named by its
        number).
    """
    with readable(Path(path)) as file:
        for number, line in enumerate(file, start=1):
            yield parse_json(line, f"{path}, line {number}")


def checksum(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
      UserError: the file cannot be read.
    """
    with readable(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(directory: str | os.PathLike) -> str:
    """A digest of a model directory that takes seconds whatever its size, in hexadecimal.

    It is made of the names and sizes of the files that a model is read from, and of 256 pieces of 64
    KiB of each, which is the whole content up to 16 MiB.

    Raises:
      UserError: the directory or a file cannot be read.
    """
    directory, digest = Path(directory), hashlib.sha256()
    try:
        names = sorted(p.name for p in directory.iterdir() if p.suffix in _MODEL_SUFFIXES)
    except OSError as error:
        raise UserError(f"{directory}: cannot be read: {error.strerror}") from error
    piece, count = 1 << 16, 256
    for name in names:
        with readable(directory / name) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{name}\0{size}\0".encode())
            last = max(size - piece, 0)
            for begin in sorted({last * n // (count - 1) for n in range(count)}):
                file.seek(begin)
                digest.update(file.read(piece))
    return digest.hexdigest()


# -- writing ---------------------------------------------------------------------------------------
def make_directory(path: str | os.PathLike) -> None:
    """Makes a directory, and those above it, if it is not there.

    Raises:
      UserError: it cannot be made, e.g. because a file is in its place.
      OSError: the disk is full.
    """
    with _named(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def sync(path: str | os.PathLike) -> None:
    """Returns once a file's content, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot do it for directories.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def put_in_place(partial: str | os.PathLike, final: str | os.PathLike) -> None:
    """Renames a complete file, so that a power failure leaves the old file or the new one.

    Raises:
      UserError: it cannot be renamed, e.g. because a directory is in its place.
      OSError: the disk is full.
    """
    with _named(final):
        sync(partial)  # the name must not get to the disk before the content
        os.replace(partial, final)
        sync(Path(final).parent)


def remove(path: str | os.PathLike) -> None:
    """Removes a file, a link or a FIFO, if it is there.

    Raises:
      UserError: it cannot be removed, e.g. because it is a directory.
    """
    with _named(path):
        Path(path).unlink(missing_ok=True)


def put_directory_in_place(partial: str | os.PathLike, final: str | os.PathLike) -> None:
    """`put_in_place` for a directory of files; what has the final name before is deleted.

    Raises:
      UserError, OSError: as put_in_place.
    """
    with _named(final):
        for file in Path(partial).iterdir():
            sync(file)
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        sync(Path(final).parent)


@contextlib.contextmanager
def whole(path: str | os.PathLike, binary: bool = False) -> Iterator[IO]:
    """A file to write; it appears under its name when the block ends without an error.

    Until then it is `<path>.partial`. What an earlier run has left under that name is removed first:
    a link would lead elsewhere, and a FIFO would block.

    Args:
      path: the file.
      binary: write bytes instead of text.

    Raises:
      UserError: it cannot be written, for another reason than a full disk.
      OSError: the disk is full.
    """
    partial = f"{os.fspath(path)}.partial"
    with _named(path):
        Path(partial).unlink(missing_ok=True)
        file = open(partial, "xb") if binary else open(partial, "x", encoding="utf-8")
    with file:
        yield file
    put_in_place(partial, path)


@contextlib.contextmanager
def _named(path: str | os.PathLike) -> Iterator[None]:
    """A context whose OSErrors become a UserError with the path, but for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def to_json(data: Any, what: str, **options) -> str:
    """JSON text of `data`.

    Raises:
      UserError: a number in it is not finite, for which JSON has no word; `what` and the place of the
        number are named.
    """
    try:
        return json.dumps(data, allow_nan=False, **options)
    except ValueError as error:
        place = _not_finite(data)
        if place is None:
            raise
        raise UserError(f"{what}: {place}: must be a finite number") from error


def _not_finite(data: Any, place: str = "") -> str | None:
    """The first number that is not finite, as "nodes[0].reward = nan", or None."""
    if isinstance(data, float):
        return None if math.isfinite(data) else f"{place.removeprefix('.')} = {data}"
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(data, dict):
        items = ((f"{place}.{name}", value) for name, value in data.items())
    elif isinstance(data, (list, tuple)):
        items = ((f"{place}[{index}]", value) for index, value in enumerate(data))
    return next((p for p in (_not_finite(value, at) for at, value in items) if p), None)


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of one.

    Raises:
      UserError: as `whole` and `to_json`.
    """
    text = to_json(data, str(path), indent=1)
    with whole(path) as file:
        file.write(text + "\n")
