"""Memory and time of a run before the job starts: compiles its train step and its decode step for a
TPU topology, on a machine without any TPU.

    python -m leafe_jax.tools.plan --config=configs/household_instruct.py --model=Qwen2.5-72B-Instruct \\
        --topology=v5p:4x4x4 [--json]

Topologies: v4, v5e, v5p and v6e with their shape, e.g. v5e:4x4, or cpu:8 for eight devices of this
machine. Without --model the model is config.model.path: a directory with config.json, or the name of
one of the paper's models. Bytes are the compiler's own count, per chip.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafe_jax.runtime import console
from leafe_jax.runtime.settings import build
from leafe_jax.tools.hardware import CHIPS, GIB, Chip, matmul_flops, train_flops
from leafe_jax.training.settings import TrainConfig
from leafe_jax.types import PACKED

if TYPE_CHECKING:
    from leafe_jax.sampling.requests import EngineConfig

_DEPTHS = (4, 8)  # layers that the sampler's program is compiled with, where the model has more


# The paper's models: hidden, intermediate, layers, heads, key-value heads, vocabulary (config.json of
# each on the hub; heads are 128 wide).
_QWEN = {
    "Qwen2.5-7B": (3584, 18944, 28, 28, 4, 152064),
    "Qwen2.5-14B": (5120, 13824, 48, 40, 8, 152064),
    "Qwen2.5-32B": (5120, 27648, 64, 40, 8, 152064),
    "Qwen2.5-72B": (8192, 29568, 80, 64, 8, 152064),
}
_LLAMA = {
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256),
    "Llama-3-70B": (8192, 28672, 80, 64, 8, 128256),
}


def parse_topology(text: str) -> tuple[str, str, int]:
    """(kind, shape, number of chips) of e.g. "v5p:4x4x4" or "cpu:8".

    Raises:
      ValueError: neither.
    """
    match = re.fullmatch(r"(cpu|v4|v5e|v5p|v6e):(\d+(?:x\d+){0,2})", text)
    count = math.prod(map(int, match.group(2).split("x"))) if match else 0
    if count < 1 or (match.group(1) == "cpu") != ("x" not in match.group(2)):
        raise ValueError(
            f"--topology={text}: must be cpu:N, or v4, v5e, v5p or v6e with a shape, as in v5e:4x4"
        )
    return match.group(1), match.group(2), count


def find_model(name: str):
    """The ModelConfig of a directory with config.json, or of one of the paper's models.

    Raises:
      UserError: neither.
    """
    from leafe_jax.errors import UserError
    from leafe_jax.models.decoder import ModelConfig
    from leafe_jax.models.hf_config import read_config

    if (Path(name) / "config.json").is_file():
        return read_config(name)
    short = Path(name).name.removesuffix("-Instruct")
    known = {**_QWEN, **_LLAMA}
    if short not in known:
        raise UserError(
            f"--model={name}: no directory with config.json, nor one of {', '.join(known)}"
        )
    hidden, wide, layers, heads, kv_heads, vocabulary = known[short]
    qwen = short in _QWEN
    return ModelConfig(
        model_type="qwen2" if qwen else "llama", vocab_size=vocabulary, hidden_size=hidden,
        intermediate_size=wide, num_layers=layers, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=128, rope_theta=1e6 if qwen else 5e5, rms_norm_eps=1e-6 if qwen else 1e-5,
        tie_word_embeddings=False, max_position_embeddings=32768 if qwen else 8192,
    )  # fmt: skip


def _device_bytes(tree: Any) -> int:
    """Bytes on each chip of a tree of sharded ShapeDtypeStructs."""
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
    """Bytes of a program on each chip, by the compiler's count: (arguments and results, what it needs
    beside them, its instructions).

    Raises:
      OutOfMemory: the compiler gave up, as it does where a program is far too large.
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
    """The compiler's words."""


def _memory(count: Callable[[], tuple[int, int, int]], chip: Chip) -> dict[str, Any]:
    """The figures of a program's memory, `count` as `_compile` gives them."""
    try:
        kept, temporary, code = count()
    except OutOfMemory as error:
        found = {"activations": None, "code": None, "total": None}
        return {**found, "fits": False, "compiler": str(error)}
    total = kept + temporary + code
    return {"activations": temporary, "code": code, "total": total, "fits": total <= chip.memory}


def _roofline(chip: Chip, flops: float, traffic: float) -> float | None:
    """Seconds at least: the longer of arithmetic and memory, per chip; None where unknown."""
    return max(flops / chip.flops, traffic / chip.bandwidth) if chip.flops else None


