"""What ordinary programs get from the sandbox, and the parts that need no program to check."""

import subprocess
import sys

import pytest

from envs import sandbox
from envs.base import EnvDataError
from envs.sandbox import Job, Limits, Sandbox, mechanisms, seccomp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
QUICK = Limits(cpu_seconds=2, wall_seconds=5)


@pytest.fixture(scope="module", params=mechanisms.NAMES)
def pool(request):
    if request.param not in sandbox.available():
        pytest.skip(f"{request.param} does not work on this machine")
    with Sandbox(request.param, allow_weak=True, workers=2) as pool:
        yield pool


# Programs that do what contest programs do; the interpreter itself says what they print.
ORDINARY = {
    "input": "n = int(input())\nprint(n * 2)",
    "read all": "import sys\nprint(len(sys.stdin.read()))",
    "read descriptor": "print(open(0).read().split())",
    "buffer": "import sys\ninput = sys.stdin.buffer.readline\nprint(int(input()))",
    "kept stdin": "import sys\nprint(sys.__stdin__.readline())",
    "exit": "print(1)\nexit()",
    "exit code": "import sys\nprint(2)\nsys.exit(0)",
    "quit": "print(3)\nquit(0)",
    "main": "def main():\n    print(4)\nif __name__ == '__main__':\n    main()",
    "thread": "import threading, sys\nthreading.stack_size(1 << 26)\nsys.setrecursionlimit(10**6)\n"
    "def f(n): return n and f(n - 1) + 1\nthreading.Thread(target=lambda: print(f(20000))).start()",
    "recursion": "import sys\nsys.setrecursionlimit(10**5)\ndef f(n): return n and f(n - 1) + 1\nprint(f(50000))",
    "stack limit": "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 26, -1))\nprint(5)",
    "atexit": "import atexit\natexit.register(print, 'bye')\nprint('hi')",
    "modules": "import numbers, cmath, math, heapq, bisect, re, itertools, fractions, decimal, hashlib\n"
    "print(hashlib.md5(b'x').hexdigest(), math.pi, decimal.Decimal(1) / 3)",
    "unicode": "print('ä→😀')",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(3))",
    "annotations": "from __future__ import annotations\ndef f(x: Y): pass\nprint(f.__annotations__)",
    "stdout": "import sys\nsys.stdout.write('x')\nsys.stdout.buffer.write(b'y')\nsys.stdout.flush()",
    "large": "print('x' * 2_000_000)",
    "os.write": "import os\nos.write(1, b'raw')",
    "closed stdout": "import sys\nprint(6)\nsys.stdout.close()",
    "closed both": "import sys\nprint(7)\nsys.stdout.close()\nsys.stderr.close()",
    "no stdout": "import sys\nprint(8)\nsys.stdout.flush()\nsys.stdout = sys.stderr = None",
    "dev stdin": "import sys\nsys.stdin = open('/dev/stdin')\nprint(int(input()) + int(input()))",
    "dev stdin read": "with open('/dev/stdin', 'rb') as f: print(f.read())",
    "dev stdin path": "import io, pathlib\nprint(pathlib.Path('/dev/stdin').read_text(), io.open is open)",
    "dev stdin twice": "with open('/dev/stdin') as f: print(f.read())\nprint(open(0).read())",
    "dev stdout": "import sys\nsys.stdout = open('/dev/stdout', 'w')\nprint(9)\nsys.stdout.close()",
    "dev stderr": "with open('/dev/stderr', 'w') as f: print(f.write('x'))",
}  # fmt: skip


STDIN = "12\n34\n"


@pytest.fixture(scope="module")
def expected():
    outputs = {}
    for name, program in ORDINARY.items():
        line = [sys.executable, "-E", "-X", "utf8", "-c", program]  # -E: PYTHONUNBUFFERED shows
        done = subprocess.run(line, input=STDIN.encode(), capture_output=True, check=True)
        outputs[name] = ("ok", done.stdout.decode())
    return outputs


def test_ordinary_programs_do_as_in_python(pool, expected):
    results = pool.run_many([Job(program, STDIN, limits=QUICK) for program in ORDINARY.values()])
    assert {n: (r.status, r.output) for n, r in zip(ORDINARY, results)} == expected
    for result in results:
        assert result.mechanism == pool.mechanism and 0 < result.peak_memory < 1 << 29


FLUSHES = (
    "import sys\nclass Out:\n    def flush(self): raise OSError\nsys.stdout = Out()",
    "import sys\nclass Out:\n    def flush(self): raise OSError\nsys.stderr = Out()",
    "import sys\nclass Out:\n    closed = True\nsys.stdout = Out()",
    "import sys\nclass Out:\n    def flush(self): pass\nsys.stdout = Out()",
    "import sys\nsys.stdout = object()",
    "import os\nprint('x')\nos.close(1)",
    "import os\nos.close(1)",
    "import sys\nsys.stdout.close()\nsys.exit(3)",
)


