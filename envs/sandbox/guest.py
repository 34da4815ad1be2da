"""The inside of the sandbox: a warm interpreter that forks once per program.

Run as a script by the mechanisms (`mechanisms.py`); the host imports it for the formats only. It
uses nothing but the standard library. Requests arrive on
descriptor 0, replies leave on 1, both as fixed binary records: nothing that comes out of here is
ever unpickled. A program runs in a fork whose descriptors 0, 1 and 2 are anonymous files in
memory; it has no other descriptor and no way to reach this process.
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
# magic; status; exit code, negative for a signal; whether the tests came to their end; CPU s,
# wall s; peak bytes; lengths of out, err
REPLY = struct.Struct("<4sBi?ddQII")
ERROR_BYTES = 16384  # of standard error that are reported
_CUT = b" [...] "  # in the middle of a longer one: the exception's name may be far from its end
FILE_NAME = "program.py"
PRELUDE_NAME = "prelude.py"
TESTS_NAME = "tests.py"
_STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr")  # their places are their descriptors
# The name of a program whose functions are called by tests, as if they had imported it: its main
# block does not run.
MODULE_NAME = "program"

# Packages that a program may import beside the standard library, where the host has them.
PACKAGES = ("numpy",)
# One thread each: a pool of threads at import takes memory and processor time that count.
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
        ("FSIZE", output + 1, output + 1),  # one more than is allowed shows that it was too much
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
    text = source.decode("utf-8", "surrogatepass").removeprefix("\ufeff")  # as of a file
    code = compile(text, name, "exec", dont_inherit=True)
    # Tracebacks show the offending line of a file that does not exist. Not so the tests': whatever
    # holds them can be read by the program.
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    return code


def _hide(data):
    """Copies `data` to where no Python object holds it; (address, size), to be freed."""
    address = _LIBC.malloc(max(1, len(data)))
    ctypes.memmove(address, data, len(data))
    return address, len(data)


def _steps(codes, namespace, hidden):
    """What is to be called in turn: the program and then, if there are tests, they and the word.

    A program reaches every frame below it, every module and everything in them, and may replace what
    it likes there: exec, compile, this very file's functions. So what is called after it is bound
    before it runs, in objects that only C's loops hold; and as there is no line of Python between
    the program and the word but for the tests', no trace function gets to jump over anything else.
    """
    steps = [functools.partial(exec, code, namespace) for code in codes]
    if hidden:
        word, (address, size) = hidden
        hidden.clear()  # the list is in frames that the program sees
        # Lazy: nothing is read before the loop comes to it.
        texts = map(bytes, map((ctypes.c_char * size).from_address, [address]))
        texts = map(str, texts, ["utf-8"], ["surrogatepass"])
        tests = map(compile, texts, [TESTS_NAME], ["exec"], [0], [True])
        steps.append(functools.partial(collections.deque, map(exec, tests, [namespace]), 0))
        # By C's write, out of C's memory: at no time is there a Python object that holds the word.
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
    """As the interpreter does at its end: whether all that was printed is out, if it can be."""
    try:
        closed = stream is None or stream.closed
    except BaseException:  # whatever a program may have put there
        closed = False
    try:
        if not closed:
            stream.flush()
    except BaseException:
        return False
    return True


def _run(codes, hidden):
    """Runs the program to the end of its threads; its exit code.

    Without tests it runs as `python program.py` does. With tests it is a module that they import.
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
    threading._shutdown()  # a program may leave its work to a thread and fall off its end
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
        # Closed before the program's first line: it cannot forge what is said here.
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
    if not started:  # also where the compiler says MemoryError: it means its own stack
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
    """What there is, or the two ends of what is more than ERROR_BYTES."""
    if size <= ERROR_BYTES:
        return os.pread(fd, size, 0)
    half = (ERROR_BYTES - len(_CUT)) // 2
    return os.pread(fd, half, 0) + _CUT + os.pread(fd, half, size - half)


def _take_word(out, hidden):
    """(output without the word, whether it was there: only who ends the tests can say it)."""
    if not hidden:
        return out, False
    word = ctypes.string_at(*hidden[0])
    return out.replace(word, b""), word in out


def _become(uid):
    """Gives up root for good: a program has no user in common with anything on the host."""
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
        # Hidden before the fork: the program can look into its copies of the frames of this file.
        hidden = [_hide(os.urandom(16)), _hide(read_exactly(0, request[8]))] if request[8] else []
        stdin, prelude = read_exactly(0, request[9]), read_exactly(0, request[10])
        sources = [(program, FILE_NAME)]
        if prelude:
            sources.insert(0, (prelude, PRELUDE_NAME))
        write_all(1, _play(request, sources, hidden, stdin, seccomp))
        for address, _ in hidden:
            _LIBC.free(ctypes.c_void_p(address))


def _open(file, *arguments, _open=open, **options):
    """`open`, for which /dev/stdin is descriptor 0: inside there is neither /dev nor /proc."""
    if isinstance(file, str | os.PathLike) and os.fspath(file) in _STREAMS:
        # Not the descriptor itself, which closing the file would close.
        file = os.dup(_STREAMS.index(os.fspath(file)))
    return _open(file, *arguments, **options)


class _Packages:
    """Finds PACKAGES in one directory and nothing else that lies there.

    None is imported before a program asks: the others would pay for it at every fork.
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
    sys.set_int_max_str_digits(0)  # a right answer may have more digits than the default allows
    builtins.exit = sys.modules["_sitebuiltins"].Quitter("exit", "Ctrl-D")  # site is not loaded
    builtins.open = io.open = _open
    builtins.quit = sys.modules["_sitebuiltins"].Quitter("quit", "Ctrl-D")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    gc.collect()
    gc.freeze()  # the forks' collector leaves these objects, and so their pages, alone
    _serve()
    os._exit(0)  # nothing to tidy up: faster than the interpreter's own end


if __name__ == "__main__":
    _LIBC = ctypes.CDLL(None, use_errno=True)
    _LIBC.malloc.restype, _LIBC.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    _main()
