"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from leafe_jax.runtime.console import tell, visible

_LINE_EVERY = 10.0  # seconds between plain lines
_WINDOW = 12  # plain lines that the rate looks back over


def _duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 3 h 05 min."""
    seconds = max(seconds, 0.0)  # a clock that is set back
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _in_words(speed: float) -> str:
    number = "?" if not speed else f"{speed:.1f}" if speed >= 1 else f"{speed:.2g}"
    return f"{number} a second"


class Progress:
    """Counts `unit`s up to `total`, on stderr.

    Where stderr is no terminal: one line at the first update, one at most every ten seconds, one at
    the end. A resumed phase begins by counting what was done before, in no time at all: the rate
    starts from where the first second of updates ended, and looks back two minutes at most.

    Args:
      total: how many there will be.
      unit: what is counted, singular.
      label: what is going on.
      shown: False says nothing: another process does.
    """

    def __init__(self, total: int, unit: str, label: str, shown: bool = True):
        self.shown = shown
        self.total, self.unit, self.label = total, unit, label
        self.count = 0
        self._begin = time.monotonic()
        self._said: float | None = None  # when the last plain line was printed
        self._first: float | None = None  # when the first update came
        self._base = (self._begin, 0)  # (seconds, count) where the work of this process begins
        self._marks = collections.deque([self._base], maxlen=_WINDOW)
        self._postfix = ""
        self._bar = None
        if shown and sys.stderr.isatty():
            self._on_bar(
                lambda: tqdm(
                    total=total, unit=visible(unit), desc=visible(label), dynamic_ncols=True
                )
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._on_bar(self._bar.close)
        else:
            now = time.monotonic()
            speed = self._speed(self._base, now)
            self._line(f"{_in_words(speed)}, took {_duration(now - self._begin)}")

    def update(self, number: int, **postfix: object) -> None:
        """`number` more are done; `postfix` is shown behind, e.g. solved=12."""
        self.to(self.count + number, self.total, **postfix)

    def to(self, count: int, total: int, **postfix: object) -> None:
        """`count` of `total` are done."""
        step, self.count, self.total = count - self.count, count, total
        if postfix:
            self._postfix = "".join(f", {name} {value}" for name, value in postfix.items())
        if self._bar is not None:
            self._bar.total = total
            if postfix:
                shown = {name: visible(value) for name, value in postfix.items()}
                self._bar.set_postfix(shown, refresh=False)
            self._on_bar(lambda: self._bar.update(step))
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now
        if now - self._first < 1:
            self._base = self._marks[0] = (now, count)
        # A clock that is set back must not silence the lines.
        if self._said is None or not 0 <= now - self._said < _LINE_EVERY:
            self._said = now
            speed = self._speed(self._marks[0], now)
            if now > self._marks[0][0]:
                self._marks.append((now, count))
            left = f", {_duration(max(total - count, 0) / speed)} left" if speed else ""
            self._line(_in_words(speed) + left)

    def _speed(self, since: tuple[float, int], now: float) -> float:
        """Units a second since a mark; 0.0 when there is no rate yet that would mean anything."""
        seconds, done = now - since[0], self.count - since[1]
        return done / seconds if seconds >= 1 and done > 0 else 0.0

    def _line(self, ending: str) -> None:
        if not self.shown:
            return
        text = f"{self.label}: {self.count}/{self.total} {self.unit}s, {ending}{self._postfix}"
        tell(text)

    def _on_bar(self, call: Callable[[], Any]) -> None:
        """Calls what draws the bar. A terminal that is gone ends the bar, not the run."""
        try:
            made = call()
        except (OSError, ValueError):
            self._bar, self.shown = None, False
            return
        if isinstance(made, tqdm):
            self._bar = made
