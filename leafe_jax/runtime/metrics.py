"""Metrics to TensorBoard and to metrics.jsonl, one line a step."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafe_jax.runtime.console import visible
from leafe_jax.runtime.files import make_directory, readable, whole

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


def _prefixes(line: dict[str, Any]) -> set[str]:
    """What stands before the last slash of each name of a line."""
    return {name.rpartition("/")[0] for name in line if name != "step"}


def code_block(text: str) -> str:
    """Markdown that shows a text as it is, one line of the text a line.

    TensorBoard renders Markdown to HTML, images from anywhere included. A line that is indented by four
    is code. Markdown ends lines at a carriage return too, so none may be left within a line.
    """
    lines = re.split("\r\n|\r|\n", text)
    return "".join(f"    {visible(line)}\n" for line in lines)


def _summary_writer(directory: str) -> SummaryWriter:
    """A writer of TensorBoard's event files.

    tensorboardX imports torch where it is installed: seconds of every start and 200 MB, for tensors that
    we never hand it. None in sys.modules makes that import fail, which tensorboardX expects.
    """
    loaded = "torch" in sys.modules
    if not loaded:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if not loaded:
            del sys.modules["torch"]
    return SummaryWriter(directory)


class Metrics:
    """Writes scalars twice: for TensorBoard and for whoever has none.

    A phase that was killed and resumed writes some steps again: the lines of the same prefix (what
    stands before the last slash) from that step on are replaced, so metrics.jsonl reads as if
    nothing had happened. TensorBoard's event files cannot be cut; it shows the later of two values
    of one step.

    A line that a kill tore is dropped when the file is opened; every other line is kept.

    Args:
      directory: the workdir; events go to `tensorboard/`, lines to `metrics.jsonl`.
      kept: False writes nothing: another process does.

    Raises:
      UserError: metrics.jsonl or tensorboard/ is there and cannot be read or written.
    """

    def __init__(self, directory: Path, kept: bool = True):
        self._kept = kept
        self._path = directory / "metrics.jsonl"
        self._events = directory / "tensorboard"
        self._writer: SummaryWriter | None = None  # made when needed: a no-op run leaves no file
        self._last: dict[str, int] = {}  # prefix -> last step, so that most calls read nothing
        if kept and os.path.lexists(self._events):
            make_directory(self._events)  # before any work: one line where a file is in its place
        if kept and os.path.lexists(self._path):
            lines, complete = self._read()
            if not complete:
                self._rewrite(lines)
            self._index(lines)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_) -> None:
        if self._writer is not None:
            self._writer.close()

    def last_step(self, prefix: str) -> int:
        """The last step that has values of a prefix, or -1."""
        return self._last.get(prefix, -1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes values with slash names and one prefix, e.g. {"distill/loss": 0.3}, at a step.

        What is not finite is null in metrics.jsonl, for JSON has no word for it, and has no point in
        TensorBoard's curve.
        """
        if not self._kept:
            return
        numbers = {name: float(value) for name, value in values.items()}
        prefixes = _prefixes(numbers)
        for prefix in prefixes:
            if step <= self._last.get(prefix, -1):
                self._drop(prefix, step)
        line = {n: v if math.isfinite(v) else None for n, v in numbers.items()}
        with open(self._path, "a", encoding="utf-8") as file:  # closed, hence flushed, every line
            file.write(json.dumps({"step": step, **line}) + "\n")
        self._last.update(dict.fromkeys(prefixes, step))
        for name, value in line.items():
            if value is not None:
                self._tensorboard().add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """Shows a text, e.g. a whole trajectory, in TensorBoard; metrics.jsonl has numbers only."""
        if not self._kept:
            return
        self._tensorboard().add_text(name, code_block(text), step)

    def _drop(self, prefix: str, step: int) -> None:
        def dropped(line: dict[str, Any]) -> bool:
            return line["step"] >= step and prefix in _prefixes(line)

        if not self._path.exists():
            return
        lines, complete = self._read()
        kept = [line for line in lines if not dropped(line)]
        if len(kept) < len(lines) or not complete:
            self._rewrite(kept)
        self._index(kept)

    def _read(self) -> tuple[list[dict[str, Any]], bool]:
        """(readable lines, whether the file is made of such lines only and ends with one)."""
        # Not splitlines(): that also splits at characters that may stand inside a JSON string.
        with readable(self._path) as file:
            *parts, rest = file.read().decode("utf-8", errors="replace").split("\n")
        # A kill between a line and its line end leaves whole JSON that the next line would be
        # glued to: such a file is kept in full, and rewritten.
        lines, complete = [], not rest
        for part in [*parts, rest] if rest else parts:
            try:
                line = json.loads(part)
                if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                    raise ValueError("not a line of metrics")
                lines.append(line)
            except (ValueError, RecursionError):
                complete = False
        return lines, complete

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        with whole(self._path) as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _index(self, lines: list[dict[str, Any]]) -> None:
        self._last = {}
        for line in lines:
            for prefix in _prefixes(line):
                self._last[prefix] = max(line["step"], self._last.get(prefix, line["step"]))

    def _tensorboard(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = _summary_writer(str(self._events))
        return self._writer
