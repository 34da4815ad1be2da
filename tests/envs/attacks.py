"""The programs of test_sandbox_attacks.py: each tries to get out of the sandbox, or past the judge."""

SECRET = "the-secret-of-the-host"

# Each prints WON when it succeeded as far as it can tell itself.
ATTACKS = {
    "ipv4": """
import socket
s = socket.socket(socket.AF_INET); s.settimeout(1); s.connect(("127.0.0.1", {port4})); print("WON")
""",
    "ipv6": """
import socket
s = socket.socket(socket.AF_INET6); s.settimeout(1); s.connect(("::1", {port6})); print("WON")
""",
    "unix_socket": """
import socket
for path in ({directory!r} + "/socket", "\\0" + {abstract!r}):
    try:
        s = socket.socket(socket.AF_UNIX); s.connect(path); print("WON")
    except OSError: pass
""",
    "read_file": """
import os
for path in ({directory!r} + "/secret", "/etc/passwd", "/etc/shadow", "/proc/self/root" + {directory!r} + "/secret"):
    try:
        open(path).read(); print("WON")
    except OSError: pass
for path in ("/home", "/etc", "/proc", {directory!r}):
    try:
        if os.listdir(path): print("WON")
    except OSError: pass
""",
    "read_environment": """
import os
found = [str(dict(os.environ))]
for pid in ("self", 1, 2, os.getppid(), {pid}, {victim}):
    try: found.append(open(f"/proc/{{pid}}/environ").read())
    except OSError: pass
import ctypes
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
i = 0
while environ and environ[i]:
    found.append(environ[i].decode()); i += 1
if {secret!r} in str(found): print("WON")
""",
    "write_outside": """
import os
for place in ({directory!r}, "/tmp", "/", "/dev/shm", "/var/tmp", ".", "/usr/lib", os.path.dirname(os.__file__)):
    try:
        open(place + "/leafe-attack", "w").write("x"); print("WON", place)
    except OSError: pass
    for call in (os.mkdir, os.mkfifo):
        try: call(place + "/leafe-attack"); print("WON", place)
        except OSError: pass
try: open({directory!r} + "/secret", "a").write("x"); print("WON")
except OSError: pass
for call in (lambda: os.unlink({directory!r} + "/secret"), lambda: os.chmod({directory!r} + "/secret", 0), lambda: os.truncate({directory!r} + "/secret", 0), lambda: os.rename({directory!r} + "/secret", {directory!r} + "/x")):
    try: call(); print("WON")
    except OSError: pass
""",
    "numpy_files": """
import numpy as np
for path in ({directory!r} + "/leafe-attack.npy", "/tmp/leafe-attack.npy", np.__path__[0] + "/leafe-attack.npy"):
    try: np.save(path, np.zeros(1)); print("WON", path)
    except OSError: pass
for path in ({directory!r} + "/secret", np.__file__):
    try: np.memmap(path, mode="r+"); print("WON", path)
    except OSError: pass
""",
    "fork_bomb": """
import os, time
children = 0
try:
    for _ in range(500):
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
        children += 1
except OSError: pass
if children > 40: print("WON", children)
""",
    "thread_bomb": """
import threading, time
started = 0
threading.stack_size(32768)
try:
    for _ in range(500):
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start(); started += 1
        if started == 41: print("WON", started, flush=True)  # now: it may not get to the last
except Exception: pass
import os; os._exit(0)
""",
    "memory_bomb": """
data = []
while len(data) < 600: data.append(bytearray(1 << 20))
print("WON")
""",
    "endless_loop": "while True: pass",
    "endless_loop_ignoring_signals": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "sleep": "import time; time.sleep(30); print('WON')",
    "many_threads_loop": """
import threading
def spin():
    while True: pass
for _ in range(8): threading.Thread(target=spin).start()
""",
    "output_flood": """
import os
sent = 0
try:
    while sent < 100_000_000: sent += os.write(1, b"x" * 65536)
    print("WON")
except OSError: pass
if sent > 2_000_000: os.write(2, b"WON")
""",
    "error_flood": """
import os
sent = 0
while sent < 100_000_000: sent += os.write(2, b"x" * 65536)
print("WON")
""",
    "disk_fill": """
import os, tempfile
written = 0
for place in ("/tmp", "/dev/shm", "/", {directory!r}):
    try:
        with open(place + "/leafe-attack-fill", "wb") as f:
            for _ in range(64): written += f.write(bytes(1 << 20))
    except OSError: pass
try:
    fd = os.memfd_create("x")
    while written < 1 << 28: written += os.write(fd, bytes(1 << 20))
except OSError: pass
if written > 32 << 20: print("WON", written)
""",
    "left_behind": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for _ in range(1000):
            try: open({directory!r} + "/left-behind", "w").close()
            except OSError: pass
            time.sleep(0.05)
""",
    "signals": """
import os, signal, ctypes
libc = ctypes.CDLL(None)
for pid in ({victim}, {pid}, os.getppid(), 1, 2, -1, 0):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
        if pid == 0: continue
        try: os.kill(pid, number)
        except OSError: pass
        libc.tgkill(pid, pid, number)
for pid in ({victim}, {pid}):
    try: os.kill(pid, 0); print("WON")
    except OSError: pass
    try: fd = os.pidfd_open(pid); signal.pidfd_send_signal(fd, 9); print("WON")
    except OSError: pass
""",
    "signals_through_descriptors": """
import fcntl, os, signal
r, w = os.pipe()
for owner in (os.getppid(), {victim}):
    try:
        fcntl.fcntl(r, fcntl.F_SETOWN, owner); fcntl.fcntl(r, 10, signal.SIGKILL)
        fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC); os.write(w, b"x")
    except OSError: pass
