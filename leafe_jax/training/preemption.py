"""Being told to stop: a signal, or a maintenance notice, and all processes stopping at the same step."""

from __future__ import annotations

import itertools
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
    """

    def __init__(self, notice_url: str):
        self._url = notice_url
        self._noted = threading.Event()
        self._left = threading.Event()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Preemption:
        # Handlers can only be set in the main thread; elsewhere (notebooks, tests) none is needed.
        if threading.current_thread() is threading.main_thread():
            if jax.process_count() == 1:
                handlers = dict.fromkeys(SIGNALS, lambda *_: self._noted.set())
            else:  # the runtime has taken SIGTERM over, and knows nothing of the other
                handlers = {signal.SIGUSR1: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
        if self._url:
            threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(self, kind, *_) -> None:
        self._left.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if kind is None and self._noted.is_set() and self._previous:
            # It came after the last `asked`, and nobody has heard of it.
            os.kill(os.getpid(), signal.SIGTERM)

    def asked(self) -> bool:
        """Whether to save and leave now; every process calls it after each of its steps."""
        if jax.process_count() == 1:
            return self._noted.is_set()
        return multihost_utils.reached_preemption_sync_point(next(_calls))

    def _poll(self) -> None:
        request = urllib.request.Request(self._url, headers={"Metadata-Flavor": "Google"})
        while not self._left.wait(_POLL_SECONDS):
            try:
                with urllib.request.urlopen(request, timeout=_POLL_SECONDS) as answer:
                    notice = answer.read().decode(errors="replace").strip()
            except (urllib.error.URLError, OSError):  # no answer is no notice
                continue
            if self._left.is_set():  # while the answer came: nobody saves any more
                return
            if notice not in ("NONE", "FALSE"):
                self._noted.set()
                if jax.process_count() > 1:  # the others hear of it from the distributed runtime
                    os.kill(os.getpid(), signal.SIGTERM)
                return
