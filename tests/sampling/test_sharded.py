"""Sampling on several devices: same tokens as on one device, and programs that compile for TPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SAMPLE = """
import dataclasses, sys
sys.path.insert(0, "tests/sampling")
import jax, numpy as np, pytest
import small as t
from leafe_jax.errors import UserError
from leafe_jax.sampling.replicas import Replicas, make_engines
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.types import Sampling

assert len(jax.devices()) == 8
t.CONFIG = dataclasses.replace(t.CONFIG, vocab_size=62)  # two halves
params = t.make_params(t.CONFIG)
sizes = EngineConfig(num_slots=4, stop_ids=(t.STOP,), **t.LONG)

def outcome(engine):
    # Nine sessions, two requests each; all requests of a turn are submitted at once.
    sessions = [engine.start() for _ in range(9)]
    found = []
    for turn in range(2):
        tickets = {
            engine.submit(t.Request(s, t.prompt(10 * turn + i, 3 + 5 * (i % 4)), 20 + i, Sampling(float(i % 2)), i)): i
            for i, s in enumerate(sessions)
        }
        while tickets:
            for ticket, result in engine.collect():
                i = tickets.pop(ticket)
                assert result.finish_reason in ("stop", "length"), result
                np.testing.assert_allclose(
                    result.logprobs, logprobs(sessions[i], result), atol=1e-5
                )
    return [s.ids for s in sessions]

def logprobs(session, result):
    table, begin = t.forward(params, session.ids), len(session.ids) - len(result.ids)
    return [table[begin + n - 1, token] for n, token in enumerate(result.ids)]

place = lambda shardings: jax.device_put(params, shardings)
one = outcome(make_engines(t.CONFIG, place, sizes, copies=1, tensor=1))
for copies, tensor, attention in ((4, 2, "gather"), (1, 2, "paged"), (2, 1, "gather")):
    changed = dataclasses.replace(sizes, attention=attention)
    engine = make_engines(t.CONFIG, place, changed, copies=copies, tensor=tensor)
    assert outcome(engine) == one, (copies, tensor, attention)
    for number, e in enumerate(getattr(engine, "engines", [engine])):
        t.check_no_leak(e)
        devices = {d.id for x in jax.tree.leaves(e._pool) for d in x.devices()}
        assert devices == set(range(number * tensor, (number + 1) * tensor))
        assert e.programs.num_compiled > 0  # every copy served requests
        if tensor == 2:  # heads are sharded, not replicated
            whole, part = e._pool[0][0] if attention == "gather" else e._pool[0], None
            part = whole.addressable_shards[0].data
            assert part.size * 2 == whole.size
for copies, tensor, message in (
    (5, 2, "sampler.copies = 5, sampler.tensor = 2: this process has 8 devices"),
    (1, 4, "sampler.tensor = 4: does not divide the model's 2 key and value heads"),
):
    with pytest.raises(UserError, match=message):
        make_engines(t.CONFIG, place, sizes, copies=copies, tensor=tensor)
print("same")
"""

TPU = """
import sys
import jax
from jax.experimental import topologies
from leafe_jax.models.decoder import ModelConfig, abstract_params
from leafe_jax.sampling.engine import plan_programs
from leafe_jax.sampling.paged import Paged
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.models.sharding import make_mesh, shardings_for
import jax.numpy as jnp

# Qwen2.5-7B's heads, four layers of it: 64 sessions of 8k on four chips.
config = ModelConfig(
    model_type="qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_layers=4,
    num_heads=28, num_kv_heads=4, head_dim=128, rope_theta=1e6, rms_norm_eps=1e-6,
    tie_word_embeddings=False, max_position_embeddings=32768,
)
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 4}, topology.devices)
params = abstract_params(config)
params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=s),
    params, shardings_for(params, mesh),
)
storage = Paged(kernel=True, mesh=mesh)
sizes = EngineConfig(
    num_slots=64, max_len=8192, turn_chunk=128, prefill_chunk=512, max_new_tokens=512,
    stop_ids=(151645,),
)
_, programs, pool = plan_programs(config, params, storage, sizes)
kinds = {}
with jax.set_mesh(mesh):
    for program in programs.listed:
        if (program.kind, program.tokens) not in kinds:
            compiled = programs.lower(program).compile()
            text = compiled.as_text()
            assert "tpu_custom_call" in text, program  # the kernel is in it
            kinds[program.kind, program.tokens] = compiled.memory_analysis()
assert set(kinds) == {
    ("turn", 128), ("turn", 1), ("prefill", 128), ("prefill", 256), ("prefill", 512)
}, kinds
for key, memory in kinds.items():
    print(*key, memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.alias_size_in_bytes)
    # The pool is written in place: no other buffer of its size is allocated.
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool)) // 4
    assert memory.alias_size_in_bytes >= held and memory.temp_size_in_bytes < held / 2, key
print("compiled")
"""


def child(code: str, **env) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_copies_and_tensor_parallel_models_sample_the_same_tokens():
    flags = "--xla_force_host_platform_device_count=8"
    assert child(SAMPLE, XLA_FLAGS=flags).endswith("same\n")


def test_programs_compile_for_a_tpu_topology():
    pytest.importorskip("libtpu")
    assert child(TPU, TPU_SKIP_MDS_QUERY="1").endswith("compiled\n")