""",
    "ptrace": """
import ctypes, os
libc = ctypes.CDLL(None)
for pid in ({victim}, {pid}):
    if libc.ptrace(16, pid, 0, 0) == 0: print("WON", pid)
    if libc.ptrace(0x4206, pid, 0, 0) == 0: print("WON", pid)
if libc.ptrace(16, os.getppid(), 0, 0) == 0: print("WON the parent")
""",
    "exec_shell": """
import os, subprocess
for path in ("/bin/sh", "/bin/bash", "/bin/busybox"):
    try: subprocess.run([path, "-c", "echo WON"], timeout=1)
    except Exception: pass
try: os.system("echo WON > " + {directory!r} + "/won")
except Exception: pass
try: os.posix_spawn("/bin/sh", ["sh", "-c", "echo WON"], {{}})
except OSError: pass
os.execv("/bin/sh", ["sh", "-c", "echo WON"])
""",
    "symlinks": """
import os
for link in ("/tmp/leafe-link", "leafe-link", "/dev/shm/leafe-link"):
    for target in ({directory!r} + "/secret", "../../../../.." + {directory!r} + "/secret"):
        try:
            os.symlink(target, link)
            if {secret!r} in open(link).read(): print("WON")
        except OSError: pass
try: os.link({directory!r} + "/secret", {directory!r} + "/hard"); print("WON")
except OSError: pass
""",
    "descriptors": """
import os
for fd in range(3, 4096):
    try: os.fstat(fd); print("WON", fd)
    except OSError: pass
for path in ("/proc/self/fd", "/dev/fd"):
    for fd in range(64):
        try: os.open(f"{{path}}/{{fd}}", os.O_RDWR); print("WON", path)
        except OSError: pass
os.lseek(1, 0, 0)
""",
    "parents_memory": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class iovec(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
mine = ctypes.create_string_buffer(b"x" * 8)
local = iovec(ctypes.addressof(mine), 8)
there = iovec(id(os), 8)
for pid in (os.getppid(), {pid}, 1):
    if libc.process_vm_writev(pid, ctypes.byref(local), 1, ctypes.byref(there), 1, 0) > 0: print("WON")
    if libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(there), 1, 0) > 0: print("WON")
    try: open(f"/proc/{{pid}}/mem", "r+b"); print("WON")
    except OSError: pass
""",
    "namespaces_and_privileges": """
import ctypes, os
libc = ctypes.CDLL(None)
inside = libc.unshare(0x10000000) == 0
if libc.mount(b"proc", b"/", b"proc", 0, None) == 0: print("WON mount")
if libc.mount(b"tmpfs", b"/usr/lib", b"tmpfs", 0, None) == 0: print("WON mount")
if libc.sethostname(b"x", 1) == 0 and not inside: print("WON hostname")
for call in (lambda: os.chroot("/usr"), lambda: os.setuid(0) or os.setgid(0) or os.geteuid() or 1 / 0):
    try:
        call()
        if not inside and open("/etc/shadow"): print("WON")
    except (OSError, ZeroDivisionError): pass
""",
    "kernel_interfaces": """
import ctypes
libc = ctypes.CDLL(None)
attributes = ctypes.create_string_buffer(128)
for number in (321, 298, 246, 175, 169):  # bpf, perf_event_open, kexec_load, init_module, reboot
    if libc.syscall(number, 5, ctypes.byref(attributes), 128, 0, 0) >= 0: print("WON", number)
""",
    "raise_limits": """
import resource
for name in ("AS", "CPU", "FSIZE", "NPROC"):
    limit = getattr(resource, "RLIMIT_" + name)
    try:
        resource.setrlimit(limit, (resource.RLIM_INFINITY,) * 2); print("WON", name)
    except (OSError, ValueError): pass
""",
    "pickles_on_the_channel": """
import os, pickle, struct
class Bomb:
    def __reduce__(self): return (os.system, ("touch " + {directory!r} + "/won",))
bomb = pickle.dumps(Bomb())
forged = struct.pack("<4sBiddQII", b"LSB1", 0, 0, 0.0, 0.0, 0, 3, 0) + b"WON"
for fd in range(3, 64):
    for data in (bomb, forged):
        try: os.write(fd, data)
        except OSError: pass
os.write(1, bomb[:20])
""",
    "compiler_bombs": "(" * 100000 + ")" * 100000,
    "compile_time_power": "x = 9 ** 9 ** 9",
    "exit_hooks": """
import atexit, threading, time
def again():
    atexit.register(again)
    while True: time.sleep(0.01)
atexit.register(again)
""",
}  # fmt: skip

