"""Hugging Face directories with several devices, with two processes, and with little memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import CASES, make_torch
from lazily import torch, transformers

_WORKER = """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
rank, port, source, target = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize("127.0.0.1:" + port, 2, rank)
from leafe_jax.models import hf
from leafe_jax.models.decoder import abstract_params
from leafe_jax.models.sharding import make_mesh, shardings_for
config = hf.read_config(source)
mesh = make_mesh(dict(data=1, fsdp=2, tensor=2))
shardings = shardings_for(abstract_params(config), mesh)
params = hf.load_params(source, config, "float32", shardings)
kernel = params["layers"]["0"]["mlp"]["up_proj"]["kernel"]
assert not kernel.is_fully_addressable and len(kernel.addressable_shards) == 2
assert kernel.addressable_shards[0].data.size * 4 == kernel.size
hf.save(target, config, params, source=source, max_shard_bytes=30_000)
print("SAVED", jax.process_index())
"""


def test_two_processes_load_their_parts_and_process_0_saves(tmp_path):
    """Two processes with two devices each: sharded in, sharded out, every bit kept."""
    import socket

    # Vocabulary and heads that two devices divide.
    kind, changes = CASES["llama3.1-8b"]
    sizes = dict(vocab_size=98, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
                 num_attention_heads=6, num_key_value_heads=2)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**sizes))
    model.save_pretrained(tmp_path / "source", max_shard_size="40KB")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }  # fmt: skip
    paths = [str(tmp_path / name) for name in ("source", "target")]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(rank), port, *paths], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=240) for worker in workers]
    for rank, (out, err) in enumerate(outputs):
        assert f"SAVED {rank}" in out, err[-3000:]
    assert len(list((tmp_path / "target").glob("model-*.safetensors"))) > 2
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    for (name, left), (_, right) in zip(
        model.state_dict().items(), back.state_dict().items(), strict=True
    ):
        assert torch.equal(left, right), name


_MEMORY = """
import resource, sys, jax, jax.numpy as jnp
from leafe_jax.models import hf
source = sys.argv[1]
config = hf.read_config(source)
jnp.ones(3).block_until_ready()
def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(name + ":")).split()[1])
hf.load_params(sys.argv[2], hf.read_config(sys.argv[2]), "float32")  # code and compiled programs
before = status("VmRSS")
params = hf.load_params(source, config, "float32")
held = sum(x.nbytes for x in jax.tree.leaves(params))
print("EXTRA", status("VmHWM") - before - held)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_loading_needs_little_memory_besides_the_weights(tmp_path):
    """For a float32 checkpoint of 0.5B shape in four shards, peak memory above the weights stays below
    1.3 times the largest shard."""
    sizes = dict(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen2Config(**sizes))
    model.save_pretrained(tmp_path / "large", max_shard_size="550MB")
    del model
    make_torch("qwen2-0.5b").save_pretrained(tmp_path / "small")
    shards = list((tmp_path / "large").glob("model-*.safetensors"))
    assert len(shards) == 4
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tmp_path / "large"), str(tmp_path / "small")],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert "EXTRA" in done.stdout, done.stderr[-2000:]
    extra = int(done.stdout.split()[-1])
    print(f"{extra / 1e6:.0f} MB besides the weights")
    assert extra < 1.3 * max(p.stat().st_size for p in shards)
