"""The inside of the sandbox: a warm interpreter that forks once per program.

The mechanisms (`mechanisms.py`) run it as a script; the host imports it for the formats only. It uses
only the standard library. Requests arrive on descriptor 0 and replies leave on 1, both as fixed binary
records: the host never unpickles anything from here. A program runs in a fork whose descriptors 0, 1
and 2 are anonymous files in memory. It has no other descriptor and no way to reach this process.
"""

import builtins
import collections
import ctypes
import functools
import gc
import importlib.machinery
import io
import linecache
import math
import operator
import os
import resource
import signal
import struct
import sys
import threading
import time
import traceback
import types

MAGIC = b"LSB1"
STATUSES = (
    "ok",
    "runtime_error",
    "compile_error",
    "time_limit",
    "memory_limit",
    "output_limit",
    "sandbox_error",
)
# magic; CPU s, wall s; memory, output, open files, threads; lengths of program, tests, stdin,
# prelude
REQUEST = struct.Struct("<4sddQQIIIIII")
# magic; status; exit code, negative for a signal; True if the tests reached their end; CPU s, wall s;
# peak bytes; lengths of out, err
REPLY = struct.Struct("<4sBi?ddQII")
ERROR_BYTES = 16384  # of standard error that are reported
_CUT = b" [...] "  # in the middle of longer ones: the exception's name may be far from the end
FILE_NAME = "program.py"
PRELUDE_NAME = "prelude.py"
TESTS_NAME = "tests.py"
_STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr")  # index = descriptor
# The `__name__` of a program whose functions are called by tests. As if they had imported it, its main
# block does not run.
MODULE_NAME = "program"

# Packages that a program may import in addition to the standard library, if the host has them.
PACKAGES = ("numpy",)
# One thread each: a thread pool would use memory and CPU time that count against the program.
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER_MODE = 4, 22, 38, 2
# Imported before the first fork, so that a program's own import costs nothing.
_WARM = (
    "_sitebuiltins", "array", "atexit", "bisect", "collections", "copy", "dataclasses",
    "datetime", "decimal", "enum", "fractions", "functools", "heapq", "io", "itertools", "json",
    "operator", "queue", "random", "re", "statistics", "string", "textwrap", "typing",
)  # fmt: skip


# -- channel ---------------------------------------------------------------------------------------
def read_exactly(fd, size):
    """`size` bytes, or fewer at the end of the stream."""
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# -- the program's process -------------------------------------------------------------------------
class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_char_p)]


def _prctl(*arguments):
    if _LIBC.prctl(*arguments, *[ctypes.c_ulong(0)] * (5 - len(arguments))) != 0:
        raise OSError(ctypes.get_errno(), f"prctl{arguments[:1]}")


def _restrict(request, seccomp):
    _, cpu, _, memory, output, files, threads, *_ = request
    seconds = max(1, math.ceil(cpu))
    for name, soft, hard in (
        ("CPU", seconds, seconds + 1),
        ("AS", memory, memory),
        ("FSIZE", output + 1, output + 1),  # one byte more than allowed shows that it was too much
        ("NOFILE", files, files),
        ("NPROC", threads, threads),
        ("CORE", 0, 0),
    ):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (soft, hard))
    if seccomp:
        program = _Program(len(seccomp) // 8, seccomp)
        _prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
        _prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER_MODE), ctypes.byref(program))


def _compiled(source, name):
    text = source.decode("utf-8", "surrogatepass").removeprefix("\ufeff")  # as for a file
    code = compile(text, name, "exec", dont_inherit=True)
    # So tracebacks show lines of a file that does not exist. Not for tests: the program could read
    # them here.
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    return code


def _hide(data):
    """(address, size) of a copy of `data` that no Python object holds; the caller frees it."""
    address = _LIBC.malloc(max(1, len(data)))
    ctypes.memmove(address, data, len(data))
    return address, len(data)


