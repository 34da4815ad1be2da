"""Sampling on several devices: same tokens as on one device, and programs that compile for TPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SAMPLE = """
import dataclasses, sys
sys.path[:0] = ["tests", "tests/sampling"]
import jax, numpy as np, pytest
import small as t
from leafe_jax.errors import UserError
from leafe_jax.sampling.replicas import make_engines
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.types import Sampling

large = sys.argv[1] == "large"
count = 8 if large else 4
assert len(jax.devices()) == count
t.CONFIG = dataclasses.replace(t.CONFIG, vocab_size=62, num_layers=1 + large)  # two halves
params = t.make_params(t.CONFIG)
# Small: one size of a turn, so that each engine compiles three programs at most.
sizes = dict(max_len=80, max_new_tokens=16, turn_chunk=8, prefill_chunk=8, page_size=4)
sizes = EngineConfig(num_slots=4, stop_ids=(t.STOP,), **(t.LONG if large else sizes))

def outcome(engine):
    # Nine sessions, two requests each; all requests of a turn are submitted at once.
    sessions = [engine.start() for _ in range(9)]
    found = []
    for turn in range(2):
        tickets = {
            engine.submit(t.Request(s, t.prompt(10 * turn + i, 3 + 5 * (i % 4)), 20 + i if large else 8 + i % 9, Sampling(float(i % 2)), i)): i
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
for copies, tensor, attention in ((count // 2, 2, "gather"), (1, 2, "paged"), (2, 1, "gather")):
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
    (5, 2, f"sampler.copies = 5, sampler.tensor = 2: this process has {count} devices"),
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

# Qwen2.5-7B's heads on four chips: with all its widths, or the least that has the same programs.
large = sys.argv[1] == "large"
widths = (
    dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_layers=4) if large
    else dict(vocab_size=512, hidden_size=256, intermediate_size=512, num_layers=2)
)
config = ModelConfig(
    model_type="qwen2", **widths, num_heads=28, num_kv_heads=4, head_dim=128, rope_theta=1e6,
    rms_norm_eps=1e-6, tie_word_embeddings=False, max_position_embeddings=32768,
)
sizes = (
    dict(num_slots=64, max_len=8192, prefill_chunk=512, max_new_tokens=512, num_pages=64 * 513) if large
    else dict(num_slots=8, max_len=1024, prefill_chunk=128, max_new_tokens=64, num_pages=8 * 65)
)
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 4}, topology.devices)
params = abstract_params(config)
params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=s),
    params, shardings_for(params, mesh),
)
storage = Paged(kernel=True, mesh=mesh)
sizes = EngineConfig(turn_chunk=128, stop_ids=(0,), page_size=16, **sizes)
_, programs, pool = plan_programs(config, params, storage, sizes)
# A turn holds the kernel of its prompt and the kernel of its loop: one program shows both.
wanted = [("turn", 128), ("prefill", 128)]
wanted += [("turn", 1), ("prefill", 256), ("prefill", 512)] if large else []
kinds = {}
with jax.set_mesh(mesh):
    for program in programs.listed:
        if (program.kind, program.tokens) in wanted and (program.kind, program.tokens) not in kinds:
            compiled = programs.lower(program).compile()
            text = compiled.as_text()
            assert "tpu_custom_call" in text, program  # the kernel is in it
            kinds[program.kind, program.tokens] = compiled.memory_analysis()
assert set(kinds) == set(wanted), kinds
for key, memory in kinds.items():
    print(*key, memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.alias_size_in_bytes)
    # The pool is written in place: no other buffer of its size is allocated.
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool)) // 4
    assert memory.alias_size_in_bytes >= held and memory.temp_size_in_bytes < held / 2, key
print("compiled")
"""


def child(code: str, *arguments: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


SIZES = ["small", "large"]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_copies_and_tensor_parallel_models_sample_the_same_tokens(size):
    # Small: twenty programs, which take longer to optimise than to run.
    flags = {
        "small": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "large": "--xla_force_host_platform_device_count=8",
    }
    assert child(SAMPLE, size, XLA_FLAGS=flags[size]).endswith("same\n")


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_programs_compile_for_a_tpu_topology(size):
    pytest.importorskip("libtpu")
    # Another test may have the library open.
    env = dict(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    assert child(TPU, size, **env).endswith("compiled\n")