def test_the_last_flush_fails_where_the_interpreters_does(pool):
    results = pool.run_many([Job(program, limits=QUICK) for program in FLUSHES])
    for program, result in zip(FLUSHES, results):
        done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True)
        assert result.exit_code == done.returncode, program


def test_statuses_and_tracebacks(pool):
    cases = (
        ("x = [1]\nprint(x[3])", "runtime_error", "IndexError: list index out of range"),
        ("raise SystemExit('no')", "runtime_error", "no"),
        ("import sys; sys.exit(3)", "runtime_error", ""),
        ("def f(:\n", "compile_error", "SyntaxError: invalid syntax"),
        ("x = '\ud800'", "compile_error", None),
        ("x = 1\x00", "compile_error", None),
        ("import os; os.abort()", "runtime_error", None),
        ("x = bytearray(1 << 40)", "memory_limit", "MemoryError"),
        ("-" * 60000 + "1", "compile_error", None),  # too deep for the compiler
        ("", "ok", ""),
    )
    results = pool.run_many([Job(program, limits=QUICK) for program, _, _ in cases])
    for result, (program, status, last) in zip(results, cases):
        assert result.status == status, (program, result)
        if last is not None:
            assert result.error.strip().rpartition("\n")[2] == last
    traced = pool.run(Job("def f():\n    return 1 / 0\n\nf()\n")).error
    assert 'File "program.py", line 2, in f' in traced and "    return 1 / 0" in traced
    assert "guest" not in traced


def test_tests_run_after_the_program_in_its_namespace(pool):
    assert (
        pool.run(Job("def f(): return 3", tests="assert f() == 3\nprint('end')")).output == "end\n"
    )
    # In their tracebacks there is nothing of ours.
    error = pool.run(Job("def f(): return 3", tests="x = 1\nassert f() == 4, x")).error
    assert error.startswith('Traceback (most recent call last):\n  File "tests.py", line 2, in')
    assert error.count("File ") == 1 and error.endswith("AssertionError: 1\n")
    for program in ("def f(): return 4", "import sys; sys.exit(0)", "def f(): return 3\nexit()",
                    "import os; os._exit(0)", "raise SystemExit"):  # fmt: skip
        assert "end" not in pool.run(Job(program, tests="assert f() == 3\nprint('end')")).output


def test_with_tests_the_program_is_a_module_and_no_main_program(pool):
    program = (
        "import pickle, sys\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A\n"
    )
    program += "assert sys.modules['__main__'].A is A\nprint(__name__)"
    for tests, name in (("x = 1", "program"), ("", "__main__")):
        result = pool.run(Job(program, tests=tests, limits=QUICK))
        assert (result.status, result.output) == ("ok", f"{name}\n"), result.error


def test_a_prelude_runs_before_the_program_and_does_not_shift_its_lines(pool):
    prelude = "import math\n\n\ndef half(x):\n    return x / 0\n"
    program = "from __future__ import annotations\nprint(math.floor(2.5))\nhalf(3)"
    result = pool.run(Job(program, prelude=prelude, limits=QUICK))
    assert result.output == "2\n" and result.status == "runtime_error"
    assert 'File "program.py", line 3, in' in result.error
    assert 'File "prelude.py", line 5, in half\n    return x / 0' in result.error


def test_a_mark_of_utf8_and_integers_of_any_length_are_no_errors(pool):
    jobs = (
        Job("\ufeffprint(1)", limits=QUICK),
        Job("print(len(str(2 ** 20000)))", limits=QUICK),
        Job("print(int(input()) % 7)", "1" * 5000, limits=QUICK),
        Job("print(len(str(" + "9" * 5000 + ")))", limits=QUICK),
    )
    outputs = [r.output for r in pool.run_many(jobs)]
    assert outputs == ["1\n", "6021\n", f"{(10**5000 - 1) // 9 % 7}\n", "5000\n"]


def test_numpy_is_there_and_nothing_else_that_is_installed(pool):
    program = (
        "import numpy as np\nprint(np.allclose(np.ones(9) @ np.ones(9), 9), np.linalg.det(np.eye(2)))\n"
        "for name in ('pytest', 'jax', 'hypothesis', 'pip'):\n"
        "    try: __import__(name)\n    except ImportError: print('no')\n"
    )
    result = pool.run(Job(program, limits=Limits(cpu_seconds=5, memory_bytes=1 << 30)))
    assert result.output == "True 1.0\n" + "no\n" * 4, result.error
    # Programs that do not ask for it do not pay for it.
    loaded = "import sys\nprint([m for m in sys.modules if 'numpy' in m])"
    assert pool.run(Job(loaded)).output == "[]\n"


