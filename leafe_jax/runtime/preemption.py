"""Preemption: a signal or a maintenance notice makes all processes save and stop at the same step."""

from __future__ import annotations

import contextlib
import contextvars
import http.client
import itertools
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from leafe_jax.errors import UserError
from leafe_jax.runtime import stopping

EXIT_PREEMPTED = stopping.CODES[signal.SIGTERM]
# SIGINT comes from a person. Schedulers send SIGTERM at the end of a job, and SIGUSR1 some time before it.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_POLL_SECONDS = 5.0
_AGAIN_SECONDS = 1.0  # a second SIGINT later than this after the first stops without saving
_MAX_NOTICE = 1000  # bytes

# Counts calls of reached_preemption_sync_point. jax's runtime agrees on the highest number reported so far
# plus one, and compares for equality. Step numbers would not do: they restart with every fit or continue
# from a checkpoint, so a notice that comes between two training loops would never match. This counter grows
# by one for as long as the process lives.
_calls = itertools.count(1)


_leaves_signals = contextvars.ContextVar("leaves signals alone", default=False)


@contextlib.contextmanager
def signals_left_alone() -> Iterator[None]:
    """A context in which `Preemption` installs no signal handlers, because the process is a notebook's or
    another program's. Ctrl-C there is a KeyboardInterrupt, as everywhere."""
    token = _leaves_signals.set(True)
    try:
        yield
    finally:
        _leaves_signals.reset(token)


class Preemption:
    """A context in which `asked` says when to save and stop.

    With several processes, a notice to one of them stops all at the same step: jax's distributed runtime
    receives the SIGTERM and agrees on the step. A notice that comes while nothing trains stops the next
    training after its first step.

    Args:
      notice_url: address to poll for a maintenance notice; "" polls nothing. Any answer except NONE and
        FALSE is a notice. On Google Cloud: .../maintenance-event or .../preempted under
        http://metadata.google.internal/computeMetadata/v1/instance

    Attributes:
      code: exit code of the process, valid once `asked` has returned True.

    Raises:
      UserError: notice_url is not an address.
    """

    _failure: Exception | None = None  # of the thread that polls

    def __init__(self, notice_url: str):
        if notice_url and not notice_url.startswith(("http://", "https://")):
            raise UserError(f"train.notice_url = {notice_url!r}: must be an http address, or ''")
        self._url = notice_url
        self.code = EXIT_PREEMPTED
        self._signal: tuple[int, float] | None = None  # the first signal, and when it came
        self._context = contextlib.ExitStack()
        self._noted = threading.Event()
        self._left = threading.Event()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Preemption:
        # Only the main thread can set handlers.
        main = threading.current_thread() is threading.main_thread()
        if main and not _leaves_signals.get():
            self._context.enter_context(stopping.saving())
            for number in SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue  # e.g. SIGINT in a background job of a script
                if (
                    number == signal.SIGTERM
                    and jax.process_count() > 1
                    and not stopping.taken_back()
                ):
                    continue  # jax's runtime handles it
                self._previous[number] = signal.signal(number, self._take)
        if self._url:
            threading.Thread(target=self._poll, name="notice", daemon=True).start()
        return self

    def __exit__(self, kind, *_) -> None:
        self._left.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._context.close()
        if kind is None and self._noted.is_set() and self._previous:
            # The notice came after the last `asked`, so nothing has acted on it: send it again.
            number = self._signal[0] if self._signal else signal.SIGTERM
            os.kill(os.getpid(), number if number == signal.SIGINT else signal.SIGTERM)

    def _take(self, number: int, frame) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal = number, now
            if number == signal.SIGINT:
                self.code = stopping.CODES[signal.SIGINT]
            self._note()
        elif number == signal.SIGINT and now - self._signal[1] > _AGAIN_SECONDS:
            previous = self._previous[number]
            if callable(previous):  # the user does not want to wait for the step and the save
                previous(number, frame)

    def _note(self) -> None:
        self._noted.set()
        if jax.process_count() > 1:  # the distributed runtime tells the other processes
            stopping.tell_runtime()

    def asked(self) -> bool:
        """True if the process must save and stop now. Every process must call it after each step.

        Raises:
          UserError: the thread that polls `notice_url` has died, so no notice would be seen.
        """
        if self._failure is not None:
            raise UserError(
                f"train.notice_url = {self._url!r}: polling has failed, so that no notice would be seen:"
                f" {type(self._failure).__name__}: {self._failure}"
            ) from self._failure
        if jax.process_count() == 1:
            return self._noted.is_set()
        return multihost_utils.reached_preemption_sync_point(next(_calls))

    def leaving(self) -> None:
        """Says that the state is saved and the process ends. Later signals are ignored."""
        stopping.note(signal.SIGINT if self.code != EXIT_PREEMPTED else signal.SIGTERM)

    def _poll(self) -> None:
        try:
            self._watch()
        except Exception as error:  # `asked` raises it: a thread's own exception may end nothing
            self._failure = error

    def _watch(self) -> None:
        """Waits for a notice, or for the end of training."""
        request = urllib.request.Request(self._url, headers={"Metadata-Flavor": "Google"})
        while not self._left.wait(_POLL_SECONDS):
            try:
                with urllib.request.urlopen(request, timeout=_POLL_SECONDS) as answer:
                    notice = answer.read(_MAX_NOTICE).decode(errors="replace").strip()
            except (OSError, http.client.HTTPException, ValueError):  # no answer means no notice
                continue
            if self._left.is_set():  # training ended while the answer came, so nothing would save
                return
            if notice not in ("NONE", "FALSE"):
                self._note()
                return
