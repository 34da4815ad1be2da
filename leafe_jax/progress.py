"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_LINE_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Counts `unit`s up to `total`.

    Args:
      total: how many there will be.
      unit: what is counted, singular.
      label: what is going on.
    """

    def __init__(self, total: int, unit: str, label: str):
        self.total, self.unit, self.label = total, unit, label
        self.count = 0
        self._begin = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, unit=unit, desc=label, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._line()

    def update(self, number: int) -> None:
        """`number` more are done."""
        self.to(self.count + number, self.total)

    def to(self, count: int, total: int) -> None:
        """`count` of `total` are done."""
        self.total = total
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(count - self.count)
        self.count = count
        now = time.monotonic()
        if self._bar is None and now - self._last >= _LINE_EVERY:
            self._last = now
            self._line()

    def _line(self) -> None:
        seconds = time.monotonic() - self._begin
        rate = self.count / seconds if seconds > 0 else 0.0
        left = f", {(self.total - self.count) / rate:.0f} s left" if rate > 0 else ""
        print(
            f"{self.label}: {self.count}/{self.total} {self.unit}s, {rate:.1f} a second{left}",
            file=sys.stderr,
            flush=True,
        )
