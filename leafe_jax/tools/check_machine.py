"""The part of tools.check that looks at the machine as jax sees it."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.tools.check_lines import Line, Part, guarded
from leafe_jax.tools.hardware import GIB, chip_at_hand, compute_dtype

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
NO_MEMORY = "end other programs that use the accelerator, and run the check again"


def machine(part: Part) -> Iterator[Line]:
    """One line on devices, memory, disk and versions; starts the devices."""
    yield guarded("machine", _INSTALL, NO_MEMORY, lambda: _machine(part))


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
