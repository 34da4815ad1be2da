"""Stage 2's machinery: packing, normalisation by hand, the step, resuming, sharding."""

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leafe_jax.errors import UserError
from leafe_jax.models import decoder
from leafe_jax.models.attention import segment_attend
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.training.data import Batches, Example, action_mass, mixing_coefficients
from leafe_jax.training.loop import fit
from leafe_jax.training.losses import token_nll
from leafe_jax.training.sharding import make_mesh, shardings_for
from leafe_jax.training.step import batch_loss, init_state, make_optimizer, make_train_step

CONFIG = ModelConfig(
    model_type="llama", vocab_size=40, hidden_size=32, intermediate_size=64, num_layers=2,
    num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-6,
    tie_word_embeddings=True, max_position_embeddings=64,
)  # fmt: skip


def train_config(**changes):
    fields = dict(
        seq_len=24, batch_size=4, num_epochs=2, learning_rate=1e-2, schedule="constant",
        warmup_steps=2, weight_decay=0.0, b1=0.9, b2=0.98, eps=1e-8, clip_norm=1.0,
        compute_dtype="float32", loss_chunk=4096, remat=False, checkpoint_every=2, log_every=1,
        max_nonfinite=3, attention="auto", mesh=dict(data=1, fsdp=1, tensor=1),
    )  # fmt: skip
    return types.SimpleNamespace(**{**fields, **changes})


