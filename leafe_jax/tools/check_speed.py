"""Parts of tools.check that measure: the sampler's workloads and the train step, with random weights.

Speed is given beside the chip's published figures, and peak memory beside what tools.plan predicts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from leafe_jax.models.decoder import ModelConfig, abstract_params
from leafe_jax.models.sharding import make_mesh
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.tools import bench_sampling, bench_training, plan
from leafe_jax.tools.bench_models import RANDOM
from leafe_jax.tools.check_lines import OWN_FAULT, Line, Part, guarded
from leafe_jax.tools.hardware import GIB, Chip, chip_at_hand, compute_dtype, matmul_flops
from leafe_jax.tools.known_models import shape_config
from leafe_jax.tools.workloads import TINY, WORKLOADS, Branch, Inputs, Plain, Turns

_REPEATS = 2
_RANK = 16  # of the adapters, if training all weights does not fit
_WRONG_PLAN = 1.1  # measured memory divided by predicted: more than this is a warning
# Least share of the chip's bandwidth (sampler, `plain`) and of its FLOP/s (train step) without a warning.
# Chosen low: no accelerator has calibrated them yet.
_LEAST_BANDWIDTH, _LEAST_FLOPS = 0.05, 0.10

_SAMPLER_MEMORY = (
    "--shape of a smaller model; in a run sampler.tensor over more devices, sampler.num_slots, max_len or"
    " num_pages down; on a GPU export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 and end other programs on it"
)
_TRAIN_MEMORY = (
    "--shape of a smaller model; in a run train.lora.rank=16, train.remat=full, train.scan_layers=True,"
    " train.mesh.fsdp over more devices, or train.accumulation up; on a GPU export"
    " XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 and end other programs on it"
)
_MORE_ROOM = "leave more memory free than tools.plan says, and report this line"
_SLOW = (
    "see whether another program uses the device (nvidia-smi, or a second run on the TPU) or the chip is"
    " throttled, and run the check again; if the figure stays, report this line"
)


# -- sampler ---------------------------------------------------------------------------------------
def sampler(part: Part) -> Iterator[Line]:
    """One line: a workload of tools.bench_sampling."""
    yield guarded(part.title, OWN_FAULT, _SAMPLER_MEMORY, lambda: _sampler(part))


def _sampler(part: Part) -> Line:
    config, dtype = shape_config(part.shape), compute_dtype()
    w = TINY[part.workload] if part.shape == "tiny" else WORKLOADS[part.workload]()
    chip = chip_at_hand(jax.local_devices()[0])
    sizes = bench_sampling.sampler_sizes(w, config)
    own, predicted = _fitting_devices(config, sizes, dtype, chip.memory)
    figures: dict[str, Any] = {"dtype": dtype, "devices": len(own), "predicted_bytes": predicted}
    if predicted is None or predicted > chip.memory:
        return _too_large(part.title, predicted, chip, len(own), figures, _SAMPLER_MEMORY)
    engine = bench_sampling.BenchEngine(f"{RANDOM}{part.shape}", dtype, w, tensor=len(own))
    x = Inputs(w, config.vocab_size)
    (record,) = bench_sampling.measure([engine], x, _REPEATS, _quiet)
    figures |= {k: record[k] for k in ("wall_s", "generated_tokens_per_s", "compile_s")}
    computed = record["generated_tokens"] + record["prefilled_tokens"]
    figures["computed_tokens_per_s"] = computed / record["wall_s"]
    read, flops = sampler_work(config, w, np.dtype(dtype).itemsize, record["prefilled_tokens"])
    seconds = record["wall_s"] * len(own)
    known = read and chip.bandwidth and part.shape != "tiny"
    figures["share_of_bandwidth"] = read / seconds / chip.bandwidth if known else None
    known = flops and chip.flops and dtype == "bfloat16" and part.shape != "tiny"
    figures["share_of_flops"] = flops / seconds / chip.flops if known else None
    figures["measured_bytes"] = _measured(record["peak_bytes"])
    text = (
        f"{dtype} on {len(own)} devices, {figures['generated_tokens_per_s']:.0f} tokens/s generated,"
        f" {figures['computed_tokens_per_s']:.0f} computed;{_shares(figures)}"
        f" compiled in {record['compile_s']:.0f} s; {_memory_text(figures)}"
    )
    least = _LEAST_BANDWIDTH if part.workload == "plain" else 0.0
    slow = (figures["share_of_bandwidth"] or math.inf) < least
    return _verdict(part.title, text, figures, slow)


def _fitting_devices(
    config: ModelConfig, sizes: EngineConfig, dtype: str, memory: int
) -> tuple[list, int | None]:
    """(the fewest of this process's devices that hold the sampler, bytes on each of them as predicted).

    If no number of them holds it, the largest number. What cannot fit by its weights is not compiled.
    """
    devices = jax.local_devices()
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(config)))
    least = weights * np.dtype(dtype).itemsize
    numbers = [n for n in (1, 2, 4, 8) if config.num_kv_heads % n == 0 and n <= len(devices)]
    predicted: int | None = None
    for number in numbers:
        predicted = least // number
        if predicted <= memory:
            predicted = _predicted_sampler(config, sizes, dtype, devices[:number])
            if predicted is not None and predicted <= memory:
                break
    return devices[:number], predicted


def _predicted_sampler(
    config: ModelConfig, sizes: EngineConfig, dtype: str, devices: list
) -> int | None:
    """Bytes per device by the compiler's count; None if the compiler gave up."""
    # Without a mesh on one device, as make_engines does: a program that is the engine's is compiled once.
    mesh = None
    if len(devices) > 1:
        mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": len(devices)}, devices)
    try:
        return sum(plan.decode_bytes(config, sizes, dtype, mesh))
    except plan.OutOfMemory:
        return None


def sampler_work(config: ModelConfig, w: Any, itemsize: int, prefilled: int) -> tuple[float, float]:
    """(bytes that decoding a workload must read, operations of decoding and prefilling it); (0, 0) if its
    rows do not decode in step.

    Every decode step reads all weights, and the keys and values of each row; a history that rows share
    counts once. Not counted: what prefilling reads, and its attention. So shares are lower bounds.

    Args:
      config: the model.
      w: the workload.
      itemsize: bytes of a number.
      prefilled: number of prompt tokens that were computed.
    """
    if isinstance(w, Plain):
        bursts = [(w.batch, w.prompt, w.batch * w.prompt)]
    elif isinstance(w, Turns):
        ends = [w.system + (turn + 1) * w.obs + turn * w.gen for turn in range(w.turns)]
        bursts = [(w.batch, end, w.batch * end) for end in ends]
    elif isinstance(w, Branch):
        rows = w.parents * w.branches
        bursts = [(rows, w.history + w.suffix, w.parents * w.history + rows * w.suffix)]
    else:
        return 0.0, 0.0
    sizes = {
        name: sum(math.prod(x.shape) for x in jax.tree.leaves(leaves))
        for name, leaves in abstract_params(config).items()
    }
    weights = sum(
        size for name, size in sizes.items() if name != "embed" or config.tie_word_embeddings
    )
    position = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    read, pairs, generated = 0, 0, 0
    for rows, context, held in bursts:  # held: positions of all rows together, at the start
        growth = rows * w.gen * (w.gen - 1) // 2
        read += w.gen * weights + (w.gen * held + growth) * position
        pairs += w.gen * rows * context + growth
        generated += rows * w.gen
    head = 2.0 * config.hidden_size * config.vocab_size  # prefilling computes no logits
    flops = matmul_flops(config, generated + prefilled, pairs) - head * prefilled
    return float(read * itemsize), flops


# -- train step ------------------------------------------------------------------------------------
def train(part: Part) -> Iterator[Line]:
    """One line: the step of tools.bench_training over all devices; adapters if all weights do not fit."""
    yield guarded(part.title, OWN_FAULT, _TRAIN_MEMORY, lambda: _train(part))


def _train(part: Part) -> Line:
    config, dtype, count = shape_config(part.shape), compute_dtype(), jax.device_count()
    chip = chip_at_hand(jax.local_devices()[0])
    rows, seq, remat, scan = 4 * count, 64, "none", False
    if part.shape != "tiny":
        rows, seq, remat, scan = 8 * count, 1024, "full", True
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(config)))
    least = 12 * weights // count  # masters and moments; not worth compiling if they do not fit
    planned: dict[str, Any] = {"fits": False, "total": least}
    rank = 0
    if least <= chip.memory:
        planned = _planned_step(config, (rows, seq, dtype, remat, scan, 0), chip)
    whole = planned["total"]
    if not planned["fits"]:
        rank = _RANK
        planned = _planned_step(config, (rows, seq, dtype, remat, scan, rank), chip)
    figures = {"dtype": dtype, "devices": count, "rank": rank, "predicted_bytes": planned["total"]}
    if not planned["fits"]:
        return _too_large(part.title, planned["total"], chip, count, figures, _TRAIN_MEMORY)
    engine = bench_training.BenchTrain(f"{RANDOM}{part.shape}", rows, seq, dtype, remat, scan, rank)
    (record,) = bench_training.measure([engine], 2 * _REPEATS, _quiet)
    figures |= {
        k: record[k] for k in ("step_s", "tokens_per_s", "model_flops_per_s", "compile_s", "loss")
    }
    known = part.shape != "tiny"
    # The benchmark finds the planned step in the cache of compiled programs.
    figures["compile_s"] += planned["seconds"]
    figures["share_of_flops"] = record["share_of_peak"] if known else None
    figures["share_of_bandwidth"] = None
    figures["measured_bytes"] = _measured(record["peak_bytes"])
    figures["last_loss"] = engine.step()
    needed = "more than a device has" if whole is None else f"{whole / GIB:.1f} GiB or more"
    trained = f"adapters of rank {rank} (all weights need {needed})" if rank else "all weights"
    text = (
        f"{dtype} on {count} devices, {trained}, {rows} x {seq} tokens:"
        f" {figures['tokens_per_s']:.0f} tokens/s;{_shares(figures)} compiled in"
        f" {figures['compile_s']:.0f} s; loss {figures['loss']:.4f}, then {figures['last_loss']:.4f};"
        f" {_memory_text(figures)}"
    )
    if not figures["last_loss"] < figures["loss"]:  # of the same batch; also if one is nan
        text = f"the loss of a repeated batch does not fall; {text}"
        return Line(part.title, "failed", text, OWN_FAULT, figures)
    slow = (figures["share_of_flops"] or math.inf) < _LEAST_FLOPS
    return _verdict(part.title, text, figures, slow)


