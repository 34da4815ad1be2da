"""Paths that a user gives, and files that a run writes: a reader finds them complete or not at all."""

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

# Suffixes of the files that make up a model: weights, configs, tokenizer, chat template.
_MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_MAX_JSON = 1 << 31  # bytes; a block of an evaluation may hold hundreds of MiB of transcripts
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


# -- paths -----------------------------------------------------------------------------------------
def local_path(name: str, text: str) -> Path:
    """The absolute path for what a user wrote.

    A relative path starts at the current directory. "~" is the home directory; a shell does not expand it
    after "=". `file:///absolute/path` is also accepted.

    Args:
      name: of the flag or field, in the form that precedes the value in a message, e.g. "--workdir=".
      text: what the user wrote.

    Raises:
      UserError: the text is empty or has another scheme; or the home or current directory does not exist.
    """
    path = text
    if text.startswith("file:/"):
        url = urllib.parse.urlsplit(text)
        if url.netloc not in ("", "localhost"):
            raise UserError(f"{name}{text}: has a host, {url.netloc!r}; must be file:///path")
        path = urllib.parse.unquote(url.path)
    elif _SCHEME.match(text):
        raise UserError(
            f"{name}{text}: must be a local directory; mount a bucket to use it (docs/TPU.md)"
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
    """A context with a regular file, opened for reading. It does not block if the path is a FIFO.

    Raises:
      UserError: there is no such file, it is not a regular file, or it cannot be read.
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
      UserError: as `readable`; or the file is longer than `max_bytes`, or not UTF-8.
    """
    with readable(Path(path)) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{path}: must be at most {max_bytes} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}") from error


def parse_json(text: str | bytes, where: str | os.PathLike) -> Any:
    """The value of JSON text.

    Args:
      text: the JSON; bytes must be UTF-8.
      where: where the text comes from, for error messages.

    Raises:
      UserError: it is not JSON, or an object has the same name twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            count = collections.Counter(name for name, _ in pairs)
            twice = [str(name) for name in count if count[name] > 1]
            raise UserError(f"{where}: {', '.join(twice[:5])}: named twice")
        return data

    try:
        # Decoded here, because json would guess the encoding of bytes and accept a lone surrogate.
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, object_pairs_hook=once)
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{where}: not JSON: nested too deeply") from error
    except ValueError as error:  # includes UnicodeDecodeError
        raise UserError(f"{where}: not JSON: {error}") from error


def read_json(path: str | os.PathLike, max_bytes: int = _MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: as `read_text` and `parse_json`; or the value is not an object.
    """
    data = parse_json(read_text(path, max_bytes), path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: not JSON: expected an object, found {type(data).__name__}")
    return data


def read_json_lines(path: str | os.PathLike) -> Iterator[Any]:
    """Yields the values of a file with one JSON value per line, in order.

    Raises:
      UserError: the file cannot be read, or a line is not JSON (the error gives its number). Raised during
        iteration.
    """
    with readable(Path(path)) as file:
        for number, line in enumerate(file, start=1):
            yield parse_json(line, f"{path}, line {number}")


def checksum(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal digits.

    Raises:
      UserError: the file cannot be read.
    """
    with readable(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(directory: str | os.PathLike) -> str:
    """A digest of a model directory, in hexadecimal digits. It takes seconds for any size.

    It covers the names and sizes of the files that make up a model, and 256 pieces of 64 KiB of each file.
    A file of at most 16 MiB is covered completely.

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
    """Makes a directory and its parents unless they exist.

    Raises:
      UserError: it cannot be made, e.g. because a file is in its place.
      OSError: the disk is full.
    """
    with _named(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def sync(path: str | os.PathLike) -> None:
    """Returns once a file's content, or a directory's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support fsync on directories.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def put_in_place(partial: str | os.PathLike, final: str | os.PathLike) -> None:
    """Renames a complete file to its final name. A power failure leaves the old file or the new one.

    Raises:
      UserError: it cannot be renamed, e.g. because a directory is in its place.
      OSError: the disk is full.
    """
    with _named(final):
        sync(partial)  # the content must be on disk before the name is
        os.replace(partial, final)
        sync(Path(final).parent)


def remove(path: str | os.PathLike) -> None:
    """Removes a file, a link or a FIFO if it exists.

    Raises:
      UserError: it cannot be removed, e.g. because it is a directory.
    """
    with _named(path):
        Path(path).unlink(missing_ok=True)


def put_directory_in_place(partial: str | os.PathLike, final: str | os.PathLike) -> None:
    """`put_in_place` for a directory of files. An existing directory of that name is deleted first.

    Raises:
      UserError, OSError: as `put_in_place`.
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
    """A context with a file to write, which gets its name when the context ends without an error.

    Until then it is `<path>.partial`. Anything that an earlier run left under that name is removed first: a
    link would lead elsewhere, and a FIFO would block.

    Args:
      path: of the file.
      binary: True for bytes, False for text.

    Raises:
      UserError: the file cannot be written and the disk is not full.
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
    """A context that turns OSErrors into a UserError with the path, except for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def to_json(data: Any, what: str, **options) -> str:
    """JSON text of `data`.

    Args:
      data: what to write.
      what: name of the data, for error messages.
      **options: of json.dumps.

    Raises:
      UserError: a number is not finite, which JSON cannot represent. The error says where it is.
    """
    try:
        return json.dumps(data, allow_nan=False, **options)
    except ValueError as error:
        place = _not_finite(data)
        if place is None:
            raise
        raise UserError(f"{what}: {place}: must be a finite number") from error


def _not_finite(data: Any, place: str = "") -> str | None:
    """The first number that is not finite, e.g. "nodes[0].reward = nan", or None."""
    if isinstance(data, float):
        return None if math.isfinite(data) else f"{place.removeprefix('.')} = {data}"
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(data, dict):
        items = ((f"{place}.{name}", value) for name, value in data.items())
    elif isinstance(data, (list, tuple)):
        items = ((f"{place}[{index}]", value) for index, value in enumerate(data))
    return next((p for p in (_not_finite(value, at) for at, value in items) if p), None)


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes a JSON file. A reader sees the old file or the new one, never part of one.

    Raises:
      UserError: as `whole` and `to_json`.
    """
    text = to_json(data, str(path), indent=1)
    with whole(path) as file:
        file.write(text + "\n")