def _steps(codes, namespace, hidden):
    """The calls to make in turn: the program, then, if there are tests, the tests and the word.

    A program can reach every frame below it and every module, and can replace anything there: exec,
    compile, the functions of this file. So the calls after it are bound before it runs, in objects
    that only C loops hold. Between the program and the word, no Python line runs except the tests', so
    a trace function cannot jump over anything else.
    """
    steps = [functools.partial(exec, code, namespace) for code in codes]
    if hidden:
        word, (address, size) = hidden
        hidden.clear()  # the program can see frames that hold this list
        # Lazy: nothing is read before the loop reaches it.
        texts = map(bytes, map((ctypes.c_char * size).from_address, [address]))
        texts = map(str, texts, ["utf-8"], ["surrogatepass"])
        tests = map(compile, texts, [TESTS_NAME], ["exec"], [0], [True])
        steps.append(functools.partial(collections.deque, map(exec, tests, [namespace]), 0))
        # C's write from C memory: no Python object ever holds the word.
        arguments = 1, ctypes.c_void_p(word[0]), ctypes.c_size_t(word[1])
        steps.append(functools.partial(_LIBC.write, *arguments))
    return steps


def _exit_code(exit_):
    if exit_.code is None:
        return 0
    if isinstance(exit_.code, int):
        return exit_.code & 0xFF
    print(exit_.code, file=sys.stderr)
    return 1


def _flush(stream):
    """Flushes like the interpreter at exit; False if some output could not be written."""
    try:
        closed = stream is None or stream.closed
    except BaseException:  # the program may have put anything there
        closed = False
    try:
        if not closed:
            stream.flush()
    except BaseException:
        return False
    return True


def _run(codes, hidden):
    """Runs the program until its threads end; returns its exit code.

    Without tests, it runs like `python program.py`. With tests, it is a module that they import.
    """
    main = types.ModuleType(MODULE_NAME if hidden else "__main__")
    main.__dict__.update(__builtins__=builtins, __file__=FILE_NAME)
    sys.modules[main.__name__] = sys.modules["__main__"] = main
    sys.argv = [FILE_NAME]
    exit_code = 0
    try:
        collections.deque(map(operator.call, _steps(codes, main.__dict__, hidden)), maxlen=0)
    except SystemExit as error:
        exit_code = _exit_code(error)
    except BaseException as error:
        exit_code = 1
        inside = error.__traceback__.tb_next  # without the frame of this function
        traceback.print_exception(type(error), error, inside)
    threading._shutdown()  # a program may end while its threads still work
    sys.modules["atexit"]._run_exitfuncs()
    flushed = [_flush(stream) for stream in (sys.stdout, sys.stderr)]
    return exit_code if exit_code or all(flushed) else 120


def _be_the_program(request, sources, hidden, seccomp, files, phase):
    exit_code = 1
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for number, fd in enumerate((*files, phase)):
            os.dup2(fd, number)
        os.closerange(4, 1 << 16)
        _restrict(request, seccomp)
        try:
            codes = [_compiled(*source) for source in sources]
        except Exception as error:  # a hostile source raises more than SyntaxError
            write_all(2, "".join(traceback.format_exception_only(error)).encode(errors="replace"))
            return
        # Closed before the program's first line, so it cannot forge this message.
        os.write(3, b"r")
        os.close(3)
        sys.modules["random"].seed(0)  # the same program prints the same in every worker
        exit_code = _run(codes, hidden)
    finally:
        os._exit(exit_code)


