"""Records of problem files: JSON Lines (`.jsonl`, also `.gz`), a JSON list (`.json`) or Parquet.

Files are untrusted. The bytes of one record, the expansion of compressed data, and the part of a value
that an error shows are all bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from envs import files
from envs.errors import EnvDataError
from envs.options import shown

MAX_RECORD_BYTES = 1 << 27  # of a line, or of a JSON list; real ones have about 10 MiB at most


class Record:
    """One record of a file; its errors name the file and the record."""

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
        """A text that can be part of a task's id, and so of tables, paths and logs."""
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
        if type(value) is not int or not least <= value <= most:  # True is not a number
            raise self.error(field, allowed)
        return value


def read_records(path: str) -> Iterator[Record]:
    """The records of a file, one at a time.

    Raises:
      EnvDataError: names the file and, for JSON Lines, the line.
    """
    if path.endswith(".parquet"):
        values = _read_parquet(path)
    else:
        values = _read_json(path)
    for number, value in enumerate(values):
        yield Record(path, number, value)


def _plain(path: str) -> str:
    return path if path.isprintable() else repr(path)


def _read_json(path: str) -> Iterator[Any]:
    if path.removesuffix(".gz").endswith(".json"):
        values = files.read_json(path, MAX_RECORD_BYTES)
        if not isinstance(values, list):
            raise EnvDataError(f"{_plain(path)}: must be a list of records")
        yield from values
        return
    for number, line in enumerate(files.read_lines(path, MAX_RECORD_BYTES), start=1):
        if not line.isspace():
            yield files.parse_json(line, f"{_plain(path)}, line {number}")


def _read_parquet(path: str) -> Iterator[Any]:
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise EnvDataError(
            f"{_plain(path)}: Parquet files need pyarrow (pip install -e '.[parquet]')"
        ) from None
    try:
        with files.open_bytes(path) as binary, pyarrow.parquet.ParquetFile(binary) as file:
            # A few rows at a time: a problem's tests may take megabytes.
            for batch in file.iter_batches(batch_size=16):
                yield from batch.to_pylist()
    # ValueError: text that is not UTF-8, dates that Python cannot represent.
    except (OSError, ValueError, OverflowError, pyarrow.lib.ArrowException) as error:
        reason = shown(str(error).partition("\n")[0])
        raise EnvDataError(f"{_plain(path)}: cannot be read ({reason})") from None
