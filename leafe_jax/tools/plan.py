"""Predicts memory and time of a run before the job starts, on a machine without an accelerator.

    python -m leafe_jax.tools.plan --config=configs/household_instruct.py --model=Qwen2.5-72B-Instruct \\
        --topology=v5p:4x4x4 [--json]

It compiles the run's train step and its sampler's `turn` for a topology of TPUs or GPUs. Bytes are the
compiler's own count, per chip.

A topology is v4, v5e, v5p or v6e with a shape, e.g. v5e:4x4; h100 or h200 with the GPUs of a host, h100:8,
or with hosts and GPUs, h100:2x8; or cpu:8 for eight devices on this machine.
--model is a directory with config.json, or the name of one of the paper's models. The default is
config.model.path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leafe_jax.runtime import console
from leafe_jax.tools import topologies
from leafe_jax.tools.hardware import GIB, Chip, matmul_flops, train_flops
from leafe_jax.types import PACKED

if TYPE_CHECKING:  # `main` must set the platform before anything imports jax
    from leafe_jax.models.decoder import ModelConfig
    from leafe_jax.run.config import RunConfig
    from leafe_jax.sampling.requests import EngineConfig
    from leafe_jax.sampling.sizes import Needs
    from leafe_jax.training.objectives import Objective
    from leafe_jax.training.settings import TrainConfig

_SESSIONS = 32  # that a copy of the model should serve, where sampler.num_slots does not say
_DEPTHS = (4, 8)  # numbers of layers to compile the sampler's program with, if the model has more


def _device_bytes(tree: Any) -> int:
    """Bytes per chip of a tree of sharded ShapeDtypeStructs."""
    import jax

    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _placed(tree: Any, shardings: Any) -> Any:
    import jax

    return jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, shardings
    )


def _compile(lowered) -> tuple[int, int, int]:
    """Bytes of a program per chip, by the compiler's count: (arguments and results, temporaries,
    instructions).

    Raises:
      OutOfMemory: the compiler gave up, which it does if a program is far too large.
    """
    import jax

    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        text = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        raise OutOfMemory(text) from error
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
    kept -= memory.alias_size_in_bytes  # donated arguments are results
    return kept, memory.temp_size_in_bytes, memory.generated_code_size_in_bytes


class OutOfMemory(Exception):
    """The compiler ran out of memory for a program; the text is its message."""


def _memory(count: Callable[[], tuple[int, int, int]], chip: Chip) -> dict[str, Any]:
    """A program's memory in bytes, and whether it fits; `count` returns what `_compile` returns."""
    try:
        kept, temporary, code = count()
    except OutOfMemory as error:
        found = {"activations": None, "code": None, "total": None}
        return {**found, "fits": False, "compiler": str(error)}
    total = kept + temporary + code
    return {"activations": temporary, "code": code, "total": total, "fits": total <= chip.memory}


def _roofline(chip: Chip, flops: float, traffic: float) -> float | None:
    """Lower bound in seconds: the longer of arithmetic and memory traffic; None if unknown.

    `flops` and `traffic` (bytes) are per chip.
    """
    return max(flops / chip.flops, traffic / chip.bandwidth) if chip.flops else None