def examples(count: int = 30, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        length = int(rng.integers(4, 20))
        ids = rng.integers(1, 40, length).astype(np.int32)
        made.append(Example(ids, action_mass(length, [(length - 3, length)], "example"), index % 2))
    return made


def run_fit(directory, made=None, log=lambda *_: None, progress=lambda *_: None, **changes):
    return fit(
        model_config=CONFIG,
        params=decoder.init_params(CONFIG, jax.random.key(0)),
        examples=made or examples(),
        train_config=train_config(**changes),
        sources=("counterfactual", "rehearsal"),
        source_weights=(1.0, 0.5),
        directory=Path(directory),
        seed=3,
        log=log,
        progress=progress,
    )


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


# -- data ------------------------------------------------------------------------------------------
def test_action_mass_by_hand():
    assert action_mass(6, [(1, 3), (5, 6)], "example").tolist() == [0, 0.5, 0.5, 0, 0, 1]
    assert action_mass(6, [(1, 3), (5, 6)], "token").tolist() == [0, 1, 1, 0, 0, 1]
    with pytest.raises(UserError, match="normalisation = 'sum'"):
        action_mass(2, [], "sum")


def test_mixing_coefficients_by_hand():
    """Source 0 has mass 1, source 1 mass 3: M = 4, so 1 * 4 / 1 and 0.5 * 4 / 3."""
    made = [
        Example(np.arange(3, dtype=np.int32), np.array([0, 1, 0], np.float32), 0),
        Example(np.arange(4, dtype=np.int32), np.array([0, 1, 1, 1], np.float32), 1),
    ]
    np.testing.assert_allclose(mixing_coefficients(made, (1.0, 0.5)), [4.0, 2.0 / 3.0])
    assert mixing_coefficients(made[:1], (1.0, 0.5)).tolist() == [1.0, 0.0]


def test_the_whole_data_in_one_batch_gives_the_papers_loss():
    """L_cf + beta * L_reh, each the mean of its own pairs, computed pair by pair."""
    made, beta = examples(9), 0.5
    params = decoder.init_params(CONFIG, jax.random.key(1))
    losses = {0: [], 1: []}
    for example in made:
        tokens = jnp.asarray(example.ids[None, :-1])
        attend = segment_attend(jnp.ones_like(tokens))
        hidden = decoder.hidden(CONFIG, params, tokens, jnp.arange(tokens.shape[1])[None], attend)
        table = jax.nn.log_softmax(decoder.head(CONFIG, params, hidden)[0], axis=-1)
        trained = np.flatnonzero(example.mass)
        losses[example.source].append(-np.mean([table[i - 1, example.ids[i]] for i in trained]))
    expected = np.mean(losses[0]) + beta * np.mean(losses[1])
    batch = next(iter(Batches(made, 24, 12, 1, seed=0)))
    loss, means = batch_loss(
        CONFIG,
        params,
        batch,
        jnp.asarray(mixing_coefficients(made, (1.0, beta))),
        4096,
        False,
        "jnp",
        None,
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(means[0], np.mean(losses[0]), rtol=1e-5)
    np.testing.assert_allclose(means[1], np.mean(losses[1]), rtol=1e-5)


def test_batches_hold_every_example_once_an_epoch():
    made = examples(23)
    batches = Batches(made, 24, 4, 3, seed=1)
    seen = []
    for batch in batches:
        assert all(v.shape == (4, 24) for v in batch.values())
        for row in range(4):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                at = batch["segment_ids"][row] == segment
                assert batch["positions"][row][at].tolist() == list(range(at.sum()))
                first = batch["tokens"][row][at][:1]
                seen.append(tuple([*first.tolist(), *batch["targets"][row][at].tolist()]))
                example = next(e for e in made if tuple(e.ids) == seen[-1])
                assert batch["mass"][row][at].tolist() == example.mass[1:].tolist()
                assert set(batch["source"][row][at].tolist()) == {example.source}
    assert sorted(seen) == sorted(tuple(e.ids.tolist()) for e in made for _ in range(3))
    assert batches.num_steps() == sum(1 for _ in batches)
    orders = [[b["tokens"].tolist() for b in Batches(made, 24, 4, 3, seed=s)] for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_little_padding():
    rng = np.random.default_rng(0)
    made = [
        Example(np.ones(n, np.int32), np.r_[0, np.ones(n - 1)].astype(np.float32), 0)
        for n in rng.integers(60, 260, 600)
    ]
    full = [b["segment_ids"] > 0 for b in Batches(made, 320, 12, 1, seed=0)]
    assert np.mean(full[:-4]) > 0.85  # the last bins are what was left over


def test_iterator_state_resumes_exactly():
    batches = Batches(examples(40), 24, 4, 2, seed=5)
    whole = [b["tokens"] for b in batches]
    iterator = iter(batches)
    for _ in range(4):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = iter(Batches(examples(40), 24, 4, 2, seed=5))
    resumed.set_state(state)
    rest = [b["tokens"] for b in resumed]
    assert len(rest) == len(whole) - 4
    assert all(np.array_equal(a, b) for a, b in zip(rest, whole[4:], strict=True))


def test_bad_data_settings():
    with pytest.raises(UserError, match="train.seq_len = 5: the longest example needs 1"):
        Batches(examples(), 5, 4, 1, 0)
    with pytest.raises(UserError, match="train.batch_size = 0"):
        Batches(examples(), 24, 0, 1, 0)
    with pytest.raises(ValueError):
        Example(np.arange(3, dtype=np.int32), np.ones(3, np.float32), 0)


# -- step ------------------------------------------------------------------------------------------
def test_chunked_loss_equals_the_plain_one():
    params = decoder.init_params(CONFIG, jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (3, 7, 32))
    targets = jax.random.randint(jax.random.key(2), (3, 7), 0, 40)
    for function in (
        lambda p, chunk: token_nll(CONFIG, p, hidden, targets, chunk),
        lambda p, chunk: jax.grad(lambda q: token_nll(CONFIG, q, hidden, targets, chunk).sum())(p)["embed"]["embedding"],
    ):  # fmt: skip
        np.testing.assert_allclose(function(params, 4), function(params, 999), atol=1e-5)


def test_tokens_without_mass_have_no_gradient():
    params = decoder.init_params(CONFIG, jax.random.key(0))
    batch = next(iter(Batches(examples(), 24, 4, 1, 0)))

    def grad(batch):
        def loss(params):
            return batch_loss(CONFIG, params, batch, jnp.ones(2), 4096, False, "jnp", None)[0]

        return jax.grad(loss)(params)

    changed = dict(batch, targets=np.where(batch["mass"] > 0, batch["targets"], 39))
    assert equal(grad(batch), grad(changed))
    empty = grad(dict(batch, mass=np.zeros_like(batch["mass"])))
    assert all(not np.any(x) for x in jax.tree.leaves(empty))


def make_step(params=None, **changes):
    config = train_config(**changes)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    tx = make_optimizer(config, 20)
    state = init_state(params or decoder.init_params(CONFIG, jax.random.key(0)), tx, mesh)
    step = make_train_step(
        CONFIG, tx, sources=("a", "b"), coefficients=np.ones(2), compute_dtype=config.compute_dtype,
        loss_chunk=config.loss_chunk, remat=config.remat, attention="jnp", mesh=mesh,
        state_shapes=state,
    )  # fmt: skip
    return step, state


def test_twenty_steps_learn_four_examples():
    step, state = make_step(weight_decay=0.0)
    batch = next(iter(Batches(examples(4), 24, 4, 1, 0)))
    losses = []
    for _ in range(20):
        state, measured = step(state, batch)
        losses.append(float(measured["loss"]))
    assert losses[-1] < 0.2 * losses[0]
    assert int(state["step"]) == 20 and float(measured["target_tokens"]) == 12


@pytest.mark.parametrize("changes", [{"remat": True}, {"loss_chunk": 16}])
def test_memory_settings_change_nothing(changes):
    batch = next(iter(Batches(examples(4), 24, 4, 1, 0)))
    plain, other = (make_step(**c) for c in ({}, changes))
    left, right = plain[0](plain[1], batch)[0], other[0](other[1], batch)[0]
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # Adam divides small gradients by themselves


def test_masters_are_float32_under_bfloat16_compute():
    step, state = make_step(compute_dtype="bfloat16", learning_rate=1e-6, warmup_steps=0)
    before = jax.tree.map(np.array, state["params"])
    batch = next(iter(Batches(examples(4), 24, 4, 1, 0)))
    state, measured = step(state, batch)
    after = state["params"]
    assert {x.dtype.name for x in jax.tree.leaves(after)} == {"float32"}
    assert float(measured["update_norm"]) > 0 and not equal(before, after)


def test_a_step_that_is_not_finite_is_skipped_and_reported():
    bad = decoder.init_params(CONFIG, jax.random.key(0))
    bad["final_norm"]["scale"] = bad["final_norm"]["scale"] * jnp.inf
    step, state = make_step(bad)
    before = jax.tree.map(np.array, state["params"])
    state, measured = step(state, next(iter(Batches(examples(4), 24, 4, 1, 0))))
    assert float(measured["finite"]) == 0.0 and equal(before, state["params"])


def test_schedules():
    import optax

    params = {"w": jnp.ones(())}
    for name, last in (("constant", 1.0), ("linear", 0.1), ("cosine", 0.025)):
        config = train_config(schedule=name, warmup_steps=0, learning_rate=1.0, clip_norm=1e9)
        tx = make_optimizer(config, 10)
        state, sizes = tx.init(params), []
        for _ in range(10):
            updates, state = tx.update({"w": jnp.ones(())}, state, params)
            sizes.append(float(optax.tree.norm(updates)))
        assert sizes[0] == pytest.approx(1.0, rel=1e-3) and sizes[-1] == pytest.approx(
            last, abs=0.02
        )
    with pytest.raises(UserError, match="train.schedule = 'sudden'"):
        make_optimizer(train_config(schedule="sudden"), 10)


# -- loop ------------------------------------------------------------------------------------------
class Killed(Exception):
    pass


def test_interrupted_training_ends_with_the_same_bits(tmp_path):
    whole = run_fit(tmp_path / "whole")

    def stop(step, total):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        run_fit(tmp_path / "cut", progress=stop)
    steps = []
    resumed = run_fit(tmp_path / "cut", log=lambda step, _: steps.append(step))
    assert steps[0] == 5 and equal(whole, resumed)
    # A finished run is not trained again.
    again = run_fit(tmp_path / "cut", log=lambda step, _: steps.append(-1))
    assert -1 not in steps and equal(whole, again)


def test_loop_errors(tmp_path):
    with pytest.raises(UserError, match="not finite for 3 steps in a row"):
        run_fit(tmp_path / "nan", learning_rate=float("nan"))
    with pytest.raises(UserError, match="train.mesh: data = 3"):
        run_fit(tmp_path / "mesh", mesh=dict(data=3, fsdp=1, tensor=1))


_CHILD = """
import sys
sys.path.insert(0, {tests!r})
import test_training as t
params = t.run_fit({directory!r}, made=t.examples({count}), num_epochs=6,
                   log=lambda step, m: print(step, m["loss"], flush=True){extra})
import numpy as np, jax
np.save({out!r}, np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]))
"""


def child(tmp_path, name, extra="", devices=1, count=200):
    code = _CHILD.format(
        tests=str(Path(__file__).parent), directory=str(tmp_path / name),
        out=str(tmp_path / f"{name}.npy"), extra=extra, count=count,
    )  # fmt: skip
    flags = f"--xla_force_host_platform_device_count={devices}"
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": root}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_killed_process_resumes_to_the_same_bits(tmp_path, sent):
    # Slow enough to be hit in the middle.
    slow = ", progress=lambda step, total: __import__('time').sleep(0.05)"
    process = child(tmp_path, "cut", slow)
    for line in process.stdout:
        if int(line.split()[0]) >= 7:
            process.send_signal(sent)
            break
    code = process.wait(60)
    assert code == (-9 if sent == signal.SIGKILL else 75)
    assert not (tmp_path / "cut.npy").exists()
    second, whole = child(tmp_path, "cut"), child(tmp_path, "whole")
    first_step = int(second.stdout.readline().split()[0])
    second.communicate(timeout=120)
    whole.communicate(timeout=120)
    assert first_step > 2, "it did not start over"
    assert np.array_equal(np.load(tmp_path / "cut.npy"), np.load(tmp_path / "whole.npy"))


def test_sharded_training_equals_one_device(tmp_path):
    layouts = {"4x1x1": (4, 1, 1), "1x4x1": (1, 4, 1), "1x2x2": (1, 2, 2)}
    runs = {}
    for name, sizes in {"one": (1, 1, 1), **layouts}.items():
        mesh = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
        process = child(tmp_path, name, f", mesh={mesh!r}",
                        devices=1 if name == "one" else 4, count=8)  # fmt: skip
        lines = process.communicate(timeout=200)[0].splitlines()
        runs[name] = [float(line.split()[1]) for line in lines[:5]]
    for name in layouts:
        np.testing.assert_allclose(runs[name], runs["one"], rtol=1e-5)


def test_sharding_rules_cover_everything():
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:1])
    shapes = decoder.abstract_params(CONFIG)
    tx = make_optimizer(train_config(), 5)
    state = jax.eval_shape(lambda p: {"params": p, "opt_state": tx.init(p)}, shapes)
    shardings_for(state, mesh)
    with pytest.raises(ValueError, match="no sharding rule matches surprise"):
        shardings_for({"surprise": jnp.ones(2)}, mesh)


_TPU = """
import types, numpy as np, jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from leafe_jax.models import attention, decoder
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.training import sharding, step
from leafe_jax.sampling import programs
import sys
sys.path.insert(0, {tests!r})
from test_training import train_config
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
config = ModelConfig(model_type="llama", vocab_size=1024, hidden_size=512, intermediate_size=1024,
    num_layers=2, num_heads=8, num_kv_heads=4, head_dim=128, rope_theta=1e4, rms_norm_eps=1e-6,
    tie_word_embeddings=True, max_position_embeddings=4096)
mesh = sharding.make_mesh(dict(data=2, fsdp=4, tensor=2), topology.devices)
tx = step.make_optimizer(train_config(), 10)
params = decoder.abstract_params(config)
shapes = jax.eval_shape(lambda p: dict(params=p, opt_state=tx.init(p), step=jnp.zeros((), jnp.int32)), params)
state = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes,
    sharding.shardings_for(shapes, mesh))
place = NamedSharding(mesh, sharding.BATCH)
batch = dict((k, jax.ShapeDtypeStruct((16, 512), jnp.float32 if k == "mass" else jnp.int32, sharding=place))
    for k in ("tokens", "targets", "positions", "segment_ids", "source", "mass"))
train = step.make_train_step(config, tx, sources=("a", "b"), coefficients=np.ones(2),
    compute_dtype="bfloat16", loss_chunk=1024, remat=True, mesh=mesh, state_shapes=shapes,
    attention=attention.choose_backend("auto", config, "bfloat16", mesh))
compiled = train.lower(state, batch).compile()
print("TRAIN", "splash" in compiled.as_text())

one = jax.sharding.SingleDeviceSharding(topology.devices[0])
def on(shape, dtype): return jax.ShapeDtypeStruct(shape, dtype, sharding=one)
slots, length = 16, 256
half = jax.tree.map(lambda s: on(s.shape, jnp.bfloat16), params)
row = on((slots * 18 + 1, 4, 16, 128), jnp.bfloat16)
cache = programs.KVCache((row, row), (row, row))
ints = on((slots,), jnp.int32)
pages = programs.Pages(on((2, 4), jnp.int32), ints, on((slots, 18), jnp.int32), ints, on((slots, 3), jnp.int32))
turn = programs.turn.lower(config, half, cache, pages, on((slots, 16), jnp.int32), ints, ints,
    dict(temperature=on((slots,), jnp.float32)), on((slots,), jnp.uint32), max_new=8, stop_ids=(3,), max_len=length)
print("TURN", turn.compile().memory_analysis().temp_size_in_bytes > 0)
"""


def test_train_step_and_sampler_compile_for_a_tpu_topology():
    """Compiled by the TPU compiler for 16 v5e chips, on a machine without any."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "PYTHONPATH": root,
    }
    code = _TPU.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=400,
        check=False,
    )  # fmt: skip
    assert "TRAIN True" in done.stdout and "TURN True" in done.stdout, done.stderr[-3000:]
