"""Writes metrics to TensorBoard and to metrics.jsonl."""

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
    """The prefixes in a line: what precedes the last slash of each name."""
    return {name.rpartition("/")[0] for name in line if name != "step"}


def code_block(text: str) -> str:
    """Markdown that shows a text verbatim, line by line.

    TensorBoard renders Markdown to HTML and would load images from anywhere. Lines indented by four spaces
    are code and are not rendered. Markdown also ends a line at a carriage return, so text is split there.
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
    """Writes scalars to TensorBoard's event files, and to metrics.jsonl with one line per step.

    A phase that was killed and resumed writes some steps again. Lines of the same prefix (what precedes the
    last slash of a name) from that step on are then replaced, so metrics.jsonl looks as if the phase had
    never stopped. TensorBoard's event files cannot be truncated; it shows the later of a step's two values.

    A line that a kill left incomplete is dropped when the file is opened. All other lines are kept.

    Args:
      directory: the workdir. Events go to `tensorboard/`, lines to `metrics.jsonl`.
      kept: False writes nothing, because another process does.

    Raises:
      UserError: metrics.jsonl or tensorboard/ exists and cannot be read or written.
    """

    def __init__(self, directory: Path, kept: bool = True):
        self._kept = kept
        self._path = directory / "metrics.jsonl"
        self._events = directory / "tensorboard"
        self._writer: SummaryWriter | None = (
            None  # made on first use: a run without work leaves no file
        )
        self._last: dict[
            str, int
        ] = {}  # prefix -> last step, so that most calls need not read the file
        if kept and os.path.lexists(self._events):
            make_directory(self._events)  # fails before any work if a file is in its place
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
        """The last step with values of a prefix, or -1."""
        return self._last.get(prefix, -1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes the values of a step, whose names share a prefix, e.g. {"leafe/loss": 0.3}.

        A value that is not finite is null in metrics.jsonl, because JSON cannot represent it, and is left
        out of TensorBoard's curve.
        """
        if not self._kept:
            return
        numbers = {name: float(value) for name, value in values.items()}
        prefixes = _prefixes(numbers)
        for prefix in prefixes:
            if step <= self._last.get(prefix, -1):
                self._drop(prefix, step)
        line = {n: v if math.isfinite(v) else None for n, v in numbers.items()}
        with open(self._path, "a", encoding="utf-8") as file:  # closed, so each line is flushed
            file.write(json.dumps({"step": step, **line}) + "\n")
        self._last.update(dict.fromkeys(prefixes, step))
        for name, value in line.items():
            if value is not None:
                self._tensorboard().add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """Writes a text, e.g. a trajectory, to TensorBoard. metrics.jsonl has numbers only."""
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
        """(readable lines, True if the file consists of such lines and the last one is complete)."""
        # Not splitlines(), which also splits at characters that may occur inside a JSON string.
        with readable(self._path) as file:
            *parts, rest = file.read().decode("utf-8", errors="replace").split("\n")
        # A kill may leave a complete last line without its newline. The line is kept, and the file is
        # rewritten; otherwise the next line would be appended to it.
        lines, complete = [], not rest
        for part in [*parts, rest] if rest else parts:
            try:
                line = json.loads(part)
                if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                    raise ValueError("not a metrics line")
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
