"""How a run is stopped: by SIGINT, by SIGTERM, or since one of its threads has died.

The main thread gets an exception, so that files and worker processes are closed on its way out. It may
be inside a compiler for minutes, where no Python code runs: a watching thread ends the process when
the main thread has not come out in time. Training takes the signals itself and saves its state first
(training/preemption.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}  # 128 + SIGINT; sysexits' EX_TEMPFAIL
RESUME = "finished work is kept: run the same command again to resume"
_THREAD_DIED = signal.SIGUSR2  # sent to the main thread by the thread that dies
_GRACE = 3.0  # seconds for the main thread to close everything

_first: int | None = None  # the signal that stops this process
_failure: BaseException | None = None  # what a thread has died of
_runtime_handler: Callable[[int], None] | None = None
_saving = threading.Event()  # training saves before it leaves: it takes the time it needs


class Stopped(BaseException):
    """A signal has stopped the run.

    Attributes:
      number: the signal.
      code: exit code of the process.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; {RESUME}")
        self.number, self.code = number, CODES[number]


@contextlib.contextmanager
def handlers(end: Callable[[str, int], None]) -> Iterator[None]:
    """A context in which signals and dying threads raise in the main thread; for that thread only.

    Args:
      end: end(message, code) prints the message and ends the process. It is called in another thread
        when the main thread does not react.

    Raises:
      Stopped: SIGINT or SIGTERM came.
      BaseException: what a background thread has died of.
    """
    global _first, _failure
    _first = _failure = None
    read, write = os.pipe()
    os.set_blocking(write, False)
    left = threading.Event()
    old = {number: signal.getsignal(number) for number in (*CODES, _THREAD_DIED)}
    for number, handler in old.items():
        if handler is not signal.SIG_IGN:  # as in a background job of a script
            signal.signal(number, _handle)
    old_wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    old_hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook = _thread_died
    # Of errors in destructors and callbacks: `Stopped`, after which the watcher ends the process, and
    # what libraries run into after an error that is told already.
    sys.unraisablehook = lambda args: None
    threading.Thread(target=_watch, args=(read, end, left), name="stopping", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old.items():
            # A second signal, as many schedulers send, must neither add a line nor change the code.
            ended = number in CODES and _first is not None
            signal.signal(number, signal.SIG_IGN if ended else handler)
        threading.excepthook, sys.unraisablehook = old_hooks
        os.close(write)  # the watcher's read ends


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """A context that signals do not end, however long it takes: who is in it saves and leaves."""
    _saving.set()
    try:
        yield
    finally:
        _saving.clear()


def requested() -> Stopped | None:
    """The signal that stops this run, if one has come. An error that comes after it is its doing:
    some libraries catch what is raised in them, and raise errors of their own."""
    return None if _first is None else Stopped(_first)


def note(number: int) -> None:
    """Notes a signal that is told by somebody else, who leaves: later ones are ignored."""
    global _first
    if _first is None:
        _first = number


def take_back() -> None:
    """Takes SIGTERM over from jax's distributed runtime, which has set a handler of its own."""
    global _runtime_handler
    if signal.getsignal(signal.SIGTERM) is not _handle:  # outside of `handlers`: nobody else asked
        return
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    address = library.signal(int(signal.SIGTERM), None)  # None is SIG_DFL
    signal.signal(signal.SIGTERM, _handle)
    if address not in (None, 0, 1, ctypes.c_void_p(-1).value):  # SIG_DFL, SIG_IGN, SIG_ERR
        _runtime_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)


def taken_back() -> bool:
    """Whether `take_back` has found a handler of the runtime's."""
    return _runtime_handler is not None


def tell_runtime() -> None:
    """Lets jax's distributed runtime know of a SIGTERM, so that all processes stop at one step."""
    if _runtime_handler is not None:
        _runtime_handler(int(signal.SIGTERM))
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def _handle(number: int, _) -> None:
    global _first
    if number == _THREAD_DIED:
        if _failure is not None and _first is None:
            raise _failure
    elif _first is None:  # the main thread is on its way out already when a second one comes
        _first = number
        raise Stopped(number)


def _thread_died(args) -> None:
    """threading.excepthook: an error in a thread is the run's."""
    global _failure
    if args.exc_value is None or _failure is not None or _first is not None:
        return
    _failure = args.exc_value
    signal.pthread_kill(threading.main_thread().ident, _THREAD_DIED)


def _watch(read: int, end: Callable[[str, int], None], left: threading.Event) -> None:
    """Ends the process where the main thread does not."""
    with open(read, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            if number[0] not in (*CODES, _THREAD_DIED) or _saving.is_set():
                continue
            if left.wait(_GRACE):
                return
            if number[0] in CODES:
                stopped = Stopped(number[0])
                end(str(stopped), stopped.code)
            elif _failure is not None:
                end(f"{type(_failure).__name__}: {_failure}", 1)
