"""Metrics to TensorBoard and to metrics.jsonl, one line a step."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class Metrics:
    """Writes scalars twice: for TensorBoard and for whoever has none.

    A phase that was killed and resumed writes some steps again: the lines of the same prefix (what
    stands before the last slash) from that step on are replaced, so metrics.jsonl reads as if
    nothing had happened.

    Args:
      directory: the workdir; events go to `tensorboard/`, lines to `metrics.jsonl`.
    """

    def __init__(self, directory: Path):
        self._path = directory / "metrics.jsonl"
        self._events = directory / "tensorboard"
        self._writer: SummaryWriter | None = None  # made when needed: a no-op run leaves no file
        self._lines: list[dict] = []
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    self._lines.append(json.loads(line))
                except ValueError:
                    self._rewrite()  # torn by a kill; what follows is written again
                    break

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_) -> None:
        if self._writer is not None:
            self._writer.close()

    def _rewrite(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in self._lines))
        partial.replace(self._path)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes values with slash names and one prefix, e.g. {"distill/loss": 0.3}, at a step."""
        prefix = next(iter(values)).rpartition("/")[0]
        kept = [
            line
            for line in self._lines
            if line["step"] < step or all(k.rpartition("/")[0] != prefix for k in line)
        ]
        if len(kept) < len(self._lines):
            self._lines = kept
            self._rewrite()
        line = {"step": step, **{name: float(value) for name, value in values.items()}}
        self._lines.append(line)
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer is None:
            self._writer = SummaryWriter(str(self._events))
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)
