"""Mounts, for machines without bubblewrap: run by `unshare` in new namespaces, execs the guest.

This is a separate script (standard library only). It builds a root directory that contains only the
interpreter, makes it the root of its mount namespace, drops every capability that the guest does not
need, and executes the command.
"""

import ctypes
import json
import os
import sys

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 2, 4, 32, 4096, 16384
_MNT_DETACH = 2
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECUREBITS = 24, 38, 28
_NOROOT_LOCKED = 0b1111  # NOROOT and NO_SETUID_FIXUP, each with its lock: user 0 has no privileges
_CAP_VERSION_3 = 0x20080522
# Directories that are usually empty; one without anything that we bind becomes the new root.
_PLACES = ("/mnt", "/media", "/srv", "/opt", "/tmp")

_LIBC = ctypes.CDLL(None, use_errno=True)


def _check(result, *what):
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)}: {' '.join(map(str, what))}")


def _mount(source, target, kind, flags, data=None):
    arguments = [None if x is None else x.encode() for x in (source, target, kind)]
    result = _LIBC.mount(*arguments, ctypes.c_ulong(flags), data and data.encode())
    _check(result, "mount", source, target)


def _bind(source, target):
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    _mount(source, target, None, _MS_BIND | _MS_REC)
    # In a user namespace, the flags of the host's mount are locked and must be kept.
    kept = os.statvfs(target).f_flag & (_MS_NOSUID | _MS_NODEV | os.ST_NOEXEC)
    kept |= os.statvfs(target).f_flag & (os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RELATIME)
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    try:
        _mount(None, target, None, flags | (kept & 0b1110))
    except PermissionError:
        atime = {os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}
        flags |= sum(ms for st, ms in atime.items() if kept & st)
        _mount(None, target, None, flags | (kept & 0b1110))


def _build(plan):
    shown = [path for pair in plan["binds"].items() for path in pair]
    free = [
        p for p in _PLACES if os.path.isdir(p) and not any(s.startswith(p + "/") for s in shown)
    ]
    if not free:
        raise OSError(f"none of {', '.join(_PLACES)} can be the new root")
    root = free[0]
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.umask(0o022)
    for target, source in plan["binds"].items():
        _bind(source, root + target)
    for path in plan["masks"]:
        _mount("tmpfs", root + path, "tmpfs", _MS_RDONLY | _MS_NOSUID, "size=4k,mode=755")
    for path, target in plan["links"].items():
        os.symlink(target, root + path)
    _mount(None, root, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir(root)
    _check(_LIBC.pivot_root(b".", b"."), "pivot_root", root)
    _check(_LIBC.umount2(b".", _MNT_DETACH), "umount", "the old root")
    os.chdir("/")


def _give_up_capabilities(kept):
    """Drops all capabilities except `kept` (a bit mask) from every set that survives an exec."""
    capability = 0
    while _LIBC.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == 0 and (
        capability < 63
    ):
        capability += 1
        while kept >> capability & 1:
            capability += 1
    if not kept:
        securebits = ctypes.c_ulong(_NOROOT_LOCKED)
        _check(_LIBC.prctl(_PR_SET_SECUREBITS, securebits, 0, 0, 0), "securebits")
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    _check(_LIBC.capset(header, sets), "capset")
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "no_new_privs")


def _main():
    plan = json.loads(sys.argv[1])
    _build(plan)
    _give_up_capabilities(plan["capabilities"])
    os.execve(plan["command"][0], plan["command"], {"PYTHONHASHSEED": "0"})


if __name__ == "__main__":
    _main()
