"""Records of problem files: JSON Lines (`.jsonl`, also `.gz`), a JSON list (`.json`) or Parquet.

A file is untrusted input. What it can cost is bounded: the bytes of one record, how far it unpacks,
and what an error shows of a value.
"""

from __future__ import annotations

import gzip
import json
import os
import reprlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from envs.base import EnvDataError

MAX_RECORD_BYTES = 1 << 27  # of one line, or of a JSON list; the largest real ones have some 10 MiB
MAX_UNPACKED = 100  # bytes that a byte of a .gz file may unpack to on average; text has 3 to 20
MAX_BLANK_LINES = 1 << 16

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_REPR.maxlevel = 3


def shown(value: Any) -> str:
    """A value as an error line shows it: printable, one line, about 100 characters at most."""
    try:
        text = _REPR.repr(value)
    except ValueError:  # an integer of more digits than repr allows
        text = f"{type(value).__name__} of more than 4300 digits"
    return text if len(text) <= 120 else text[:120] + "..."


class Record:
    """One record of a file, with errors that say where it stands."""

    def __init__(self, path: str, number: int, value: Any):
        self.where = f"{_plain(path)}, record {number}"
        self.number = number
        if not isinstance(value, Mapping):
            raise EnvDataError(f"{self.where}: must be an object with fields, not {shown(value)}")
        self.fields = value

    def error(self, field: str, allowed: str) -> EnvDataError:
        value = shown(self.fields[field]) if field in self.fields else "'nothing'"
        return EnvDataError(f"{self.where}: field {field!r} = {value}: must be {allowed}")

    def text(self, field: str, default: str | None = None) -> str:
        value = self.fields.get(field, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise self.error(field, "a text that is not empty" if default is None else "a text")
        return value

    def name(self, field: str) -> str:
        """A text that can be part of a task's id, which tables, paths and logs show."""
        value = self.text(field)
        if not value.isprintable() or len(value) > 200:
            raise self.error(field, "at most 200 printable characters: it names the task")
        return value

    def texts(self, field: str, default: tuple | None = None) -> tuple[str, ...]:
        value = self.fields.get(field, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise self.error(field, "a list of texts")
        return tuple(value)

    def whole(self, field: str, least: int, most: int, allowed: str) -> int:
        value = self.fields.get(field)
        if type(value) is not int or not least <= value <= most:  # True is no number
            raise self.error(field, allowed)
        return value


def read_records(path: str) -> Iterator[Record]:
    """The records of a file, one at a time.

    Raises:
      EnvDataError: names the file, and the line where there is one.
    """
    if not os.path.isfile(path):  # a FIFO or a device would be read for ever
        raise EnvDataError(
            f"env.options.problems: no file {shown(path)}: must be a regular file that can be read"
        )
    if path.endswith(".parquet"):
        values = _read_parquet(path)
    else:
        values = _read_json(path)
    for number, value in enumerate(values):
        yield Record(path, number, value)


def _plain(path: str) -> str:
    return path if path.isprintable() else repr(path)


def _read_json(path: str) -> Iterator[Any]:
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            if path.removesuffix(".gz").endswith(".json"):
                data = file.read(MAX_RECORD_BYTES + 1)
                _check_size(data, _plain(path))
                values = _parse(data, _plain(path))
                if not isinstance(values, list):
                    raise EnvDataError(f"{_plain(path)}: must be a list of records")
                yield from values
            else:
                for number, line in _lines(file, path):
                    yield _parse(line, f"{_plain(path)}, line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise EnvDataError(f"{_plain(path)}: cannot be read ({error})") from None


def _check_size(data: bytes, where: str) -> None:
    if len(data) > MAX_RECORD_BYTES:
        raise EnvDataError(f"{where}: must have at most {MAX_RECORD_BYTES >> 20} MiB")


def _lines(file: BinaryIO, path: str) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines that are not blank."""
    packed = getattr(file, "fileobj", None)  # of a gzip file: the file itself
    number = total = blank = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number, total = number + 1, total + len(line)
        if line.isspace():
            blank += 1
            if blank > MAX_BLANK_LINES or len(line) > MAX_RECORD_BYTES:
                raise EnvDataError(
                    f"{_plain(path)}, line {number}: must have at most {MAX_BLANK_LINES} empty lines"
                )
            continue
        where = f"{_plain(path)}, line {number}"
        _check_size(line, where)
        if packed and total > max(MAX_RECORD_BYTES, MAX_UNPACKED * packed.tell()):
            raise EnvDataError(
                f"{where}: must not unpack to more than {MAX_UNPACKED} times its packed size"
            )
        yield number, line


def _parse(data: bytes, where: str) -> Any:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EnvDataError(f"{where}: cannot be read as UTF-8 ({error})") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # too many digits and too deep, too
        raise EnvDataError(f"{where}: not JSON that can be read ({error})") from None


def _read_parquet(path: str) -> Iterator[Any]:
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise EnvDataError(
            f"{_plain(path)}: Parquet files need pyarrow (pip install -e '.[parquet]')"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            # Few rows at a time: a problem's tests can take megabytes.
            for batch in file.iter_batches(batch_size=16):
                yield from batch.to_pylist()
    # ValueError: text that is not UTF-8, dates that Python does not have.
    except (OSError, ValueError, OverflowError, pyarrow.lib.ArrowException) as error:
        reason = shown(str(error).partition("\n")[0])
        raise EnvDataError(f"{_plain(path)}: cannot be read ({reason})") from None
