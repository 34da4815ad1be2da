"""The plan tool: its figures against published and counted ones, and programs compiled for TPUs."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import trainer

from leafe_jax.errors import UserError
from leafe_jax.models import decoder, lora
from leafe_jax.models.attention import segment_attend
from leafe_jax.models.settings import TARGETS
from leafe_jax.run.config import RunConfig
from leafe_jax.run.presets import load_config
from leafe_jax.tools import hardware, plan, topologies
from leafe_jax.tools.known_models import find_model
from leafe_jax.training.objectives import sft
from leafe_jax.training.step import loss_sums

ROOT = Path(__file__).resolve().parents[2]


def test_the_papers_models_have_their_published_sizes():
    published = {
        "Qwen2.5-7B-Instruct": 7615616512, "Qwen2.5-14B": 14770033664, "Qwen2.5-32B": 32763876352,
        "Qwen2.5-72B": 72706203648, "Llama-3.1-8B-Instruct": 8030261248, "Llama-3-70B": 70553706496,
    }  # fmt: skip
    for name, count in published.items():
        shapes = decoder.abstract_params(find_model(name))
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == count, name


def test_flops_are_the_compilers():
    """Counted by XLA for one unrolled forward pass, in which matrix products dominate."""
    config = dataclasses.replace(
        trainer.CONFIG, hidden_size=128, intermediate_size=384, vocab_size=512
    )
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def forward(params, tokens):
        attend = segment_attend(jnp.ones_like(tokens))
        positions = jnp.broadcast_to(jnp.arange(64), (2, 64))
        return decoder.head(
            config, params, decoder.hidden(config, params, tokens, positions, attend)
        )

    compiled = jax.jit(forward).lower(decoder.abstract_params(config), tokens).compile()
    counted = compiled.cost_analysis()["flops"]
    # The reference attention computes all pairs, not the causal half.
    assert hardware.matmul_flops(config, 128, 2 * 64 * 64) == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize(
    ("rank", "remat"),
    [
        (0, "none"),
        (16, "full"),
        pytest.param(0, "full", marks=pytest.mark.slow),
        pytest.param(16, "none", marks=pytest.mark.slow),
    ],
)
def test_train_flops_are_the_compilers(rank, remat):
    """Counted by XLA for loss and gradients with unrolled layers; frozen matrices have no gradient."""
    config = dataclasses.replace(
        trainer.CONFIG, hidden_size=128, intermediate_size=384, vocab_size=512, num_layers=6,
        num_heads=8, num_kv_heads=4, head_dim=16,
    )  # fmt: skip
    adapters = dict(rank=rank, targets=TARGETS)
    config = lora.with_adapters(config, trainer.train_config(lora=adapters).lora)
    options = trainer.options(config, remat=remat)
    base, frozen = decoder.abstract_params(dataclasses.replace(config, lora=None)), {}
    trained, count = base, None
    if rank:
        trained = jax.eval_shape(lambda: lora.init_adapters(config, jax.random.key(0)))
        frozen, count = base, sum(math.prod(x.shape) for x in jax.tree.leaves(trained))
    batch = {
        k: jax.ShapeDtypeStruct((2, 64), jnp.float32 if k == "mass" else jnp.int32)
        for k in ("tokens", "targets", "positions", "segment_ids", "source", "mass")
    }

    def loss(trained, frozen, batch):
        params = lora.join(frozen, trained)
        return loss_sums(config, params, batch, jnp.ones(2), sft(), options)[0]

    compiled = jax.jit(jax.grad(loss)).lower(trained, frozen, batch).compile()
    counted = compiled.cost_analysis()["flops"]
    # The reference attention computes all pairs, not the causal half.
    planned = hardware.train_flops(config, 128, 2 * 64 * 64, remat, count)
    assert planned == pytest.approx(counted, rel=0.1)


BAD = (
    "v5p", "v5p:", "v7x:2x2", "cpu:2x2", "v5e:0x4", "v5e:8", "cpu:x", "h100:", "h100:1x2x8", "h100:0",
    "h100:2x", "a100:8", "cpu:8\n",
)  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_bad_topologies(text):
    with pytest.raises(ValueError, match="must be cpu:N, or v4"):
        topologies.parse(text)


def test_topologies_and_models():
    found = [topologies.parse(text) for text in ("v5p:4x4x4", "cpu:8", "h100:8", "h200:2x8")]
    assert [(x.kind, x.shape, x.count) for x in found] == [
        ("v5p", "4x4x4", 64), ("cpu", "8", 8), ("h100", "8", 8), ("h200", "2x8", 16),
    ]  # fmt: skip
    with pytest.raises(
        UserError, match="--model=GPT-2: must be a directory with config.json, or one of"
    ):
        find_model("GPT-2")
    assert find_model(str(ROOT / "leafe_jax/assets/base")).num_layers == 4


# The program, several times in one process: an exit code after each.
_PLANS = """
import sys
from leafe_jax.tools import plan
for arguments in eval(sys.stdin.read()):
    sys.argv = ["plan", *arguments]  # config_flags looks there for overrides
    print("code", plan.main(sys.argv), flush=True)
    print("next", file=sys.stderr, flush=True)
