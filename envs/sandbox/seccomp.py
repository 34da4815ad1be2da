"""The system calls that a program may make, as a classic BPF program for prctl(PR_SET_SECCOMP).

This is an allow-list; other calls fail with EPERM. It allows one process to compute, to read its input
and to write to its descriptors: no sockets, no new processes, no exec, no signals, no files opened for
writing. Numbers are the kernel's
(arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h); BPF and its return
values are described in the kernel's userspace-api/seccomp_filter.
"""

from __future__ import annotations

import platform
import struct
import sys

# name: (x86-64, aarch64); None where the architecture has no such call.
_PLAIN = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, None),
    "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "nanosleep": (35, 101),
    "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103), "getpid": (39, 172),
    "exit": (60, 93), "uname": (63, 160), "ftruncate": (77, 46), "getcwd": (79, 17),
    "readlink": (89, None), "gettimeofday": (96, 169), "getrlimit": (97, 163),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "sigaltstack": (131, 132), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96),
    "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79),
    "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "dup3": (292, 24), "pipe2": (293, 59),
    "getrandom": (318, 278), "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293),
    "faccessat2": (439, 439),
}  # fmt: skip
_OPEN = (2, None)
_OPENAT = (257, 56)
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_FCNTL = (72, 25)
_IOCTL = (16, 29)
_PRLIMIT = (302, 261)

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH
_X32_BIT = 0x40000000

_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_EPERM, _EROFS, _ENOSYS = 1, 30, 38
_LOAD, _JUMP_EQUAL, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data; arguments follow at 16, eight bytes each

# Any of O_WRONLY, O_RDWR, O_CREAT, O_TRUNC and the bit that O_TMPFILE adds to O_DIRECTORY.
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000
_CLONE_THREAD = 0x00010000
_CLONE_NEW_NAMESPACES = 0x7E020000
# Not F_SETOWN and F_SETSIG: together they send any signal to any process of the same user.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, CLOEXEC
_IOCTL_COMMANDS = (0x5401, 0x5413, 0x5450, 0x5451, 0x5421)  # TCGETS, winsize, FIONCLEX, FIOCLEX
_RLIMIT_STACK = 3


def _argument(number: int) -> int:
    """Offset of the low word; the kernel reads only that of the arguments compared here."""
    return 16 + 8 * number


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _return(value: int) -> bytes:
    return _op(_RETURN, value)


def _case(number: int, body: list[bytes]) -> list[bytes]:
    """`body`, which always returns, for one call number; the number is loaded again after it."""
    return [_op(_JUMP_EQUAL, number, 0, len(body)), *body]


def _one_of(argument: int, values: tuple[int, ...]) -> list[bytes]:
    body = [_op(_LOAD, _argument(argument))]
    for value in values:
        body += [_op(_JUMP_EQUAL, value, 0, 1), _return(_ALLOW)]
    return [*body, _return(_ERRNO | _EPERM)]


def _reading_only(argument: int) -> list[bytes]:
    return [
        _op(_LOAD, _argument(argument)),
        _op(_JUMP_SET, _WRITING, 0, 1),
        _return(_ERRNO | _EROFS),
        _return(_ALLOW),
    ]


def _threads_only() -> list[bytes]:
    return [
        _op(_LOAD, _argument(0)),
        _op(_JUMP_SET, _CLONE_NEW_NAMESPACES, 2, 0),
        _op(_JUMP_SET, _CLONE_THREAD, 0, 1),
        _return(_ALLOW),
        _return(_ERRNO | _EPERM),
    ]


def _own_limits() -> list[bytes]:
    """prlimit: a process may read its own limits and, as contest programs do, set the stack's."""
    refuse = _return(_ERRNO | _EPERM)
    return [
        _op(_LOAD, _argument(0)),
        _op(_JUMP_EQUAL, 0, 1, 0),
        refuse,
        _op(_LOAD, _argument(1)),
        _op(_JUMP_EQUAL, _RLIMIT_STACK, 0, 1),
        _return(_ALLOW),
        # The new limit is a pointer: both of its words are zero when nothing is set.
        _op(_LOAD, _argument(2)),
        _op(_JUMP_EQUAL, 0, 1, 0),
        refuse,
        _op(_LOAD, _argument(2) + 4),
        _op(_JUMP_EQUAL, 0, 1, 0),
        refuse,
        _return(_ALLOW),
    ]


def make_filter(machine: str | None = None) -> bytes | None:
    """The filter as an array of struct sock_filter, or None if the numbers are not known.

    Args:
      machine: as in `platform.machine()`; None: this machine.
    """
    machine = machine or platform.machine()
    if not sys.platform.startswith("linux") or machine not in _ARCHITECTURES:
        return None
    column, arch = _ARCHITECTURES[machine]
    rules = [_op(_LOAD, _ARCH), _op(_JUMP_EQUAL, arch, 1, 0), _return(_KILL)]
    rules.append(_op(_LOAD, _NUMBER))
    if machine == "x86_64":  # the same calls under other numbers
        rules += [_op(_JUMP_GE, _X32_BIT, 0, 1), _return(_ERRNO | _EPERM)]
    for numbers in _PLAIN.values():
        if numbers[column] is not None:
            rules += _case(numbers[column], [_return(_ALLOW)])
    for numbers, body in (
        (_OPEN, _reading_only(1)),
        (_OPENAT, _reading_only(2)),
        (_CLONE, _threads_only()),
        (
            _CLONE3,
            [_return(_ERRNO | _ENOSYS)],
        ),  # its flags are in memory; glibc falls back to clone
        (_FCNTL, _one_of(1, _FCNTL_COMMANDS)),
        (_IOCTL, _one_of(1, _IOCTL_COMMANDS)),
        (_PRLIMIT, _own_limits()),
    ):
        if numbers[column] is not None:
            rules += _case(numbers[column], body)
    rules.append(_return(_ERRNO | _EPERM))
    return b"".join(rules)
