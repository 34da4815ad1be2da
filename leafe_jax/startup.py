"""What has to be settled before jax starts its backends; imports nothing of it."""

from __future__ import annotations

import glob
import os

_DEVICE_FILES = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg")


def prefer_cpu() -> bool:
    """Whether jax should not look for accelerators: there are none, and nobody asked for any.

    With libtpu installed (the tests need it) jax looks for a TPU, over the network too, and complains
    at length; without any device file there is nothing to look for.
    """
    if "JAX_PLATFORMS" in os.environ:
        return False
    return not any(glob.glob(pattern) for pattern in _DEVICE_FILES)
