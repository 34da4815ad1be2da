"""Being told to stop: a signal, or a maintenance notice, and all processes stopping at the same step."""

from __future__ import annotations

import os
import signal
import threading
import urllib.error
import urllib.request

import jax
from jax.experimental import multihost_utils

EXIT_PREEMPTED = 75  # sysexits' EX_TEMPFAIL: run the same command again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of schedulers: at the end, and ahead of it
_POLL_SECONDS = 5.0


class Preemption:
    """A context in which `asked` tells when to save and leave.

    In a run of several processes the notice of one of them stops all, at the same step: jax's
    distributed runtime takes the SIGTERM and agrees on it.

    Args:
      notice_url: address polled for a maintenance notice, "" for none; any answer but NONE is one.
        On Google Cloud: http://metadata.google.internal/computeMetadata/v1/instance/maintenance-event
    """

    def __init__(self, notice_url: str):
        self._url = notice_url
        self._noted = threading.Event()
        self._left = threading.Event()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Preemption:
        # Handlers can only be set in the main thread; elsewhere (notebooks, tests) none is needed.
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, lambda *_: self._noted.set())
        if self._url:
            threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._left.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def asked(self, step: int) -> bool:
        """Whether to save and leave after `step`; every process calls it with the same steps."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted.is_set()

    def _poll(self) -> None:
        request = urllib.request.Request(self._url, headers={"Metadata-Flavor": "Google"})
        while not self._left.wait(_POLL_SECONDS):
            try:
                with urllib.request.urlopen(request, timeout=_POLL_SECONDS) as answer:
                    notice = answer.read().decode(errors="replace").strip()
            except (urllib.error.URLError, OSError):  # no answer is no notice
                continue
            if notice != "NONE":
                # The same way as a real one, which the distributed runtime listens to.
                os.kill(os.getpid(), signal.SIGTERM)
                return
