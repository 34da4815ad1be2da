"""Programs that try to get out, against every mechanism that this machine has.

An attack succeeds when its mark shows: in its output, in a file, in a process or a connection that
the host sees. What each mechanism lets through is written down in ESCAPES, and docs/SECURITY.md is
its table; both directions are checked, so a hole that closes is noticed too.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from attacks import ATTACKS, FAILING, JUDGE_ATTACKS, SECRET

from envs import sandbox
from envs.sandbox import Job, Limits, Sandbox, seccomp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")

LIMITS = Limits(cpu_seconds=0.5, wall_seconds=1.5, memory_bytes=256 << 20, output_bytes=1 << 20)
# mechanism -> attacks that succeed there. "... without filter": where the machine's system call
# numbers are not known.
ESCAPES = {
    "bwrap-zygote": set(),
    "bwrap": set(),
    "unshare": set(),
    "bwrap without filter": set(),
    "unshare without filter": set(),
    # RLIMIT_NPROC does not bind root.
    "rlimits": {"read_file", "read_environment"}
    | ({"thread_bomb"} if os.geteuid() == 0 else set()),
}
CASES = [
    pytest.param(name, marks=[pytest.mark.slow] if "without" in name else []) for name in ESCAPES
]
# Attacks that end by their time limit; side by side in test_limits_have_their_names.
TIMED = {
    "endless_loop", "endless_loop_ignoring_signals", "sleep", "many_threads_loop",
    "compile_time_power", "exit_hooks",
}  # fmt: skip


@contextlib.contextmanager
def host():
    """A host with secrets, listening sockets and a process to attack."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        os.chmod(directory, 0o777)
        Path(directory, "secret").write_text(SECRET)
        os.chmod(Path(directory, "secret"), 0o666)
        abstract = f"leafe-{os.getpid()}"
        servers = []
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0)),
            (socket.AF_UNIX, f"{directory}/socket"), (socket.AF_UNIX, "\0" + abstract),
        ):  # fmt: skip
            server = stack.enter_context(socket.socket(family))
            try:
                server.bind(address)
            except OSError:  # a machine without IPv6
                continue
            server.listen(64)
            server.settimeout(0.01)
            servers.append(server)
        os.chmod(f"{directory}/socket", 0o777)
        ports = {s.family: s.getsockname()[1] for s in servers if s.family != socket.AF_UNIX}
        os.environ["LEAFE_TEST_SECRET"] = SECRET
        victim = subprocess.Popen(["sleep", "600"])  # with the secret in its environment
        try:
            yield servers, victim, {
                "directory": directory, "secret": SECRET, "pid": os.getpid(),
                "victim": victim.pid, "abstract": abstract,
                "port4": ports[socket.AF_INET], "port6": ports.get(socket.AF_INET6, 1),
            }  # fmt: skip
        finally:
            del os.environ["LEAFE_TEST_SECRET"]
            victim.kill()
            victim.wait()


def marks(servers, victim, names) -> list[str]:
    """What the host sees of an attack that succeeded."""
    seen = []
    for server in servers:
        with contextlib.suppress(OSError):
            server.accept()[0].close()
            seen.append("connection")
    state = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[0]
    if victim.poll() is not None or state in "TtZ":
        seen.append("victim")
    directory = Path(names["directory"])
    if (directory / "secret").read_text() != SECRET:
        seen.append("secret changed")
    seen += [p.name for p in directory.iterdir() if p.name not in ("secret", "socket")]
    return seen


def won(result) -> bool:
    """Whether the attack says so; a traceback that shows its source line is indented."""
    return any(line.startswith("WON") for line in (result.output + "\n" + result.error).split("\n"))


def render(name: str, names) -> str:
    # Programs without marks may have braces of their own.
    return ATTACKS[name].format(**names) if "{" in ATTACKS[name] else ATTACKS[name]


@pytest.fixture(scope="module")
def pool(request):
    name, _, without_filter = request.param.partition(" ")
    if name not in sandbox.available():
        pytest.skip(f"{name} does not work on this machine")
    patch = pytest.MonkeyPatch()
    if without_filter:
        patch.setattr(seccomp, "make_filter", lambda machine=None: None)
    pool = Sandbox(name, allow_weak=True, workers=2)
    pool.case = request.param
    yield pool
    pool.close()
    patch.undo()


def attack(pool, name):
    with host() as (servers, victim, names):
        result = pool.run(Job(render(name, names), limits=LIMITS))
        time.sleep(0.15 if name == "left_behind" else 0)
        return result, marks(servers, victim, names)


@pytest.mark.parametrize("pool", CASES, indirect=True)
def test_what_each_mechanism_contains(pool):
    escaped, wrong = set(), []
    for name in sorted(set(ATTACKS) - TIMED):
        result, seen = attack(pool, name)
        if seen or won(result):
            escaped.add(name)
            wrong.append((name, seen, result.output[:80], result.error[-80:]))
        assert result.wall_seconds < LIMITS.wall_seconds + 2
        assert len(result.output) <= LIMITS.output_bytes
        assert result.status != "sandbox_error", name
        if pool.mechanism != "bwrap-zygote":  # the others begin anew for every program
            continue
        # Whatever happened before, the next program runs as if nothing had.
        after = pool.run(Job("print(input())", "still here", limits=LIMITS))
        assert (after.status, after.output) == ("ok", "still here\n"), (name, after)
    assert escaped == ESCAPES[pool.case], wrong


