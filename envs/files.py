"""Reads untrusted data files: regular files only, bounded in size, errors in one line.

The path that an option names may be a pipe, a device, a gzip bomb, bytes that are not text, or JSON of
endless depth. Each is refused with an EnvDataError that names the path, in bounded time and memory.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

from envs.errors import EnvDataError
from envs.replies import without_surrogates

MAX_BYTES = 16 << 20  # of a file that is read as a whole: a game, a level file
MAX_LINE = 64 << 20  # characters of one line of a file that is read line by line
MAX_RATIO = 100  # expanded bytes per compressed byte; text seldom exceeds 20
_FREE_BYTES = 4 << 20  # expanded bytes to which MAX_RATIO does not apply

_KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def check_regular(path: str | Path) -> None:
    """Returns if `path` is a regular file; does not open it.

    Raises:
      EnvDataError: `path` does not exist or is something else.
    """
    with _named_errors(path):
        try:
            mode = os.stat(path).st_mode
        except ValueError as error:  # a NUL in the path
            raise EnvDataError(f"{str(path)!r}: cannot be read: {error}") from None
        _check_mode(path, mode)


@contextlib.contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """The content of a regular file as a binary stream; a `.gz` file is decompressed.

    Raises:
      EnvDataError: also for errors inside the `with` block: not a regular file, unreadable, or a
        compressed file that is broken or expands by more than MAX_RATIO.
    """
    check_regular(path)
    with _named_errors(path):
        # Non-blocking, in case a pipe has replaced the file in between.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, "rb") as file:
            _check_mode(path, os.fstat(file.fileno()).st_mode)
            if str(path).endswith(".gz"):
                with io.BufferedReader(_Expanded(file, path), 1 << 16) as expanded:
                    yield expanded
            else:
                yield file


@contextlib.contextmanager
def open_text(path: str | Path, encoding: str = "utf-8") -> Iterator[TextIO]:
    """`open_bytes`, decoded; "\\r\\n" and "\\r" become "\\n".

    Raises:
      EnvDataError: as open_bytes, or the bytes are not of that encoding.
    """
    with open_bytes(path) as binary, io.TextIOWrapper(binary, encoding) as file:
        yield file


def read_lines(path: str | Path, limit: int = MAX_LINE) -> Iterator[str]:
    """The lines of a UTF-8 file, with or without a byte order mark, each with its line break.

    Raises:
      EnvDataError: as open_text, or a line has more than `limit` characters.
    """
    with open_text(path, "utf-8-sig") as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise EnvDataError(f"{path}, line {number}: has over {limit} characters")
            yield line


def read_bytes(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """The whole content.

    Raises:
      EnvDataError: as open_bytes, or it has more than `limit` bytes.
    """
    with open_bytes(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise EnvDataError(f"{path}: has more than {limit} bytes, the most that is read")
    return data


def read_text(path: str | Path, limit: int = MAX_BYTES) -> str:
    """The whole content, UTF-8 with or without a byte order mark; line breaks become "\\n".

    Raises:
      EnvDataError: as read_bytes, or it is not UTF-8.
    """
    data = read_bytes(path, limit)
    with _named_errors(path):
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, limit: int = MAX_BYTES) -> Any:
    """The value of a JSON file.

    Raises:
      EnvDataError: as read_text, or parse_json refuses it.
    """
    return parse_json(read_text(path, limit), str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text, with U+FFFD for lone surrogates (escapes such as \\ud800).

    Args:
      text: the text.
      where: its name in errors.

    Raises:
      EnvDataError: not JSON (NaN and Infinity are not), nested too deeply, or a number that is too
        large: 1e400, an integer of over 4,300 digits.
    """
    try:
        return _whole(DECODER.decode(text), text, 0, len(text))
    except (ValueError, RecursionError) as error:
        raise EnvDataError(f"{where}: not JSON that can be read ({error})") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is too large a number")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def decode_at(text: str, position: int) -> tuple[Any, int]:
    """(value, end) of the JSON value at `position`, read as by parse_json.

    Raises:
      json.JSONDecodeError: not JSON, or cut off; ValueError or RecursionError: see parse_json.
    """
    value, end = DECODER.raw_decode(text, position)
    return _whole(value, text, position, end), end


def _whole(value: Any, text: str, start: int, end: int) -> Any:
    """`value`, read from text[start:end], without lone surrogates in keys or values."""
    if text.find("\\ud", start, end) < 0 and text.find("\\uD", start, end) < 0:
        return value
    return _replaced(value)


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_replaced(item) for item in value]
    if isinstance(value, dict):
        return {_replaced(key): _replaced(item) for key, item in value.items()}
    return value


DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)


class _Expanded(io.RawIOBase):
    """A gzip stream that refuses to expand by more than MAX_RATIO."""

    def __init__(self, file: BinaryIO, path: str | Path):
        self._file, self._path = file, path
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self._expanded = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._gzip.read1(len(buffer))
        buffer[: len(data)] = data
        self._expanded += len(data)
        if self._expanded > max(_FREE_BYTES, MAX_RATIO * self._file.tell()):
            raise EnvDataError(
                f"{self._path}: expands to over {MAX_RATIO} times its size and over"
                f" {_FREE_BYTES >> 20} MiB: not read any further"
            )
        return len(data)


def _check_mode(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
        raise EnvDataError(f"{path}: is {kind}; it must be a regular file")


@contextlib.contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    """Converts errors of reading into an EnvDataError that names the file."""
    try:
        yield
    except EnvDataError:
        raise
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise EnvDataError(
            f"{path}: not {error.encoding.upper()} text (byte 0x{bad:02x})"
        ) from None
    except OSError as error:
        raise EnvDataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise EnvDataError(f"{path}: cannot be expanded: {error}") from None