"""


def run(*calls, timeout=500):
    """(exit code, stdout, stderr) of the program with each of these arguments."""
    done = subprocess.run(
        [sys.executable, "-c", _PLANS], input=repr(calls), capture_output=True, text=True,
        timeout=timeout, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    codes = [int(x) for x in re.findall(r"^code (\d)$", done.stdout, re.MULTILINE)]
    outs = re.split(r"^code \d\n", done.stdout, flags=re.MULTILINE)[:-1]
    return list(zip(codes, outs, done.stderr.split("next\n")[:-1], strict=True))


QUICKSTART = ("--config=configs/quickstart.py", "--model=leafe_jax/assets/base", "--json")


@pytest.mark.slow
def test_plan_on_fake_devices():
    flags = ("--topology=cpu:2", "--config.leafe.train.mesh.data=1",
             "--config.leafe.train.mesh.fsdp=2")  # fmt: skip
    (code, out, _), (told_code, told, _) = run((*QUICKSTART, *flags), (*QUICKSTART[:2], *flags))
    assert code == told_code == 0
    plans = json.loads(out)
    figures = plans["train"]
    config = find_model(str(ROOT / "leafe_jax/assets/base"))
    leaves = jax.tree_util.tree_flatten_with_path(decoder.abstract_params(config))[0]
    # fsdp = 2: half of each matrix, all of each norm; float32.
    share = sum(math.prod(x.shape) * 4 / (1 if x.ndim == 1 else 2) for _, x in leaves)
    assert figures["parameters"] == share
    assert 2 * share <= figures["optimizer"] <= 2 * share + 64
    assert figures["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
    assert figures["roofline_seconds"] is None
    parts = ("parameters", "optimizer", "activations", "code")
    batch = figures["total"] - sum(figures[name] for name in parts)
    assert 0 < batch < 2**20
    decode = plans["decode"]
    assert decode["total"] > sum(decode[k] for k in ("parameters", "cache", "activations", "code"))
    # The same figures as text.
    first, *lines = told.splitlines()
    assert first.startswith("cpu:2: 2 chips of ")
    at = lines.index("sampler's turn, one copy of the model")
    assert lines[0] == "train step"
    for part, rows in ((figures, lines[1:at]), (decode, lines[at + 1 :])):
        said = {row.split()[0]: row.split()[1:] for row in rows}
        assert list(said) == list(part)
        for name in ("parameters", "activations", "total"):
            assert said[name] == [f"{part[name] / 2**30:.2f}", "GiB"]
        assert said["fits"] == ["yes"] and said["roofline_seconds"] == ["unknown"]


_LIMITS = """
import re
import jax, jax.numpy as jnp
from leafe_jax.tools import plan, topologies

for kind, shape in (("v4", "2x2x1"), ("v5e", "2x2"), ("v5p", "2x2x1"), ("v6e", "2x2")):
    devices, chip = topologies.find_devices(topologies.Topology(kind, shape))
    where = jax.sharding.SingleDeviceSharding(devices[0])
    large = jax.ShapeDtypeStruct((2**35,), jnp.float32, sharding=where)
    try:
        plan._compile(jax.jit(lambda x: x + 1).lower(large))
    except plan.OutOfMemory as error:
        print(kind, chip.memory / 2**30, re.search(r"exceeds available HBM \\(([\\d.]+)G\\)", str(error)).group(1))