# What a submission may try against the tests that follow it in its own process, without reading raw
# memory: it wins if the word is said though the tests fail. The tests' text holds SECRET.
FAILING = f"assert f() == {SECRET!r}, 'not equal'\n"
_SEARCH = """
import linecache, os, sys
def search():
    found = [linecache.cache, {m: vars(v) for m, v in sys.modules.items() if "main" in m or m == "guest"}]
    frame = sys._getframe(2)
    while frame:
        found += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
        frame = frame.f_back
    return found
def leaves(values, depth=6):
    for value in values:
        if isinstance(value, (str, bytes)): yield value
        elif isinstance(value, int): yield value.to_bytes(16, "little", signed=True) if abs(value) < 1 << 120 else b""
        elif depth and isinstance(value, dict): yield from leaves([*value, *value.values()], depth - 1)
        elif depth and isinstance(value, (list, tuple, set)): yield from leaves(value, depth - 1)
"""
JUDGE_ATTACKS = {
    "cache": "import linecache\ndef f(): print('\\n' + linecache.cache['tests.py'][2][-1])",
    "frames before": _SEARCH + """
def look():
    for leaf in leaves(search()):
        os.write(1, leaf if isinstance(leaf, bytes) else leaf.encode(errors="replace"))
JUDGE_MARK = 1
look()
""",
    "frames during": _SEARCH + """
def f():
    for leaf in leaves(search()):
        os.write(1, leaf if isinstance(leaf, bytes) else leaf.encode(errors="replace"))
""",
    "no exec": "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
    "no tests": """
import sys
frame = sys._getframe(1)
while frame:
    for name in ("_steps", "_run", "exec", "compile", "_take_word"):
        frame.f_globals[name] = lambda *a, **k: None
    for value in frame.f_locals.values():
        if isinstance(value, list): value.clear()
    frame = frame.f_back
""",
    "jump": """
import sys
def trace(frame, event, argument):
    if event == "line":
        for line in range(frame.f_lineno + 12, frame.f_lineno, -1):
            try: frame.f_lineno = line; break
            except ValueError: pass
    return trace
frame = sys._getframe(1)
while frame:
    frame.f_trace = trace
    frame = frame.f_back
sys.settrace(trace)
""",
    "trace": """
import sys
def trace(frame, event, argument):
    if frame.f_code.co_filename != "tests.py" and frame.f_code.co_filename != "program.py":
        for name, value in list(frame.f_locals.items()):
            frame.f_locals[name] = "pass" if isinstance(value, str) else lambda *a, **k: "pass"
    return trace
frame = sys._getframe(1)
while frame:
    frame.f_trace = trace
    frame = frame.f_back
sys.settrace(trace)
sys.setprofile(trace)
""",
    "cache watch": """
import linecache
class Watch(dict):
    def __setitem__(self, key, value): print(value[2][-1])
linecache.cache = Watch(linecache.cache)
""",
    "exit hooks": "import atexit, os\natexit.register(os._exit, 0)",
    "hang up": "import os\nos.closerange(0, 64)\ndef f(): os._exit(0)",
}  # fmt: skip
