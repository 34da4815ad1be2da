"""Devices to compile for that this machine need not have: TPUs, NVIDIA GPUs, fake CPU devices.

libtpu and jax's CUDA plugin compile without the hardware. XLA knows a TPU by its name; for a GPU it needs a
description.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from leafe_jax.tools.hardware import CHIPS, Chip

_TPUS = ("v4", "v5e", "v5p", "v6e")
# jax names a cluster of GPUs slices x hosts x GPUs of a host. Hosts without a common NVLink are slices.
_GPUS = ("h100", "h200")
_ALLOWED = (
    "must be cpu:N, or v4, v5e, v5p or v6e with a shape, e.g. v5e:4x4, or h100 or h200 with the GPUs of a"
    " host, h100:8, or hosts x GPUs, h100:2x8"
)

# As XLA prints a device of these on a machine that has it; H100 and H200 differ in their memory only.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory}
  shared_memory_per_block_optin: 232448 cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
_NAMES = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of equal devices, and how they are connected.

    Attributes:
      kind: "cpu", or a key of hardware.CHIPS.
      shape: "8", "4x4" or "4x4x4".
    """

    kind: str
    shape: str

    @property
    def count(self) -> int:
        """Number of devices."""
        return math.prod(map(int, self.shape.split("x")))


def parse(text: str) -> Topology:
    """The topology that a text names, e.g. "v5p:4x4x4", "h100:2x8" or "cpu:8".

    Raises:
      ValueError: the text is not a topology.
    """
    kind, _, shape = text.partition(":")
    sizes = {"cpu": (1,), **dict.fromkeys(_TPUS, (2, 3)), **dict.fromkeys(_GPUS, (1, 2))}
    fits = kind in sizes and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape)
    if not fits or shape.count("x") + 1 not in sizes[kind]:
        raise ValueError(f"--topology={text}: {_ALLOWED}")
    return Topology(kind, shape)


def find_devices(topology: Topology) -> tuple[list[Any], Chip]:
    """(devices to compile for, the figures of each). A GPU's memory is what jax takes of it.

    Raises:
      UserError: the compiler is not installed, or refuses the topology.
    """
    if topology.kind == "cpu":
        import jax

        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        count = topology.count
        return jax.devices()[:count], Chip("cpu", memory // count, 0.0, 0.0)
    chip = CHIPS[topology.kind]
    if topology.kind in _GPUS:
        return _gpus(topology, chip)
    return _tpus(topology), chip


def one_host(topology: Topology, devices: list[Any]) -> tuple[list[Any], int]:
    """(devices of one host, number of hosts) of a topology.

    The host's devices come from a topology of their own. The compiler needs device numbers from 0 without
    gaps, and one host's devices in a larger topology have gaps (0, 1, 4, 5 in 4x4).

    Args:
      topology: the whole.
      devices: its own, from `find_devices`.
    """
    hosts = len({device.process_index for device in devices})
    if hosts == 1:
        return devices, 1
    if topology.kind in _GPUS:
        shape = topology.shape.split("x")[-1]
    else:
        shape = "2x2" if topology.kind in ("v5e", "v6e") else "2x2x1"
    return find_devices(Topology(topology.kind, shape))[0], hosts


def _tpus(topology: Topology) -> list[Any]:
    from jax.experimental import topologies

    from leafe_jax.errors import UserError

    kind, flag = topology.kind, f"--topology={topology.kind}:{topology.shape}"
    # jax sees a real v4 chip as one device. Without this option a topology has a device for each core.
    whole = {"chip_config_name": "megacore"} if kind == "v4" else {}
    name = f"{'v5' if kind == 'v5p' else kind}:{topology.shape}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **whole)
    except (RuntimeError, ValueError) as error:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(f"{flag}: needs the TPU compiler, pip install libtpu") from error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{flag}: refused by libtpu ({reason})") from error
    return list(found.devices)


def _gpus(topology: Topology, chip: Chip) -> tuple[list[Any], Chip]:
    import jax
    from jax.experimental import topologies

    from leafe_jax.errors import UserError

    flag = f"--topology={topology.kind}:{topology.shape}"
    # Attention is compiled with cuDNN.
    if not all(map(_installed, ("jax_cuda13_plugin", "nvidia.cudnn"))):
        raise UserError(
            f"{flag}: needs the GPU compiler and cuDNN (4 GB),"
            f" pip install 'jax-cuda13-plugin[with-cuda]=={jax.__version__}'"
        )
    hosts, _, each = topology.shape.rpartition("x")
    text = _HOPPER.format(
        bandwidth=round(chip.bandwidth), memory=chip.memory, name=_NAMES[topology.kind]
    )
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=f"{hosts or 1}x1x{each}", target_config=text
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{flag}: refused by jax's CUDA plugin ({reason})") from error
    memory = round(_gpu_share() * chip.memory)
    return list(found.devices), dataclasses.replace(chip, memory=memory)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _gpu_share() -> float:
    """The share of a GPU's memory that jax takes when it starts.

    Raises:
      UserError: the variable that says it is no share.
    """
    from leafe_jax.errors import UserError

    text = os.environ.get(_FRACTION, "0.75")
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"{_FRACTION}={text}: must be above 0 and at most 1")
    return share