"""


def test_chips_have_the_memory_that_the_compiler_gives():
    pytest.importorskip("libtpu")
    done = subprocess.run(
        [sys.executable, "-c", _LIMITS], capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
             "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
    )  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [kind for kind, *_ in lines] == ["v4", "v5e", "v5p", "v6e"], done.stderr[-3000:]
    for kind, ours, theirs in lines:
        assert 0.99 * float(theirs) < float(ours) <= float(theirs) + 0.005, kind


def test_errors_are_one_line():
    wrong = {
        "--config and --topology are needed": ("--topology=v5e:4x4",),
        "--topology=v5e: must be": (*QUICKSTART, "--topology=v5e"),
        "train.mesh: data = 3": (*QUICKSTART, "--topology=cpu:2", "--config.leafe.train.mesh.data=3"),
        "sampler.max_len = 4096: must be": (
            *QUICKSTART, "--topology=cpu:2", "--config.sampler.max_len=4096",
        ),
        "--topology=v5e:3x5: ": (*QUICKSTART, "--topology=v5e:3x5"),
    }  # fmt: skip
    for message, (code, out, err) in zip(wrong, run(*wrong.values()), strict=True):
        assert code == 2 and out == "" and err.count("error:") == 1
        assert message in err and "Traceback" not in err


@pytest.mark.parametrize(("depths", "layers"), [((2, 4), 6), ((4, 8), 12)])
@pytest.mark.slow
def test_the_memory_of_a_deep_sampler_is_extrapolated(monkeypatch, depths, layers):
    """From counts for two numbers of layers, and counted directly."""
    config = dataclasses.replace(trainer.CONFIG, num_layers=layers, max_position_embeddings=256)
    made = load_config("default")
    made.sampler.num_slots, made.sampler.max_len = 8, 128
    settings = RunConfig.read(made)
    chip = hardware.Chip("cpu", 2**30, 0.0, 0.0)

    def planned(dtype, *depths):
        monkeypatch.setattr(plan, "_DEPTHS", depths)
        return plan.plan_decoding(config, settings, dtype, jax.devices()[:1], 1, chip)

    scaled, whole = planned("bfloat16", *depths), planned("bfloat16", layers)
    assert (scaled["compiled_layers"], whole["compiled_layers"]) == (depths[1], layers)
    assert scaled["total"] == pytest.approx(whole["total"], rel=0.05)
    # Pages x 16 positions x (keys, values) x layers x 2 heads x 8 numbers x 2 bytes.
    assert scaled["cache"] == (8 * 9 + 1) * 16 * 2 * layers * 2 * 8 * 2
    # Weights and cache take twice as much in float32.
    wide = planned("float32", 1, 2)
    assert wide["cache"] == 2 * whole["cache"] and wide["parameters"] == 2 * whole["parameters"]
    assert scaled["sessions"] == 8 and scaled["copies"] == scaled["tensor"] == 1 and scaled["fits"]


def test_a_copy_of_the_model_is_on_one_host():
    config = find_model("Qwen2.5-72B")
    made = load_config("household_instruct")
    made.sampler.num_slots = 64
    settings = RunConfig.read(made)
    devices = list("abcd")
    # Weights take 135 GiB and the pages of 64 sessions of half the length 80, of 85% of the rest. Three chips
    # of 100 GiB would be enough, but three do not divide the heads, and four do.
    roomy = hardware.Chip("tpu", 100 * hardware.GIB, 1.0, 1.0)
    assert plan._copy_devices(config, settings, "bfloat16", devices, roomy) == devices
    # Far too little memory: all four chips of the host, and no more.
    narrow = hardware.Chip("tpu", 16 * hardware.GIB, 1.0, 1.0)
    assert plan._copy_devices(config, settings, "bfloat16", devices, narrow) == devices
    huge = hardware.Chip("tpu", 400 * hardware.GIB, 1.0, 1.0)
    assert plan._copy_devices(config, settings, "bfloat16", devices, huge) == devices[:1]
    # In float32 the same needs twice as much.
    large = hardware.Chip("tpu", 330 * hardware.GIB, 1.0, 1.0)
    assert plan._copy_devices(config, settings, "bfloat16", devices, large) == devices[:1]
    assert plan._copy_devices(config, settings, "float32", devices, large) == devices[:2]
    made.sampler.tensor = 2
    settings = RunConfig.read(made)
    assert plan._copy_devices(config, settings, "bfloat16", devices, narrow) == devices[:2]
    for tensor in (3, 8):
        made.sampler.tensor = tensor
        settings = RunConfig.read(made)
        with pytest.raises(UserError, match=f"sampler.tensor = {tensor}: must divide"):
            plan._copy_devices(config, settings, "bfloat16", devices, roomy)


@pytest.mark.slow
def test_plan_on_a_small_tpu():
    ((code, out, err),) = run((*QUICKSTART, "--topology=v5e:2x2"))
    assert code == 0, err[-2000:]
    figures = json.loads(out)
    assert figures["train"]["fits"] and figures["decode"]["fits"]
    assert figures["train"]["roofline_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, topology, rows, sessions",
    [("Qwen2.5-7B", "v5e:4x4", 16, 64), ("Qwen2.5-72B", "v5p:4x4x4", 64, 64)],
)
def test_the_papers_models_fit(model, topology, rows, sessions):
    arguments = (
        "--config=configs/household_instruct.py", f"--model={model}", f"--topology={topology}",
        "--config.leafe.train.seq_len=4096", f"--config.leafe.train.batch_size={rows}",
        f"--config.sampler.num_slots={sessions}", "--json",
    )  # fmt: skip
    ((_, out, _),) = run(arguments, timeout=3000)
    figures = json.loads(out)
    assert figures["train"]["fits"] and figures["decode"]["fits"], figures
