"""Trained weights on a global mesh come to each process's own devices, whole, without the host."""

import os
import socket
import subprocess
import sys

import pytest
from test_trainer import ROOT

CODE = """
import os, sys
sys.path.insert(0, "tests")
import trainer
trainer.join_processes()
import jax, numpy as np
from leafe_jax.sampling.replicas import make_engines
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.models import sharding
from leafe_jax.models.sharding import cast, hand_over, make_mesh, shardings_for

sizes = EngineConfig(
    num_slots=2, max_len=32, turn_chunk=4, prefill_chunk=4, max_new_tokens=4, stop_ids=(0,)
)
expected = jax.tree.map(np.asarray, trainer.params())
devices = jax.devices()
assert len(devices) == 4 and len(jax.local_devices()) == 2
# The last order goes back and forth between the processes, as a TPU slice's may.
meshes = (((0, 1, 2, 3), (1, 4, 1)), ((0, 1, 2, 3), (1, 2, 2)), ((0, 2, 1, 3), (2, 2, 1)))
dtypes = ("float32", "bfloat16")
if sys.argv[1] == "few":
    meshes, dtypes = meshes[1:], dtypes[1:]
for order, shape in meshes:
    mesh = make_mesh(dict(zip(sharding.AXES, shape)), [devices[i] for i in order])
    trained = jax.tree.map(
        lambda x, to: jax.make_array_from_callback(x.shape, to, lambda index: x[index]),
        expected, shardings_for(expected, mesh),
    )
    for tensor in (1, 2):
        for dtype in dtypes:
            load = hand_over(cast(trained, dtype), tensor)
            for group in range(2 // tensor):
                own = jax.local_devices()[group * tensor : (group + 1) * tensor]
                places = shardings_for(expected, make_mesh(dict(data=1, fsdp=1, tensor=tensor), own))
                copy = load(places)
                def check(x, y):
                    assert x.dtype == dtype and x.is_fully_addressable and x.devices() == set(own)
                    np.testing.assert_array_equal(np.asarray(x), y.astype(x.dtype))
                jax.tree.map(check, copy, expected)
                divided = copy["layers"]["0"]["mlp"]["up_proj"]["kernel"]
                assert divided.addressable_shards[0].data.size * tensor == divided.size
            # The masters are still there for whoever trains on.
            assert not any(x.is_deleted() for x in jax.tree.leaves(trained))
    # As a run does it: two copies, or one divided in two, on this process's devices.
    for copies, tensor in ((2, 1), (1, 2)):
        engine = make_engines(
            trainer.CONFIG, hand_over(trained, tensor), sizes, copies=copies, tensor=tensor
        )
        engines = getattr(engine, "engines", [engine])
        held = [{d for x in jax.tree.leaves((e.params, e._pool)) for d in x.devices()} for e in engines]
        own = jax.local_devices()
        assert held == [set(own[n * tensor : (n + 1) * tensor]) for n in range(copies)], held
        # New weights come to the same devices, and are copies.
        before = [jax.tree.map(lambda x: x.sharding, e.params) for e in engines]
        engine.swap(jax.jit(lambda p: jax.tree.map(lambda x: 2 * x, p))(trained))
        assert before == [jax.tree.map(lambda x: x.sharding, e.params) for e in engines]
        for e in engines:
            jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, 2 * y), e.params, expected)
print("whole")
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["few", "all"])
def test_two_processes_get_whole_copies(which):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, which], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                 "PYTHONPATH": str(ROOT), "LEAFE_TEST_RANK": str(rank),
                 "LEAFE_TEST_PROCESSES": "2", "LEAFE_TEST_PORT": port},
        )
        for rank in range(2)
    ]  # fmt: skip
    for child in children:
        out, err = child.communicate(timeout=300)
        assert out.endswith("whole\n"), err[-3000:]