def test_without_numpy_there_are_no_packages(monkeypatch):
    monkeypatch.setattr(mechanisms.importlib.util, "find_spec", lambda name: None)
    mechanisms._packages.cache_clear()
    try:
        guest = sandbox.Guest(sandbox.strongest(allow_weak=True))
        result = guest.run(Job("print(1)\nimport numpy", limits=QUICK))
        guest.close()
        assert result.output == "1\n" and "No module named 'numpy'" in result.error
    finally:
        mechanisms._packages.cache_clear()


def test_of_a_long_error_both_ends_are_kept(pool):
    result = pool.run(Job("raise ValueError('x' * 100_000 + 'end')", limits=QUICK))
    assert len(result.error) <= 16384 and result.error.startswith("Traceback")
    last = result.error.rstrip().rpartition("\n")[2]
    assert last.startswith("ValueError: xxx") and " [...] " in last and last.endswith("xend")
    program = "import sys\nsys.stderr.write('d' * 100_000 + chr(10))\n1 / 0"
    result = pool.run(Job(program, limits=QUICK))
    assert result.error.endswith("ZeroDivisionError: division by zero\n")


def test_results_depend_neither_on_order_nor_worker(pool):
    program = (
        "import random\nn = int(input())\nprint(n, random.random(), {'a', 'b', 'c', str(n)},"
        " hash('x'))\nimport sys; sys.modules['math'].pi = n\nimport math; print(math.pi)"
    )
    jobs = [Job(program, str(n)) for n in range(6)]
    outputs = [r.output for r in pool.run_many(jobs)]
    assert outputs == [r.output for r in pool.run_many(jobs[::-1])][::-1]
    assert len({out.split()[1] for out in outputs}) == 1  # the same seed in every run
    assert [out.split()[-1] for out in outputs] == [str(n) for n in range(6)]


def test_finished_says_that_the_tests_came_to_their_end(pool):
    def finished(program, tests):
        result = pool.run(Job(program, tests=tests, limits=QUICK))
        return result.finished, result.output

    assert finished("print('a')", "print('b')") == (True, "a\nb\n")
    assert finished("import atexit\natexit.register(print, 'c')", "x = 1") == (True, "c\n")
    assert finished("print('a')", "") == (False, "a\n")
    assert finished("print('a')", "assert False") == (False, "a\n")
    assert finished("print('a')\nexit()", "print('b')") == (False, "a\n")
    assert finished("print('a')", "x = (") == (False, "a\n")


def test_one_warm_interpreter_plays_many_programs():
    if "bwrap-zygote" not in sandbox.available():
        pytest.skip("no bubblewrap with a filter on this machine")
    with Sandbox("bwrap-zygote", workers=2) as pool:
        pool.run_many([Job("print('hello')")] * 4)
        processes = {guest.process.pid for guest in pool._guests if guest.process}
        outputs = [pool.run(Job("print('hello')")).output for _ in range(20)]
        assert outputs == ["hello\n"] * 20
        assert {guest.process.pid for guest in pool._guests if guest.process} == processes


def test_run_is_all_that_is_needed():
    result = sandbox.run("print(input()[::-1])", stdin="abc", limits=QUICK, allow_weak=True)
    assert (result.status, result.output, result.error) == ("ok", "cba\n", "")
    assert result.seconds < 1 and result.mechanism in mechanisms.NAMES


def test_without_bubblewrap_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(mechanisms.shutil, "which", lambda name: None)
    sandbox._trial.cache_clear()
    try:
        with pytest.raises(EnvDataError) as error:
            Sandbox()
        message = str(error.value)
        assert "\n" not in message and "apt-get install bubblewrap" in message
        assert "allow_weak=True" in message and "unshare" in message
        with Sandbox(allow_weak=True) as pool:
            assert pool.mechanism == "rlimits"
    finally:
        sandbox._trial.cache_clear()


def test_bad_arguments_are_named():
    for arguments, match in (
        ({"mechanism": "docker"}, "env.options.mechanism = 'docker'"),
        ({"workers": -1}, "env.options.workers = -1"),
        ({"mechanism": "rlimits"}, "allow_weak"),
    ):
        with pytest.raises(EnvDataError, match=match):
            Sandbox(**arguments)
    for limit, value in (
        ("cpu_seconds", 0),
        ("memory_bytes", 1),
        ("threads", "many"),
        ("open_files", True),
    ):
        with pytest.raises(EnvDataError, match=f"{limit} = "):
            Limits(**{limit: value})


