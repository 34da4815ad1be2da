"""Topologies of GPUs: what is said without their compiler, and all programs compiled where it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leafe_jax.errors import UserError
from leafe_jax.tools import topologies

ROOT = Path(__file__).resolve().parents[2]


def test_the_compiler_for_gpus_is_not_installed(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    message = (
        r"^--topology=h100:2x8: needs the GPU compiler and cuDNN \(4 GB\), pip install"
        r" 'jax-cuda13-plugin\[with-cuda\]==\d+\.\d+\.\d+'$"
    )
    with pytest.raises(UserError, match=message):
        topologies.find_devices(topologies.parse("h100:2x8"))


def test_jax_takes_a_share_of_a_gpus_memory(monkeypatch):
    variable = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    monkeypatch.delenv(variable, raising=False)
    assert topologies._gpu_share() == 0.75
    monkeypatch.setenv(variable, ".92")
    assert topologies._gpu_share() == 0.92
    for text in ("0", "1.5", "nan", "most", ""):
        monkeypatch.setenv(variable, text)
        with pytest.raises(UserError, match=f"^{variable}={text}: must be above 0 and at most 1$"):
            topologies._gpu_share()


_COMPILE = """
import dataclasses, sys
import jax, jax.numpy as jnp
from leafe_jax.models.decoder import ModelConfig, abstract_params
from leafe_jax.models.settings import MeshConfig
from leafe_jax.models.sharding import make_mesh, shardings_for, train_mesh
from leafe_jax.sampling.engine import make_storage, plan_programs
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.tools import plan, topologies
from leafe_jax.training.settings import TrainConfig
from leafe_jax.training.step import make_train_step

# Qwen2.5-7B's heads, and the least widths that have the same programs.
config = ModelConfig(
    model_type="qwen2", vocab_size=1024, hidden_size=256, intermediate_size=512, num_layers=2,
    num_heads=28, num_kv_heads=4, head_dim=128, rope_theta=1e6, rms_norm_eps=1e-6,
    tie_word_embeddings=False, max_position_embeddings=32768,
)
devices, chip = topologies.find_devices(topologies.parse(sys.argv[1]))
assert (len(devices), chip.platform, chip.memory) == (int(sys.argv[1][5:]), "gpu", 63707234304)

# The train step, as the plan tool compiles it: its text is kept.
texts = []
counted = plan._compile
def compile(lowered):
    texts.append(lowered.compile().as_text())
    return counted(lowered)
plan._compile = compile
train = TrainConfig(
    batch_size=2 * len(devices), seq_len=256, compute_dtype="bfloat16", remat="full", scan_layers=True,
    mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
)
found = plan.plan_training(config, train, devices, chip)
(text,) = texts
assert found["fits"] and found["activations"] > 0 and found["roofline_seconds"] > 0
for kernel in ("__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"):
    assert f'"{kernel}"' in text, kernel
assert ("all-gather" in text) == ("reduce-scatter" in text) == (len(devices) > 1)

# All programs of a sampler, on one GPU or on four of eight; one layer, because layers are unrolled.
config, own = dataclasses.replace(config, num_layers=1), devices[:4]
mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": len(own)}, own)
params = abstract_params(config, "bfloat16")
params = jax.tree.map(
    lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), params, shardings_for(params, mesh)
)
sizes = EngineConfig(
    num_slots=8, max_len=256, turn_chunk=32, prefill_chunk=32, max_new_tokens=64, stop_ids=(0,),
    num_pages=8 * 17,
)
_, programs, pool = plan_programs(config, params, make_storage("auto", config, mesh), sizes)
assert {p.kind for p in programs.listed} == {"turn", "prefill"} and any(p.groups for p in programs.listed)
held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool)) // len(own)
with jax.set_mesh(mesh):
    for program in programs.listed:
        memory = programs.lower(program).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= held, program  # the pool is written in place
print(len(programs.listed), "programs compiled")
"""


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["h100:1", "h100:8"])
def test_all_programs_compile_for_gpus(topology):
    """The train step with cuDNN's attention, and every program of a sampler."""
    if not all(map(topologies._installed, ("jax_cuda13_plugin", "nvidia.cudnn"))):
        pytest.skip("pip install 'jax-cuda13-plugin[with-cuda]' (4 GB)")
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, topology], capture_output=True, text=True, timeout=2400,
        check=False, cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "XLA_PYTHON_CLIENT_MEM_FRACTION"}
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
           "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("programs compiled\n"), done.stderr[-3000:]