# -- the warm process ------------------------------------------------------------------------------
def _wait(pid, seconds):
    """(status, usage, killed for its wall time) of the program's process."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if left > 0:
            signal.sigtimedwait([signal.SIGCHLD], left)
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage, False
        if left <= 0:
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            return status, usage, True


def _verdict(request, exit_code, usage, late, sizes, started, error):
    _, cpu, _, memory, output, *_ = request
    seconds, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    if late or seconds > cpu or exit_code == -signal.SIGXCPU:
        return "time_limit"
    if max(sizes) > output or exit_code == -signal.SIGXFSZ:
        return "output_limit"
    if not started:  # also if the compiler raises MemoryError, which is about its own stack
        return "compile_error"
    last_line = error.rstrip().rpartition(b"\n")[2]
    if exit_code and (
        last_line.startswith(b"MemoryError") or (exit_code < 0 and peak > 0.8 * memory)
    ):
        return "memory_limit"
    return "runtime_error" if exit_code else "ok"


def _play(request, sources, hidden, stdin, seccomp):
    """Runs one program and returns the reply record."""
    output_limit = request[4]
    files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    heard, phase = os.pipe()
    try:
        write_all(files[0], stdin)
        os.lseek(files[0], 0, os.SEEK_SET)
        begun = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _be_the_program(request, sources, hidden, seccomp, files, phase)
        os.close(phase)
        phase = None
        status, usage, late = _wait(pid, request[2])
        wall = time.monotonic() - begun
        started = os.read(heard, 1) == b"r"
        sizes = [os.fstat(fd).st_size for fd in files[1:]]
        out = os.pread(files[1], min(sizes[0], output_limit), 0)
        err = _both_ends(files[2], sizes[1])
    finally:
        for fd in (*files, heard, *([] if phase is None else [phase])):
            os.close(fd)
    exit_code = os.waitstatus_to_exitcode(status)
    name = _verdict(request, exit_code, usage, late, sizes, started, err)
    out, finished = _take_word(out, hidden)
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    numbers = (STATUSES.index(name), exit_code, finished, cpu, wall, peak, len(out), len(err))
    return REPLY.pack(MAGIC, *numbers) + out + err


def _both_ends(fd, size):
    """The content, or its two ends if it has more than ERROR_BYTES."""
    if size <= ERROR_BYTES:
        return os.pread(fd, size, 0)
    half = (ERROR_BYTES - len(_CUT)) // 2
    return os.pread(fd, half, 0) + _CUT + os.pread(fd, half, size - half)


def _take_word(out, hidden):
    """(output without the word, True if it had the word: it is written only after the tests)."""
    if not hidden:
        return out, False
    word = ctypes.string_at(*hidden[0])
    return out.replace(word, b""), word in out


def _become(uid):
    """Gives up root for good, for a user that nothing else on the host has."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _serve():
    (size,) = struct.unpack("<I", read_exactly(0, 4))
    seccomp = read_exactly(0, size)
    write_all(1, MAGIC)
    while True:
        header = read_exactly(0, REQUEST.size)
        if len(header) < REQUEST.size:
            return  # the host closed the channel
        request = REQUEST.unpack(header)
        program = read_exactly(0, request[7])
        # Hidden before the fork, since the program can inspect its copies of this file's frames.
        hidden = [_hide(os.urandom(16)), _hide(read_exactly(0, request[8]))] if request[8] else []
        stdin, prelude = read_exactly(0, request[9]), read_exactly(0, request[10])
        sources = [(program, FILE_NAME)]
        if prelude:
            sources.insert(0, (prelude, PRELUDE_NAME))
        write_all(1, _play(request, sources, hidden, stdin, seccomp))
        for address, _ in hidden:
            _LIBC.free(ctypes.c_void_p(address))


def _open(file, *arguments, _open=open, **options):
    """`open` with /dev/stdin as descriptor 0, since there is neither /dev nor /proc."""
    if isinstance(file, str | os.PathLike) and os.fspath(file) in _STREAMS:
        # A copy, since closing the file closes its descriptor.
        file = os.dup(_STREAMS.index(os.fspath(file)))
    return _open(file, *arguments, **options)


class _Packages:
    """Finds PACKAGES in one directory, but nothing else there.

    They are imported only if a program asks, since otherwise every fork would pay for them.
    """

    def __init__(self, directory):
        self.directory = directory

    def find_spec(self, name, path=None, target=None):
        if name not in PACKAGES:
            return None
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
        return importlib.machinery.PathFinder.find_spec(name, [self.directory])


def _main():
    uid, packages = sys.argv[1:]
    if uid:
        _become(int(uid))
    os.environ.clear()
    if packages:
        sys.meta_path.append(_Packages(packages))
    _prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0))  # closed to ptrace and /proc/PID/mem
    for name in _WARM:
        __import__(name)
    sys.set_int_max_str_digits(0)  # correct answers may have more digits than the default allows
    builtins.exit = sys.modules["_sitebuiltins"].Quitter("exit", "Ctrl-D")  # site is not loaded
    builtins.open = io.open = _open
    builtins.quit = sys.modules["_sitebuiltins"].Quitter("quit", "Ctrl-D")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    gc.collect()
    gc.freeze()  # so the forks' collectors do not touch these objects, nor copy their pages
    _serve()
    os._exit(0)  # there is nothing to clean up, and this is faster than a normal exit


if __name__ == "__main__":
    _LIBC = ctypes.CDLL(None, use_errno=True)
    _LIBC.malloc.restype, _LIBC.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    _main()
