"""Metrics to TensorBoard and to metrics.jsonl, one line a step."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class Metrics:
    """Writes scalars twice: for TensorBoard and for whoever has none.

    Args:
      directory: the workdir; events go to `tensorboard/`, lines to `metrics.jsonl`.
    """

    def __init__(self, directory: Path):
        self._path = directory / "metrics.jsonl"
        self._writer = SummaryWriter(str(directory / "tensorboard"))
        self._lines = self._read()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_) -> None:
        self._writer.close()

    def _read(self) -> list[dict]:
        lines = []
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break  # torn by a kill: the rest is written again
        return lines

    def rewind(self, prefix: str, step: int) -> None:
        """Drops lines of `prefix`/... from `step` on; a resumed phase writes them again."""
        self._lines = [
            line
            for line in self._lines
            if line["step"] < step or not any(k.startswith(prefix + "/") for k in line)
        ]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in self._lines))
        partial.replace(self._path)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes slash-named values, e.g. {"distill/loss": 0.3}, at a step."""
        line = {"step": step, **{name: float(value) for name, value in values.items()}}
        self._lines.append(line)
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)