@pytest.mark.parametrize("pool", CASES, indirect=True)
def test_limits_have_their_names(pool):
    expected = {
        "endless_loop": "time_limit", "sleep": "time_limit", "many_threads_loop": "time_limit",
        "endless_loop_ignoring_signals": "time_limit", "compile_time_power": "time_limit",
        "exit_hooks": "time_limit", "output_flood": "output_limit", "error_flood": "output_limit",
        "memory_bomb": "memory_limit", "compiler_bombs": "compile_error",
    }  # fmt: skip
    # What is not about time has plenty of it: the machine may be busy.
    roomy = dataclasses.replace(LIMITS, cpu_seconds=10, wall_seconds=30)
    limits = {n: LIMITS if status == "time_limit" else roomy for n, status in expected.items()}
    results = pool.run_many([Job(ATTACKS[name], limits=limits[name]) for name in expected])
    assert {n: r.status for n, r in zip(expected, results)} == expected
    memory = results[list(expected).index("memory_bomb")]
    assert 100 << 20 < memory.peak_memory <= LIMITS.memory_bytes


@pytest.mark.parametrize("pool", CASES, indirect=True)
def test_the_tests_in_a_programs_own_process_are_not_passed_by_introspection(pool):
    jobs = [Job(p, tests=FAILING, limits=LIMITS) for p in JUDGE_ATTACKS.values()]
    results = dict(zip(JUDGE_ATTACKS, pool.run_many(jobs)))
    assert not [name for name, result in results.items() if result.finished]
    # Nor are the tests there before they run; the search comes to its end, and finds what there is.
    before, during = results["frames before"], results["frames during"]
    assert SECRET not in results["cache"].output + results["cache watch"].output
    assert SECRET not in before.output and "JUDGE_MARK" in before.output
    assert before.error.endswith("NameError: name 'f' is not defined\n")
    assert SECRET in during.output and during.error.endswith("AssertionError: not equal\n")
    honest = pool.run(Job(f"def f(): return {SECRET!r}", tests=FAILING, limits=LIMITS))
    assert honest.finished and honest.status == "ok" and honest.output == ""


def test_killing_the_zygote():
    """The warm interpreter outlives whatever its children do: it stays the same process."""
    if "bwrap-zygote" not in sandbox.available():
        pytest.skip("no bubblewrap with a filter on this machine")
    with Sandbox("bwrap-zygote", workers=1) as pool, host() as (_, _, names):
        pool.run(Job("1"))
        (guest,) = pool._guests
        before = guest.process.pid
        for name in ("signals", "signals_through_descriptors", "parents_memory", "ptrace"):
            pool.run(Job(render(name, names), limits=LIMITS))
        assert guest.process.pid == before and guest.process.poll() is None
        # Killed from outside, it is replaced, and nothing of the run is lost.
        os.killpg(before, signal.SIGKILL)
        assert pool.run(Job("print(6 * 7)")).output == "42\n"
        assert guest.process.pid != before


def test_a_hundred_attacks_at_once():
    with Sandbox(workers=4, allow_weak=True) as pool, host() as (servers, victim, names):
        quick = [n for n in ATTACKS if n not in ESCAPES[pool.mechanism]]
        limits = Limits(cpu_seconds=0.5, wall_seconds=1, memory_bytes=128 << 20,
                        output_bytes=1 << 16)  # fmt: skip
        jobs = []
        for number in range(100):
            jobs.append(Job(render(quick[number % len(quick)], names), limits=limits))
            jobs.append(Job(f"print({number} ** 2)", limits=LIMITS))
        results = pool.run_many(jobs)
        assert [r.output for r in results[1::2]] == [f"{n * n}\n" for n in range(100)]
        assert not any(won(r) for r in results[::2])
        assert marks(servers, victim, names) == []


def test_nothing_remains():
    """No process, thread or descriptor is left when the pool is closed."""

    def held():
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), children

    before = held()
    for name in sandbox.available():
        with Sandbox(name, allow_weak=True, workers=2) as pool:
            pool.run_many([Job("print(1)"), Job("while True: pass", limits=LIMITS), Job("1 / 0")])
            groups = [g.process.pid for g in pool._guests if g.process]
        assert len(groups) == (2 if name == "bwrap-zygote" else 0)
        for group in groups:
            with pytest.raises(ProcessLookupError):
                os.killpg(group, 0)
    assert held() == before


@pytest.mark.slow
def test_two_thousand_runs_leak_nothing():
    with Sandbox(allow_weak=True, workers=2) as pool:
        pool.run_many([Job("print(1)")] * 20)
        guests = [g.process.pid for g in pool._guests if g.process]
        before = len(os.listdir("/proc/self/fd"))
        times = []
        for number in range(2000):
            begun = time.perf_counter()
            result = pool.run(Job("print('hello', input())", str(number)))
            times.append(time.perf_counter() - begun)
            assert result.output == f"hello {number}\n"
        assert len(os.listdir("/proc/self/fd")) == before
        assert [g.process.pid for g in pool._guests if g.process] == guests
        print(f"median {1000 * sorted(times)[1000]:.1f} ms with {pool.mechanism}")