def plan_training(
    config: ModelConfig,
    train: TrainConfig,
    devices: Sequence[Any],
    chip: Chip,
    *,
    objective: Objective | None = None,
    sources: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Figures of the compiled train step, per chip.

    Args:
      config: the model, without adapters.
      train: training settings.
      devices: of the topology.
      chip: of the topology.
      objective, sources: as for make_train_step. They make no difference to the figures, but a step that
        runs afterwards with the same is not compiled again. By default SFT on two sources.
    """
    import jax
    import jax.numpy as jnp

    from leafe_jax.models import lora
    from leafe_jax.models.decoder import abstract_params
    from leafe_jax.models.sharding import shardings_for, train_mesh
    from leafe_jax.training.objectives import sft
    from leafe_jax.training.optimizer import make_optimizer
    from leafe_jax.training.step import make_train_step, state_shapes, step_options

    mesh = train_mesh(train.mesh, devices)
    base = abstract_params(config, train.compute_dtype)
    config = lora.with_adapters(config, train.lora)
    options = step_options(train, config, mesh)
    trained, frozen = base, {}
    if config.lora is not None:
        trained = jax.eval_shape(lambda: lora.init_adapters(config, jax.random.key(0)))
        frozen = _placed(base, shardings_for(base, mesh))
    tx = make_optimizer(train, 1000)
    state = state_shapes(trained, tx)
    state = _placed(state, shardings_for(state, mesh))
    shape = (train.batch_size, train.seq_len)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32 if name == "mass" else jnp.int32)
        for name in PACKED
    }
    batch = _placed(batch, shardings_for({"batch": batch}, mesh)["batch"])
    step: Any = make_train_step(
        config, tx, objective=objective or sft(), sources=sources or {"a": 1.0, "b": 1.0}, options=options,
        state=state, frozen=frozen,
    )  # fmt: skip
    tokens = train.batch_size * train.seq_len
    pairs = train.batch_size * train.seq_len * (train.seq_len + 1) // 2
    adapters = None
    if config.lora is not None:
        adapters = sum(math.prod(x.shape) for x in jax.tree.leaves(trained))
    flops = train_flops(config, tokens, pairs, train.remat, adapters) / len(devices)
    weights = _device_bytes(state["params"]) + _device_bytes(frozen)
    optimizer = _device_bytes(state["opt_state"])
    # Trained weights and moments are read and written once. Activations are not counted.
    traffic = 2.0 * (_device_bytes(state["params"]) + optimizer)
    return {
        "mesh": dict(mesh.shape),
        "tokens": tokens,
        "parameters": weights,
        "optimizer": optimizer,
        **_memory(lambda: _compile(step.lower(state, frozen, batch)), chip),
        "flops": flops,
        "roofline_seconds": _roofline(chip, flops, traffic),
    }


def decode_program(config: ModelConfig, engine: EngineConfig, dtype: str, mesh: Any):
    """The sampler's `turn` for all rows of one copy of the model at full length, lowered.

    It prefills a chunk of the prompt, then decodes token by token. None of the sampler's programs has more
    rows and tokens.

    Args:
      config: the model.
      engine: sizes, none of them 0.
      dtype: of weights and cache (model.dtype).
      mesh: devices of the copy, along "tensor"; None for the first device of this process.

    Returns:
      (lowered program, weights, pages, number of the sampler's programs). Weights and pages are
      ShapeDtypeStructs, sharded if there is a mesh.
    """
    import jax

    from leafe_jax.models.decoder import abstract_params
    from leafe_jax.models.sharding import shardings_for
    from leafe_jax.sampling.engine import make_storage, plan_programs

    weights = abstract_params(config, dtype)
    if mesh is not None:
        weights = _placed(weights, shardings_for(weights, mesh))
    storage = make_storage(engine.attention, config, mesh)
    shapes, programs, pool = plan_programs(config, weights, storage, engine)
    program = next(
        p
        for p in programs.listed
        if (p.kind, p.rows, p.pages) == ("turn", engine.num_slots, shapes.contexts[-1])
        and p.tokens == max(shapes.turns)
    )
    # The attention kernel reads the TPU generation from the mesh.
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return programs.lower(program), weights, pool, len(programs.listed)


def decode_bytes(
    config: ModelConfig, engine: EngineConfig, dtype: str, mesh: Any
) -> tuple[int, int, int]:
    """Bytes per chip of a sampler, by the compiler's count: (weights, pages and results; temporaries;
    instructions of all programs).

    Compiling a deep model takes ten minutes. All layers are alike, so for a model with more than
    max(`_DEPTHS`) layers the bytes are extrapolated linearly from two shallower models.

    Args:
      config, engine, dtype, mesh: as for `decode_program`.

    Raises:
      OutOfMemory: the compiler gave up.
    """
    depths = sorted({min(depth, config.num_layers) for depth in _DEPTHS})
    found, programs = [], 0
    for depth in depths:
        shallow = dataclasses.replace(config, num_layers=depth)
        lowered, _, _, programs = decode_program(shallow, engine, dtype, mesh)
        found.append(_compile(lowered))
    bytes_ = found[-1]
    if depths[-1] < config.num_layers:
        beyond = (config.num_layers - depths[-1]) / (depths[-1] - depths[0])
        kept, temporary, code = (
            round(b + max(b - a, 0) * beyond) for a, b in zip(*found, strict=True)
        )
        bytes_ = kept, temporary, code
    kept, temporary, code = bytes_
    return kept, temporary, code * programs  # all programs stay loaded; this one is the largest


def _engine_config(settings: RunConfig) -> EngineConfig:
    """The engine of a run, with one stop token: there is no tokenizer here. Sizes may be 0.

    Raises:
      UserError: a size is out of range.
    """
    from leafe_jax.sampling.requests import EngineConfig

    s = settings.sampler
    return EngineConfig(
        num_slots=s.num_slots, max_len=s.max_len, turn_chunk=s.turn_chunk,
        prefill_chunk=s.prefill_chunk,
        max_new_tokens=max(s.max_action_tokens, settings.prompts.reflection_tokens), stop_ids=(0,),
        page_size=s.page_size, num_pages=s.num_pages, attention=s.attention,
        options=settings.needs_options, memory_share=s.memory_share,
    )  # fmt: skip


def _needs(
    config: ModelConfig, engine: EngineConfig, dtype: str, tensor: int, chip: Chip
) -> tuple[Needs, int]:
    """(what an engine on `tensor` chips needs, bytes that the weights leave on each)."""
    import jax

    from leafe_jax.models.decoder import abstract_params
    from leafe_jax.sampling.sizes import needs_of

    shapes = abstract_params(config, dtype)
    weights = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    return needs_of(config, shapes, engine, tensor, chip.platform), chip.memory - weights // tensor


def _sized(
    config: ModelConfig, engine: EngineConfig, dtype: str, tensor: int, chip: Chip
) -> EngineConfig:
    """The engine with the sizes that a run would choose; the smallest, which the compiler will refuse, if
    nothing fits."""
    from leafe_jax.errors import UserError
    from leafe_jax.sampling.sizes import settled

    needs, free = _needs(config, engine, dtype, tensor, chip)
    try:
        return settled(needs, None if chip.platform == "cpu" else free)
    except UserError:
        return dataclasses.replace(
            engine, num_slots=engine.num_slots or 1, num_pages=engine.num_pages or needs.least
        )


def _copy_devices(
    config: ModelConfig, settings: RunConfig, dtype: str, host: list, chip: Chip
) -> list:
    """The devices of one copy of the model, all on one `host`, because each process samples on its own.

    Their number is sampler.tensor. If that is 1, it is the smallest that divides the key-value heads and
    has enough memory for num_slots sessions (`_SESSIONS` if that is 0), each of typical length. The memory
    needed is an estimate (sampling/sizes.py); the compiler decides later whether it fits.

    Raises:
      UserError: sampler.tensor does not divide the heads, or exceeds the devices of a host.
    """
    from leafe_jax.errors import UserError

    sampler = settings.sampler
    if sampler.tensor > 1:
        if config.num_kv_heads % sampler.tensor or sampler.tensor > len(host):
            raise UserError(
                f"sampler.tensor = {sampler.tensor}: must divide the model's {config.num_kv_heads}"
                f" key-value heads and be at most {len(host)}, the devices of a host"
            )
        return host[: sampler.tensor]
    engine, sizes = _engine_config(settings), []
    for number in (1, 2, 4, 8):
        if config.num_kv_heads % number or number > len(host):
            continue
        sizes.append(number)
        needs, free = _needs(config, engine, dtype, number, chip)
        slots, pages = [sampler.num_slots or _SESSIONS], sampler.num_pages
        room = sampler.memory_share * free
        if needs.fitting(room, slots, least=pages, most=pages, typical=not pages):
            break
    return host[: sizes[-1]]


def plan_decoding(
    config: ModelConfig, settings: RunConfig, dtype: str, host: list, hosts: int, chip: Chip
) -> dict[str, Any]:
    """Figures of the compiled `turn` of a sampler, per chip; see `decode_bytes`.

    Args:
      config: the model.
      settings: of the run. Each copy of the model serves num_slots sessions; sizes that are 0 are
        chosen as a run chooses them (sampling/sizes.py). With copies = 0 each host has as many copies as
        fit.
      dtype: of weights and cache (model.dtype).
      host: devices of one host.
      hosts: number of hosts.
      chip: of the devices.

    Raises:
      UserError: sampler.tensor is out of range.
    """
    from leafe_jax.models.sharding import make_mesh

    sampler = settings.sampler
    own = _copy_devices(config, settings, dtype, host, chip)
    engine = _sized(config, _engine_config(settings), dtype, len(own), chip)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": len(own)}, own)
    _, weights, pool, programs = decode_program(config, engine, dtype, mesh)
    cache = _device_bytes(pool)
    # A step reads only its tokens' rows of the embedding, but all of it if the head is tied.
    read = cache + sum(
        _device_bytes(leaf)
        for part, leaf in weights.items()
        if part != "embed" or config.tie_word_embeddings
    )

    slots = engine.num_slots
    flops = matmul_flops(config, slots, slots * sampler.max_len) / len(own)
    return {
        "tensor": len(own),
        "copies": hosts * (sampler.copies or len(host) // len(own)),
        "sessions": slots,
        "pages": engine.pool_pages,
        "length": sampler.max_len,
        "programs": programs,
        "compiled_layers": min(_DEPTHS[-1], config.num_layers),
        "parameters": _device_bytes(weights),
        "cache": cache,
        **_memory(lambda: decode_bytes(config, engine, dtype, mesh), chip),
        "flops": flops,  # one decode step for all sessions of a copy, at full length
        "roofline_seconds": _roofline(chip, flops, read),
    }


def _table(name: str, part: dict[str, Any]) -> str:
    lines = [f"{name}"]
    for key, value in part.items():
        if key in ("parameters", "optimizer", "activations", "cache", "code", "total"):
            value = "unknown" if value is None else f"{value / GIB:.2f} GiB"
        elif key == "flops":
            value = f"{value:.3e}"
        elif key == "roofline_seconds":
            value = "unknown" if value is None else f"{value * 1e3:.2f} ms"
        elif key == "mesh":
            value = ", ".join(f"{axis} {size}" for axis, size in value.items())
        elif key == "fits":
            value = "yes" if value else "NO"
        lines.append(f"  {key:18}{value}")
    return "\n".join(lines)


def _train_settings(settings: RunConfig) -> TrainConfig:
    """Of the first method that trains; of `leafe` if none of the run's methods does."""
    trained = [settings.find(name).config for name in (*settings.methods, "leafe")]
    return next(method.train for method in trained if hasattr(method, "train"))


def _fail(message: str) -> int:
    console.complain(message)
    return 2


def main(argv: list[str]) -> int:
    """Prints the plan. Returns 0 if everything fits, 1 if not, 2 after one line on stderr for bad flags."""
    from absl import flags
    from ml_collections import config_flags

    console.set_up()
    values = flags.FlagValues()
    config_flag = config_flags.DEFINE_config_file(
        "config", None, "Config file.", flag_values=values
    )
    flags.DEFINE_string("topology", None, "e.g. v5p:4x4x4, h100:8 or cpu:8", flag_values=values)
    flags.DEFINE_string("model", "", "Directory, or name of a paper's model.", flag_values=values)
    flags.DEFINE_boolean("json", False, "Print figures as JSON.", flag_values=values)
    try:
        values(argv)
        config = values[config_flag.name].value
        if config is None or values["topology"].value is None:
            return _fail("--config and --topology are needed; see docs/SCALING.md")
        config.keys()
        topology = topologies.parse(values["topology"].value)
    except (flags.Error, AttributeError, TypeError, ValueError, OSError, ImportError) as error:
        return _fail(" ".join(str(error).strip().splitlines()[-1].split()))
    # Must be set before jax is imported. The plan uses no accelerator of this machine.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # Lets other processes compile or use a TPU at the same time; this one opens none.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    if topology.kind == "cpu":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={topology.count}"

    from leafe_jax.errors import UserError
    from leafe_jax.run.config import RunConfig
    from leafe_jax.sampling.engine import check_sizes
    from leafe_jax.tools.known_models import find_model

    try:
        settings = RunConfig.read(config)
        model = find_model(values["model"].value or settings.model.path)
        check_sizes(model, _engine_config(settings))  # before minutes of compiling
        devices, chip = topologies.find_devices(topology)
        host, hosts = topologies.one_host(topology, devices)
        result = {
            "topology": values["topology"].value,
            "chips": topology.count,
            "memory_per_chip": chip.memory,
            "train": plan_training(model, _train_settings(settings), devices, chip),
            "decode": plan_decoding(model, settings, settings.model.dtype, host, hosts, chip),
        }
    except UserError as error:
        return _fail(str(error))
    if values["json"].value:
        console.say(json.dumps(result))
    else:
        console.say(
            f"{result['topology']}: {topology.count} chips of {chip.memory / GIB:.4g} GiB; per chip:"
        )
        console.say(_table("train step", result["train"]))
        console.say(_table("sampler's turn, one copy of the model", result["decode"]))
    return 0 if result["train"]["fits"] and result["decode"]["fits"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