def _planned_step(
    config: ModelConfig, how: tuple[int, int, str, str, bool, int], chip: Chip
) -> dict[str, Any]:
    """Figures of tools.plan for the benchmark's step, and the seconds they took.

    `how` are the arguments of step_settings."""
    settings = bench_training.step_settings(*how)
    same = bench_training.step_objective(*how[:2])  # so that it is compiled once
    begin = time.perf_counter()
    planned = plan.plan_training(config, settings, jax.devices(), chip, **same)
    return {**planned, "seconds": time.perf_counter() - begin}


# -- both ------------------------------------------------------------------------------------------
def _quiet(text: str) -> None:
    """A log that nobody reads."""


def _measured(peak: int) -> int | None:
    """Peak bytes of the first device; None on a CPU, where the process has much else in its memory."""
    return None if jax.local_devices()[0].platform == "cpu" else peak


def _shares(figures: dict[str, Any]) -> str:
    """The shares of the chip's figures that are known, as text that begins with a blank."""
    known = {"bandwidth": figures["share_of_bandwidth"], "FLOP/s": figures["share_of_flops"]}
    parts = [f"{100 * x:.1f}% of the chip's {what}" for what, x in known.items() if x is not None]
    return f" {', '.join(parts)};" if parts else ""


def _memory_text(figures: dict[str, Any]) -> str:
    measured, predicted = figures["measured_bytes"], figures["predicted_bytes"]
    text = "not measured on a CPU" if measured is None else f"{measured / GIB:.2f} GiB"
    return f"memory {text}, predicted {predicted / GIB:.2f} GiB"


def _too_large(
    name: str, predicted: int | None, chip: Chip, count: int, figures: dict[str, Any], advice: str
) -> Line:
    """The line of something that was not run, because its memory would not suffice."""
    needed = (
        "more than the compiler can place" if predicted is None else f"{predicted / GIB:.1f} GiB"
    )
    text = f"not run: needs {needed} of {chip.memory / GIB:.1f} GiB on each of {count} devices"
    return Line(name, "warning", text, advice, figures)


def _verdict(name: str, text: str, figures: dict[str, Any], slow: bool) -> Line:
    """The line of something that ran; memory comes before speed."""
    measured, predicted = figures["measured_bytes"], figures["predicted_bytes"]
    if measured is not None and measured > _WRONG_PLAN * predicted:
        text = f"more memory than predicted; {text}"
        return Line(name, "warning", text, _MORE_ROOM, figures)
    if slow:
        return Line(name, "warning", f"slow for this chip; {text}", _SLOW, figures)
    return Line(name, "ok", text, "", figures)
