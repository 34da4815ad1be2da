"""Ways to isolate a program, strongest first, and which of them this machine has.

| name | what it is |
|---|---|
| bwrap-zygote | bubblewrap around a warm interpreter that forks, with a seccomp filter |
| bwrap | a new bubblewrap for every run |
| unshare | util-linux's unshare and our own mounts, new for every run |
| rlimits | resource limits alone: programs can read the host's files; only with `allow_weak` |

The seccomp filter is also used if the machine's system call numbers are known. bwrap-zygote needs it: a
fork has its parent's user, so only the filter protects the parent. tests/envs/test_sandbox_attacks.py
measures what each contains, and docs/SECURITY.md lists it.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

from envs.base import EnvDataError
from envs.sandbox import guest, seccomp

NAMES = ("bwrap-zygote", "bwrap", "unshare", "rlimits")
LABELS = {
    "bwrap-zygote": "bubblewrap around a warm interpreter that forks, with a seccomp filter",
    "bwrap": "bubblewrap for every run",
    "unshare": "unshare for every run, without privileges",
    "rlimits": "resource limits alone",
}
_HERE = Path(__file__).resolve().parent
_SYSTEM_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
_PACKAGES = "/packages"  # where a jail shows the packages of guest.PACKAGES
_CAP_SETGID, _CAP_SETUID = 6, 7
_runs = itertools.count()


def is_warm(name: str) -> bool:
    """True if one guest runs many programs."""
    return name == "bwrap-zygote"


def missing(name: str) -> str:
    """Why `name` cannot be tried here; "" if it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if name in ("bwrap-zygote", "bwrap") and not shutil.which("bwrap"):
        return "bubblewrap is not installed"
    if name == "bwrap-zygote" and seccomp.make_filter() is None:
        return f"no system call numbers for {os.uname().machine}"
    if name == "unshare" and not shutil.which("unshare"):
        return "util-linux's unshare is not installed"
    return ""


def command(name: str) -> list[str]:
    """The command line that starts a guest under `name`."""
    if name == "rlimits":
        sites = {os.path.dirname(path) for path in _packages()}
        return _guest(str(_HERE / "guest.py"), "", next(iter(sites), ""))
    if name == "unshare":
        return _unshare()
    return _bubblewrap()


def _interpreter() -> str:
    # Not the virtual environment's link: the jail has only the installation that it points to.
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@functools.cache
def _packages() -> tuple[str, ...]:
    """Directories of guest.PACKAGES on this machine, with those of their libraries."""
    found = []
    for name in guest.PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # no origin: a folder that happens to have the name
            continue
        for path in spec.submodule_search_locations or ():
            path = os.path.realpath(path)
            found += [p for p in (path, f"{path}.libs") if os.path.isdir(p)]
    return tuple(found)


def _jailed_guest() -> list[str]:
    return _guest("/guest.py", _drop_to(), _PACKAGES if _packages() else "")


def _guest(path: str, *arguments: str) -> list[str]:
    # -S -s -P: no site, no user directory, nothing of the host on the module path.
    return [_interpreter(), "-S", "-s", "-P", "-B", "-X", "utf8", path, *arguments]


def _binds() -> tuple[dict[str, str], list[str], dict[str, str]]:
    """(paths shown read-only, directories hidden in them, symbolic links) of every jail."""
    prefix = os.path.realpath(sys.base_prefix)
    candidates = (*_SYSTEM_LIBRARIES, f"{prefix}/lib", f"{prefix}/lib64")
    links = {p: os.readlink(p) for p in candidates if os.path.islink(p)}
    shown = [p for p in candidates if os.path.isdir(p) and p not in links]
    binds = {p: p for p in dict.fromkeys(shown)}
    masks = [m for p in binds for m in glob.glob(f"{p}/python*/*-packages")]
    binds[_interpreter()] = _interpreter()
    binds["/guest.py"] = str(_HERE / "guest.py")
    binds |= {f"{_PACKAGES}/{os.path.basename(path)}": path for path in _packages()}
    return binds, sorted(masks), links


def _private_uid() -> int:
    """A user id that nothing else on the machine has, if possible.

    Process limits count per user, so guests with the same user would starve each other.
    """
    first, _, count = Path("/proc/self/uid_map").read_text().splitlines()[-1].split()
    if int(count) > 1 << 31:
        return 0x60000000 + (os.getpid() % (1 << 17)) * (1 << 11) + next(_runs) % (1 << 11)
    return min(int(first) + int(count) - 1, 65534)


def _is_root() -> bool:
    return os.geteuid() == 0


def _drop_to() -> str:
    """The guest's argument: the user to become if it starts as root, else ""."""
    return str(_private_uid()) if _is_root() else ""


def _bubblewrap() -> list[str]:
    binds, masks, links = _binds()
    # As process 1, the guest is reaped by bubblewrap (bubblewrap's own process 1 would be left to the
    # machine's init), and no signal from inside reaches it.
    line = [shutil.which("bwrap"), "--unshare-pid", "--as-pid-1", "--unshare-net", "--unshare-ipc"]
    line += ["--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox", "--cap-drop", "ALL"]
    if _is_root():
        # RLIMIT_NPROC does not apply to root, not even to root in its own user namespace. So the guest
        # becomes another user.
        line += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        line += ["--unshare-user"]
    # Parent directories that bubblewrap creates itself are accessible to root only, not to the user
    # that the guest becomes.
    for parent in sorted({str(p) for target in binds for p in Path(target).parents} - {"/"}):
        if not any(parent == b or parent.startswith(b + "/") for b in (*binds, *links)):
            line += ["--perms", "0755", "--dir", parent]
    for target, source in binds.items():
        line += ["--ro-bind", source, target]
    for path in masks:
        line += ["--tmpfs", path, "--remount-ro", path]
    for path, target in links.items():
        line += ["--symlink", target, path]
    # No /proc: with it, a child could read its parent's environment and write its memory.
    line += ["--remount-ro", "/", "--chdir", "/", "--"]
    return line + _jailed_guest()


def _unshare() -> list[str]:
    binds, masks, links = _binds()
    plan = {
        "binds": binds,
        "masks": masks,
        "links": links,
        "capabilities": 1 << _CAP_SETGID | 1 << _CAP_SETUID if _is_root() else 0,
        "command": _jailed_guest(),
    }
    line = [shutil.which("unshare"), "--net", "--pid", "--mount", "--ipc", "--uts", "--fork"]
    line += ["--kill-child=SIGKILL"]
    if not _is_root():
        line += ["--user", "--map-root-user"]
    return line + _guest(str(_HERE / "jail.py"), json.dumps(plan))


def refusal(reasons: dict[str, str]) -> EnvDataError:
    """The error for a machine on which no strong mechanism works."""
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return EnvDataError(
        f"no sandbox works here ({why}): install bubblewrap (apt-get install bubblewrap), or set"
        " env.options.allow_weak=True to run programs under resource limits alone"
    )
