"""Two parts of tools.check: the machine as jax sees it, and a checkpoint that is written and read back."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.tools.bench_models import RANDOM
from leafe_jax.tools.bench_training import BenchTrain
from leafe_jax.tools.check_lines import OWN_FAULT, Line, Part, guarded
from leafe_jax.tools.hardware import GIB, chip_at_hand
from leafe_jax.training.checkpoint import Checkpoints

_PACKAGES = (
    "jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax",
    "orbax-checkpoint",
)  # fmt: skip
# Of a TPU's chips, and of NVIDIA's GPUs.
_ACCELERATORS = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*")
_INSTALL = (
    "pip install -U 'jax[tpu]' on a TPU VM, 'jax[cuda13]' on a GPU (nvidia-smi must list it); unset"
    " JAX_PLATFORMS; end other programs that hold the accelerator"
)
_NO_MEMORY = "end other programs that use the accelerator, and run the check again"
_DISK = (
    "do not keep checkpoints there: choose a directory on another disk (--directory here, --workdir in"
    " a run); if they differ there, too, the machine's memory is faulty"
)


def compute_dtype() -> str:
    """The dtype that a run on this machine's devices would compute in."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return "float32"
    return "bfloat16" if _capability(device) >= (8, 0) else "float32"


def _capability(device: Any) -> tuple[int, ...]:
    """Compute capability of an NVIDIA GPU; (99,) for other devices."""
    text = str(getattr(device, "compute_capability", "99"))
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def machine(part: Part) -> Iterator[Line]:
    """One line on devices, memory, disk and versions; starts the devices."""
    yield guarded("machine", _INSTALL, _NO_MEMORY, lambda: _machine(part))


def _machine(part: Part) -> Line:
    devices = jax.local_devices()
    first, chip = devices[0], chip_at_hand(devices[0])
    place = part.directory or tempfile.gettempdir()
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    figures = {
        "platform": first.platform,
        "device_kind": first.device_kind,
        "local_devices": len(devices),
        "devices": jax.device_count(),
        "bytes_per_device": chip.memory,
        "published_flops": chip.flops or None,
        "published_bandwidth": chip.bandwidth or None,
        "cores": os.cpu_count(),
        "host_bytes": host,
        "free_disk_bytes": shutil.disk_usage(place).free,
        "dtype": compute_dtype(),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    text = (
        f"{len(devices)} x {first.device_kind}, {chip.memory / GIB:.1f} GiB each for jax;"
        f" {figures['cores']} cores, {host / GIB:.1f} GiB of host memory,"
        f" {figures['free_disk_bytes'] / GIB:.1f} GiB free in {place}; {versions}"
    )
    wrong = [device.id for device in devices if not _computes(device)]
    if wrong:
        text = f"devices {wrong} compute 8 x 8 ones times ones wrongly; {text}"
        advice = (
            "these devices are faulty: use another machine, or hide them (CUDA_VISIBLE_DEVICES)"
        )
        return Line("machine", "failed", text, advice, figures)
    found = [path for pattern in _ACCELERATORS for path in sorted(glob.glob(pattern))]
    if first.platform == "cpu" and found:
        text = f"{found[0]} is there, but jax sees no accelerator; {text}"
        return Line("machine", "warning", text, _INSTALL, figures)
    if first.platform != "cpu" and figures["dtype"] == "float32":
        text = f"this GPU has no bfloat16; {text}"
        advice = "in runs set model.dtype=float32 and train.compute_dtype=float32"
        return Line("machine", "warning", text, advice, figures)
    return Line("machine", "ok", text, "", figures)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def _computes(device: Any) -> bool:
    """True if a small product on the device is right."""
    ones = jax.device_put(np.ones((8, 8), np.float32), device)
    return bool((np.asarray(jnp.matmul(ones, ones)) == 8).all())


def checkpoint(part: Part) -> Iterator[Line]:
    """One line: a train state after a step is saved and restored, and compared bit by bit."""
    yield guarded("checkpoint", _DISK, _NO_MEMORY, lambda: _checkpoint(part))


def _checkpoint(part: Part) -> Line:
    train = BenchTrain(f"{RANDOM}{part.shape}", jax.device_count(), 32, compute_dtype())
    train.step()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), train.state
    )
    before = jax.tree.map(np.asarray, train.state)
    size = sum(x.nbytes for x in jax.tree.leaves(before))
    try:
        with tempfile.TemporaryDirectory(dir=part.directory or None) as directory:
            identity = {"made by": "leafe_jax.tools.check"}
            begin = time.perf_counter()
            store = Checkpoints(Path(directory) / "checkpoints", identity)
            store.save(1, train.state, {"position": 1}, must=True)
            store.close()
            middle = time.perf_counter()
            store = Checkpoints(Path(directory) / "checkpoints", identity)
            found = store.restore(like)
            store.close()
            end = time.perf_counter()
    except OSError as error:
        text = f"{error.strerror or error} ({size / GIB:.2f} GiB in {error.filename})"
        return Line("checkpoint", "failed", text, f"free space there, or {_DISK}")
    if found is None:
        return Line("checkpoint", "failed", "what was saved is not there", _DISK)
    step, train.state, data = found
    differ = _differences(before, train.state)
    if (step, data) != (1, {"position": 1}):
        differ.append("step or data position")
    figures = {"bytes": size, "save_s": middle - begin, "restore_s": end - middle}
    if differ:
        text = f"{len(differ)} arrays differ after save and restore, first {differ[0]}"
        return Line("checkpoint", "failed", text, _DISK, figures)
    if not np.isfinite(train.step()):  # the restored state has the step's shardings
        text = "the loss of a step from the restored state is not finite"
        return Line("checkpoint", "failed", text, OWN_FAULT, figures)
    text = (
        f"{size / GIB:.2f} GiB bit-exact after save ({figures['save_s']:.1f} s) and restore"
        f" ({figures['restore_s']:.1f} s)"
    )
    return Line("checkpoint", "ok", text, "", figures)


def _differences(before: Any, after: Any) -> list[str]:
    """Names of the arrays that are not equal bit by bit."""
    found = []
    flat, _ = jax.tree_util.tree_flatten_with_path(before)
    for (path, old), new in zip(flat, jax.tree.leaves(after), strict=True):
        new = np.asarray(new)
        if (old.shape, old.dtype) != (new.shape, new.dtype) or old.tobytes() != new.tobytes():
            found.append(jax.tree_util.keystr(path))
    return found