def test_a_guest_that_cannot_start_is_an_error_of_the_sandbox(monkeypatch):
    monkeypatch.setattr(mechanisms, "command", lambda name: ["sh", "-c", "echo broken >&2; exit 1"])
    guest = sandbox.Guest("bwrap-zygote")
    result = guest.run(Job("print(1)"))
    guest.close()
    assert (result.status, result.error) == ("sandbox_error", "broken")


# -- the filter, read by an interpreter of classic BPF ---------------------------------------------
ALLOW, KILL = "allow", "kill"
NUMBERS = {  # from the kernel's tables: x86-64, aarch64
    "read": (0, 63), "openat": (257, 56), "socket": (41, 198), "connect": (42, 203),
    "execve": (59, 221), "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129),
    "tgkill": (234, 131), "ptrace": (101, 117), "process_vm_writev": (311, 271), "mount": (165, 40),
    "unshare": (272, 97), "fcntl": (72, 25), "ioctl": (16, 29), "prlimit64": (302, 261),
    "bpf": (321, 280), "io_uring_setup": (425, 425), "memfd_create": (319, 279), "openat2": (437, 437),
    "unlinkat": (263, 35), "mkdirat": (258, 34), "pidfd_send_signal": (424, 424), "setuid": (105, 146),
    "mmap": (9, 222), "futex": (202, 98), "exit_group": (231, 94), "getrandom": (318, 278),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "setpgid": (109, 154), "setsid": (112, 157),
}  # fmt: skip
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def decide(rules: bytes, arch: int, number: int, *arguments: int):
    import struct

    data = struct.pack("<iIQ6Q", number, arch, 0, *(*arguments, *[0] * (6 - len(arguments))))
    code = list(struct.iter_unpack("<HBBI", rules))
    accumulator = place = 0
    while True:
        op, if_true, if_false, value = code[place]
        place += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif op == 0x06:
            action = value & 0xFFFF0000
            return {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(action, value & 0xFFFF)
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value,
                     0x45: bool(accumulator & value)}[op]  # fmt: skip
            place += if_true if taken else if_false


@pytest.mark.parametrize("machine", ARCH)
def test_the_filter_says_what_it_should(machine):
    rules, column = seccomp.make_filter(machine), list(ARCH).index(machine)
    assert len(rules) % 8 == 0 and len(rules) // 8 < 4096  # the kernel's limit

    def ask(name, *arguments):
        return decide(rules, ARCH[machine], NUMBERS[name][column], *arguments)

    for name in ("read", "mmap", "futex", "exit_group", "getrandom"):
        assert ask(name) == ALLOW
    for name in ("socket", "connect", "execve", "kill", "tgkill", "ptrace", "process_vm_writev",
                 "mount", "unshare", "bpf", "io_uring_setup", "memfd_create", "openat2", "unlinkat",
                 "mkdirat", "pidfd_send_signal", "setuid", "userfaultfd", "keyctl", "setpgid",
                 "setsid"):  # fmt: skip
        assert ask(name) == 1, name
    assert ask("openat", 0, 0, 0o2000000) == ALLOW  # O_RDONLY | O_CLOEXEC
    for flags in (0o1, 0o2, 0o100, 0o1000, 0o20200000, 0o2000001):
        assert ask("openat", 0, 0, flags) == 30
    threads = 0x3D0F00  # what glibc's pthread_create asks for
    assert ask("clone", threads) == ALLOW and ask("clone3") == 38
    for flags in (0x11, 0x1200011, 0x4111, threads | 0x10000000, threads | 0x40000000):
        assert ask("clone", flags) == 1
    assert ask("fcntl", 0, 2) == ALLOW and ask("fcntl", 0, 8) == 1 and ask("fcntl", 0, 10) == 1
    assert ask("ioctl", 0, 0x5401) == ALLOW and ask("ioctl", 0, 0x5412) == 1  # TCGETS, TIOCSTI
    assert ask("prlimit64", 0, 9, 0) == ALLOW and ask("prlimit64", 0, 3, 5) == ALLOW
    for arguments in ((0, 9, 5), (0, 9, 1 << 32), (7, 9, 0), (7, 3, 5)):
        assert ask("prlimit64", *arguments) == 1
    for other in set(ARCH.values()) - {ARCH[machine]} | {0x40000003}:
        assert decide(rules, other, 0) == KILL
    if machine == "x86_64":
        assert decide(rules, ARCH[machine], 0x40000000) == 1


def test_an_unknown_machine_has_no_filter_and_no_warm_mechanism(monkeypatch):
    assert seccomp.make_filter("riscv64") is None
    monkeypatch.setattr(seccomp, "make_filter", lambda machine=None: None)
    assert mechanisms.missing("bwrap-zygote")
