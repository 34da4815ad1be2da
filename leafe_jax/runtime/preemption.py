"""Being told to stop: a signal, or a maintenance notice, and all processes stopping at the same step."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import threading
import time
import urllib.request

import jax
from jax.experimental import multihost_utils

from leafe_jax.errors import UserError
from leafe_jax.runtime import stopping

EXIT_PREEMPTED = stopping.CODES[signal.SIGTERM]
# A person's, and those of schedulers: at the end, and ahead of it.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_POLL_SECONDS = 5.0
_AGAIN_SECONDS = 1.0  # a second SIGINT after this time leaves without saving
_MAX_NOTICE = 1000  # bytes

# The runtime agrees on the highest number reported so far plus one, and compares for equality: steps,
# which start anew with every fit or go on from a checkpoint, would never meet a notice that came
# between two loops. These go on by one for as long as the process lives.
_calls = itertools.count(1)


class Preemption:
    """A context in which `asked` tells when to save and leave.

    In a run of several processes the notice of one of them stops all, at the same step: jax's
    distributed runtime takes the SIGTERM and agrees on it. One that comes while nobody trains stops
    the next training after its first step.

    Args:
      notice_url: address polled for a maintenance notice, "" for none; any answer but NONE and FALSE is
        one. On Google Cloud: .../maintenance-event or .../preempted under
        http://metadata.google.internal/computeMetadata/v1/instance

    Attributes:
      code: exit code of the process, once `asked` has said so.

    Raises:
      UserError: notice_url is no address.
    """

    def __init__(self, notice_url: str):
        if notice_url and not notice_url.startswith(("http://", "https://")):
            raise UserError(f"train.notice_url = {notice_url!r}: must be an http address, or ''")
        self._url = notice_url
        self.code = EXIT_PREEMPTED
        self._signal: tuple[int, float] | None = None  # the first one, and when it came
        self._context = contextlib.ExitStack()
        self._noted = threading.Event()
        self._left = threading.Event()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Preemption:
        # Handlers can only be set in the main thread; elsewhere (notebooks, tests) none is needed.
        if threading.current_thread() is threading.main_thread():
            self._context.enter_context(stopping.saving())
            for number in SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue  # e.g. SIGINT in a background job of a script
                if (
                    number == signal.SIGTERM
                    and jax.process_count() > 1
                    and not stopping.taken_back()
                ):
                    continue  # the runtime has it, and is the one to be told
                self._previous[number] = signal.signal(number, self._take)
        if self._url:
            threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(self, kind, *_) -> None:
        self._left.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._context.close()
        if kind is None and self._noted.is_set() and self._previous:
            # It came after the last `asked`, and nobody has heard of it.
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
            if callable(previous):  # a person does not want to wait for the step and the save
                previous(number, frame)

    def _note(self) -> None:
        self._noted.set()
        if jax.process_count() > 1:  # the others hear of it from the distributed runtime
            stopping.tell_runtime()

    def asked(self) -> bool:
        """Whether to save and leave now; every process calls it after each of its steps."""
        if jax.process_count() == 1:
            return self._noted.is_set()
        return multihost_utils.reached_preemption_sync_point(next(_calls))

    def leaving(self) -> None:
        """The state is saved, and the process ends: later signals are ignored."""
        stopping.note(signal.SIGINT if self.code != EXIT_PREEMPTED else signal.SIGTERM)

    def _poll(self) -> None:
        request = urllib.request.Request(self._url, headers={"Metadata-Flavor": "Google"})
        while not self._left.wait(_POLL_SECONDS):
            try:
                with urllib.request.urlopen(request, timeout=_POLL_SECONDS) as answer:
                    notice = answer.read(_MAX_NOTICE).decode(errors="replace").strip()
            except (OSError, http.client.HTTPException, ValueError):  # no answer is no notice
                continue
            if self._left.is_set():  # while the answer came: nobody saves any more
                return
            if notice not in ("NONE", "FALSE"):
                self._note()
                return