def plan_training(config, train: TrainConfig, devices, chip: Chip) -> dict[str, Any]:
    """Compiles the train step of a training config; figures per chip.

    Args:
      config: the model, without adapters.
      train: the settings.
      devices: of the topology.
      chip: its kind.
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
    step = make_train_step(
        config, tx, objective=sft(), sources={"a": 1.0, "b": 1.0}, options=options,
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
    # Masters and moments are read and written once; activations are not counted.
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


def decode_program(config, sampler, dtype: str, mesh):
    """The sampler's turn for all rows of one copy of the model at full length, lowered: a chunk of the
    prompt, then tokens one by one. No other of its programs has more rows and tokens.

    Args:
      config: the model.
      sampler: sampler section.
      dtype: of weights and cache (model.dtype).
      mesh: of the copy's devices, along "tensor".

    Returns:
      (lowered program, weights, pages, number of the sampler's programs); weights and pages as sharded
      ShapeDtypeStructs.
    """
    import jax

    from leafe_jax.models.decoder import abstract_params
    from leafe_jax.models.sharding import shardings_for
    from leafe_jax.sampling.engine import make_storage, plan_programs

    weights = abstract_params(config, dtype)
    weights = _placed(weights, shardings_for(weights, mesh))
    s = sampler
    storage = make_storage(s.attention, config, mesh)
    shapes, programs, pool = plan_programs(config, weights, storage, _engine_config(s))
    program = next(
        p
        for p in programs.listed
        if (p.kind, p.rows, p.pages) == ("turn", s.num_slots, shapes.contexts[-1])
        and p.tokens == max(shapes.turns)
    )
    with jax.set_mesh(mesh):  # the kernel asks it for the TPU's generation
        return programs.lower(program), weights, pool, len(programs.listed)


def _engine_config(s) -> EngineConfig:
    """The engine of a sampler section; with one stop token, since there is no tokenizer.

    Raises:
      UserError: a size is out of range.
    """
    from leafe_jax.sampling.requests import EngineConfig
    from leafe_jax.types import Sampling

    sampling = Sampling(1.0, s.top_k, s.top_p, s.min_p, s.repetition_penalty, tuple(s.logit_bias))
    return EngineConfig(
        num_slots=s.num_slots, max_len=s.max_len, turn_chunk=s.turn_chunk,
        prefill_chunk=s.prefill_chunk,
        max_new_tokens=max(s.max_action_tokens, s.max_reflection_tokens), stop_ids=(0,),
        page_size=s.page_size, num_pages=s.num_pages, attention=s.attention,
        options=not sampling.plain,
    )  # fmt: skip


def _copy_devices(config, sampler, dtype: str, host, chip: Chip) -> list:
    """The devices of one copy of the model: sampler.tensor of them; where that is 1, the fewest that
    divide the key-value heads and have room. They are of one `host`: a process samples on its own.

    The room is estimated, with a tenth on top for what a turn computes; whether it fits is for the
    compiler to say.

    Raises:
      UserError: sampler.tensor does not divide the heads, or is more than a host has.
    """
    import jax

    from leafe_jax.errors import UserError
    from leafe_jax.models.decoder import abstract_params

    if sampler.tensor > 1:
        if config.num_kv_heads % sampler.tensor or sampler.tensor > len(host):
            raise UserError(
                f"sampler.tensor = {sampler.tensor}: must divide the model's {config.num_kv_heads}"
                f" key-value heads and be at most {len(host)}, the devices of a host"
            )
        return host[: sampler.tensor]
    shapes = jax.tree.leaves(abstract_params(config, dtype))
    weights = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)
    # Bytes of a token's keys and values.
    token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * shapes[0].dtype.itemsize
    pages = _engine_config(sampler).pool_pages
    needed = 1.1 * (weights + pages * sampler.page_size * token)
    sizes = [n for n in (1, 2, 4, 8) if config.num_kv_heads % n == 0 and n <= len(host)]
    return host[: next((n for n in sizes if needed / n <= chip.memory), sizes[-1])]


def plan_decoding(config, sampler, dtype: str, host, hosts: int, chip: Chip) -> dict[str, Any]:
    """Compiles a sampler's turn; figures per chip.

    Its layers are alike and in a row, and a deep model would take the compiler ten minutes: above
    `_DEPTHS` layers the bytes go on along the line through two shallower models.

    Args:
      config: the model.
      sampler: sampler section; num_slots sessions a copy of the model, and as many copies as there is
        room for beside each other on every host (sampler.copies = 0).
      dtype: of weights and cache (model.dtype).
      host, hosts: devices of one host, and how many hosts there are.
      chip: their kind.

    Raises:
      UserError: sampler.tensor is out of range.
    """
    from leafe_jax.models.sharding import make_mesh

    own = _copy_devices(config, sampler, dtype, host, chip)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": len(own)}, own)
    _, weights, pool, programs = decode_program(config, sampler, dtype, mesh)
    cache = _device_bytes(pool)
    # A step reads the rows of its tokens, not the table; a tied head reads it as the head.
    read = cache + sum(
        _device_bytes(leaf)
        for part, leaf in weights.items()
        if part != "embed" or config.tie_word_embeddings
    )

    def count() -> tuple[int, int, int]:
        depths = sorted({min(depth, config.num_layers) for depth in _DEPTHS})
        found = []
        for depth in depths:
            shallow = dataclasses.replace(config, num_layers=depth)
            found.append(_compile(decode_program(shallow, sampler, dtype, mesh)[0]))
        bytes_ = found[-1]
        if depths[-1] < config.num_layers:
            beyond = (config.num_layers - depths[-1]) / (depths[-1] - depths[0])
            bytes_ = [round(b + max(b - a, 0) * beyond) for a, b in zip(*found, strict=True)]
        kept, temporary, code = bytes_
        return kept, temporary, code * programs  # all stay on the device; none has more of it

    slots = sampler.num_slots
    flops = matmul_flops(config, slots, slots * sampler.max_len) / len(own)
    return {
        "tensor": len(own),
        "copies": hosts * (sampler.copies or len(host) // len(own)),
        "sessions": slots,
        "length": sampler.max_len,
        "programs": programs,
        "compiled_layers": min(_DEPTHS[-1], config.num_layers),
        "parameters": _device_bytes(weights),
        "cache": cache,
        **_memory(count, chip),
        "flops": flops,  # of one token of every session of a copy, at full length
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


def _host(kind: str, devices) -> tuple[list, int]:
    """Devices of one host of a topology, as a topology of its own, and the number of hosts.

    The compiler counts devices of a program from 0 without a gap, so that a host's corner of a larger
    topology (0, 1, 4, 5 of 4x4) cannot have one for itself.
    """
    hosts = len({d.process_index for d in devices})
    if hosts == 1:
        return list(devices), 1
    alone, _ = _devices(kind, "2x2" if kind in ("v5e", "v6e") else "2x2x1", 4)
    return list(alone), hosts


def _devices(kind: str, shape: str, count: int):
    import jax

    from leafe_jax.errors import UserError

    if kind == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return jax.devices()[:count], Chip("cpu", memory // count, 0.0, 0.0)
    from jax.experimental import topologies

    # A v4 chip is one device to jax, as it is when it is there; a description has its two cores apart.
    whole = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{'v5' if kind == 'v5p' else kind}:{shape}", **whole
        )
    except (RuntimeError, ValueError) as error:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"--topology={kind}:{shape}: needs the TPU compiler, pip install libtpu"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology={kind}:{shape}: refused by libtpu ({reason})") from error
    return topology.devices, CHIPS[kind]


def _fail(message: str) -> int:
    console.complain(message)
    return 2


def main(argv: list[str]) -> int:
    """Prints the plan; 0 if everything fits, 1 if not, 2 with one line on stderr for bad flags."""
    from absl import flags
    from ml_collections import config_flags

    console.set_up()
    values = flags.FlagValues()
    config_flag = config_flags.DEFINE_config_file(
        "config", None, "Config file.", flag_values=values
    )
    flags.DEFINE_string("topology", None, "e.g. v5p:4x4x4 or cpu:8", flag_values=values)
    flags.DEFINE_string("model", "", "Directory, or name of a paper's model.", flag_values=values)
    flags.DEFINE_boolean("json", False, "Figures as JSON.", flag_values=values)
    try:
        values(argv)
        config = values[config_flag.name].value
        if config is None or values["topology"].value is None:
            return _fail("--config and --topology are needed; see docs/SCALING.md")
        config.keys()
        kind, shape, count = parse_topology(values["topology"].value)
    except (flags.Error, AttributeError, TypeError, ValueError, OSError, ImportError) as error:
        return _fail(" ".join(str(error).strip().splitlines()[-1].split()))
    # Before jax is imported: no accelerator of this machine is used.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # No TPU is opened, so that another process may compile, or have one, meanwhile.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    if kind == "cpu":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"

    from leafe_jax.errors import UserError
    from leafe_jax.sampling.engine import check_sizes

    try:
        model = find_model(values["model"].value or config.model.path)
        check_sizes(model, _engine_config(config.sampler))  # before minutes of compiling
        train = build(TrainConfig, config.distill.train, "distill.train")
        devices, chip = _devices(kind, shape, count)
        result = {
            "topology": values["topology"].value,
            "chips": count,
            "memory_per_chip": chip.memory,
            "train": plan_training(model, train, devices, chip),
            "decode": plan_decoding(
                model, config.sampler, config.model.dtype, *_host(kind, devices), chip
            ),
        }
    except UserError as error:
        return _fail(str(error))
    if values["json"].value:
        console.say(json.dumps(result))
    else:
        console.say(
            f"{result['topology']}: {count} chips of {chip.memory / GIB:.4g} GiB; per chip:"
        )
        console.say(_table("train step", result["train"]))
        console.say(_table("sampler's turn, of one copy of the model", result["decode"]))
    return 0 if result["train"]["fits"] and result["decode"]["fits"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
