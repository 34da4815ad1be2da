"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere.

The bar is tqdm's. The plain lines are our own: tqdm's rate would count work that an earlier process did.
"""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from leafe_jax.runtime.console import tell, visible

_LINE_EVERY = 10.0  # seconds between plain lines
_WINDOW = 12  # number of plain lines over which the rate is measured


def _duration(seconds: float) -> str:
    """A duration as text: 45 s, 12 min, 3 h 05 min."""
    seconds = max(seconds, 0.0)  # negative if the clock is set back
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _in_words(speed: float) -> str:
    number = "?" if not speed else f"{speed:.1f}" if speed >= 1 else f"{speed:.2g}"
    return f"{number} a second"


class _Bar(tqdm):
    """A bar without tqdm's monitor, a thread that redraws bars which skip updates; give it miniters=1.

    A closed terminal would kill that thread, and a thread that dies ends the run.
    """

    monitor_interval = 0


class Progress:
    """Shows on stderr how many of `total` units are done.

    If stderr is not a terminal, it prints a line at the first update, then at most one every ten seconds,
    and one at the end. A resumed phase first counts what was done before, which takes no time. So the rate
    ignores the first second of updates. It covers at most the last two minutes.

    Args:
      total: number of units.
      unit: what is counted, in the singular.
      label: name of the work.
      shown: False prints nothing, because another process does.
    """

    def __init__(self, total: int, unit: str, label: str, shown: bool = True):
        self.shown = shown
        self.total, self.unit, self.label = total, unit, label
        self.count = 0
        self._begin = time.monotonic()
        self._said: float | None = None  # time of the last plain line
        self._first: float | None = None  # time of the first update
        self._base = (self._begin, 0)  # (seconds, count) at which this process's own work begins
        self._marks = collections.deque([self._base], maxlen=_WINDOW)
        self._postfix = ""
        self._bar = None
        if shown and sys.stderr.isatty():
            self._on_bar(
                lambda: _Bar(
                    total=total, unit=visible(unit), desc=visible(label), dynamic_ncols=True,
                    miniters=1,
                )
            )  # fmt: skip

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
        """Counts `number` more units as done. `postfix` is shown after the rate, e.g. solved=12."""
        self.to(self.count + number, self.total, **postfix)

    def to(self, count: int, total: int, **postfix: object) -> None:
        """Sets the number of units that are done, and the total."""
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
        # A negative difference means that the clock was set back, which must not suppress lines.
        if self._said is None or not 0 <= now - self._said < _LINE_EVERY:
            self._said = now
            speed = self._speed(self._marks[0], now)
            if now > self._marks[0][0]:
                self._marks.append((now, count))
            left = f", {_duration(max(total - count, 0) / speed)} left" if speed else ""
            self._line(_in_words(speed) + left)

    def _speed(self, since: tuple[float, int], now: float) -> float:
        """Units per second since a mark; 0.0 if less than a second or no unit has passed."""
        seconds, done = now - since[0], self.count - since[1]
        return done / seconds if seconds >= 1 and done > 0 else 0.0

    def _line(self, ending: str) -> None:
        if not self.shown:
            return
        text = f"{self.label}: {self.count}/{self.total} {self.unit}s, {ending}{self._postfix}"
        tell(text)

    def _on_bar(self, call: Callable[[], Any]) -> None:
        """Calls a function that draws the bar. If the terminal is gone, the bar ends but not the run."""
        try:
            made = call()
        except (OSError, ValueError):
            self._bar, self.shown = None, False
            return
        if isinstance(made, tqdm):
            self._bar = made
