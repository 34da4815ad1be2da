"""Stops a run: on SIGINT, on SIGTERM, or because one of its threads has died.

The main thread gets an exception, so that it closes files and worker processes on its way out. It may be
inside the compiler for minutes, where no Python code runs, so a watcher thread ends the process if the main
thread does not react in time. Training handles the signals itself and saves its state first
(runtime/preemption.py).
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
_THREAD_DIED = signal.SIGUSR2  # sent to the main thread by a thread that dies
_GRACE = 3.0  # seconds that the main thread has to close everything

_first: int | None = None  # the signal that stops this process
_failure: BaseException | None = None  # the exception that killed a thread
_runtime_handler: Callable[[int], None] | None = None
_saving = threading.Event()  # set while training may save its state, which has no time limit


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
    """A context in which signals and dying threads raise an exception in the main thread.

    Only the main thread may enter it.

    Args:
      end: end(message, code) prints the message and ends the process. It is called from another thread if
        the main thread does not react.

    Raises:
      Stopped: SIGINT or SIGTERM came.
      BaseException: the exception that killed a background thread.
    """
    global _first, _failure
    _first = _failure = None
    read, write = os.pipe()
    os.set_blocking(write, False)
    left = threading.Event()
    old = {number: signal.getsignal(number) for number in (*CODES, _THREAD_DIED)}
    for number, handler in old.items():
        if handler is not signal.SIG_IGN:  # ignored e.g. in a background job of a script
            signal.signal(number, _handle)
    old_wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    old_hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook = _thread_died
    # Errors in destructors and callbacks are not printed. They are `Stopped`, after which the watcher ends
    # the process, or consequences of an error that has been reported already.
    sys.unraisablehook = lambda args: None
    threading.Thread(target=_watch, args=(read, end, left), name="stopping", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old.items():
            # Many schedulers send a second signal. It must neither print a line nor change the exit code.
            ended = number in CODES and _first is not None
            signal.signal(number, signal.SIG_IGN if ended else handler)
        threading.excepthook, sys.unraisablehook = old_hooks
        os.close(write)  # the watcher's read ends


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """A context that the watcher does not end, however long it takes: the code in it saves and stops."""
    _saving.set()
    try:
        yield
    finally:
        _saving.clear()


def requested() -> Stopped | None:
    """The signal that stops this run, or None.

    An error raised after the signal is a consequence of it: some libraries catch `Stopped` and raise their
    own errors.
    """
    return None if _first is None else Stopped(_first)


def note(number: int) -> None:
    """Records a signal that the caller has handled itself. Later signals are ignored."""
    global _first
    if _first is None:
        _first = number


def take_back() -> None:
    """Takes SIGTERM back from jax's distributed runtime, which has installed its own handler."""
    global _runtime_handler
    if (
        signal.getsignal(signal.SIGTERM) is not _handle
    ):  # outside of `handlers` the runtime keeps it
        return
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    address = library.signal(int(signal.SIGTERM), None)  # None is SIG_DFL
    signal.signal(signal.SIGTERM, _handle)
    if address not in (None, 0, 1, ctypes.c_void_p(-1).value):  # SIG_DFL, SIG_IGN, SIG_ERR
        _runtime_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)


def taken_back() -> bool:
    """True if `take_back` found a handler of the runtime."""
    return _runtime_handler is not None


def tell_runtime() -> None:
    """Passes a SIGTERM on to jax's distributed runtime, so that all processes stop at the same step."""
    if _runtime_handler is not None:
        _runtime_handler(int(signal.SIGTERM))
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def _handle(number: int, _) -> None:
    global _first
    if number == _THREAD_DIED:
        if _failure is not None and _first is None:
            raise _failure
    elif _first is None:  # on a second signal the main thread is already on its way out
        _first = number
        raise Stopped(number)


def _thread_died(args) -> None:
    """A threading.excepthook that stops the run with the thread's exception."""
    global _failure
    if args.exc_value is None or _failure is not None or _first is not None:
        return
    _failure = args.exc_value
    signal.pthread_kill(threading.main_thread().ident, _THREAD_DIED)


def _watch(read: int, end: Callable[[str, int], None], left: threading.Event) -> None:
    """Ends the process if the main thread does not do so in time."""
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
