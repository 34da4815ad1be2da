"""The benchmark's engines do the same work, with the losses of transformers; figures by hand."""

import dataclasses
import json

import drawn
import jax
import numpy as np
import pytest

from leafe_jax.errors import UserError
from leafe_jax.models import hf
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.tools import bench_training as bench

CONFIG = ModelConfig(
    model_type="qwen2", vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2,
    num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-6,
    tie_word_embeddings=False, max_position_embeddings=1024,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bench") / "ckpt" / "mine-float32"
    params = drawn.params(CONFIG)
    hf.save(directory, CONFIG, jax.tree.map(lambda x: x * 8 if x.ndim == 2 else x, params))
    return str(directory)


@pytest.mark.parametrize(
    "how", [dict(), pytest.param(dict(remat="full", scan_layers=True), marks=pytest.mark.slow)]
)
def test_ours_and_transformers_take_the_same_steps(model, how):
    pytest.importorskip("torch")
    ours, theirs = (
        engine(model, 3, 19, **how) for engine in (bench.BenchTrain, bench.Transformers)
    )
    assert theirs.model.is_gradient_checkpointing == bool(how)
    losses = [(ours.step(), theirs.step()) for _ in range(4)]
    np.testing.assert_allclose(*zip(*losses), rtol=1e-5)
    assert losses[3][0] < losses[0][0]


@pytest.mark.slow
def test_a_checkpoint_by_its_name(model, monkeypatch):
    monkeypatch.chdir(f"{model}/../..")
    named = bench.BenchTrain("mine", 2, 9)
    assert np.isfinite(named.step()) and named.ids.shape == (2, 9)


@pytest.mark.slow
def test_adapters_on_random_weights():
    pytest.importorskip("torch")
    ours = bench.BenchTrain("random:tiny", 2, 16, rank=4)
    frozen = jax.tree.map(np.asarray, ours.frozen)
    losses = [ours.step() for _ in range(4)]
    assert losses[3] < losses[0]
    # Two layers; a projection has rank x (in + out): q, k, v, o, then gate, up and down.
    sides = (64 + 512) * 2 + (64 + 256) * 2 + (64 + 128) * 3
    assert ours.adapters == 2 * 4 * sides
    jax.tree.map(np.testing.assert_array_equal, frozen, ours.frozen)
    with pytest.raises(UserError, match="--rank=4: only --engine=leafe_jax"):
        bench.Transformers("random:tiny", 2, 16, rank=4)
    with pytest.raises(UserError, match="--model=random:tiny: only --engine=leafe_jax"):
        bench.Transformers("random:tiny", 2, 16)


def test_figures_by_hand():
    class Fixed(bench.Engine):
        name = "fixed"

        def __init__(self):
            self.dtype = "float32"
            self.load()

        def load(self):
            self.config = dataclasses.replace(CONFIG)
            self.ids = np.zeros((4, 8), np.int32)

        def step(self):
            return 2.5

    (record,) = bench.measure([Fixed()], 3, lambda _: None)
    step = record["step_s"]
    assert record["loss"] == 2.5 and record["ratio"] == 1.0 and len(record["steps_s"]) == 3
    assert record["tokens_per_s"] == pytest.approx(4 * 8 / step)
    # A layer: q, o 32 x 32; k, v 32 x 16; three of 32 x 64. The head: 32 x 96. 36 causal pairs per row.
    products = 2 * 32 * (2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 32 * 96)
    pairs = 2 * 4 * 36 * (2 * 2 * 32)
    assert record["model_flops_per_s"] * step == pytest.approx(3 * (products + pairs))
    assert record["share_of_peak"] is None, "no peak is known of a CPU"


@pytest.mark.slow
def test_the_command(model, capsys):
    flags = [f"--model={model}", "--batch=2", "--seq=8", "--repeats=2"]
    assert bench.main([*flags, "--dtype=bfloat16", "--remat=full", "--scan_layers"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["engine"] == "leafe_jax" and record["dtype"] == "bfloat16"
    assert record["step_s"] > 0 and record["compile_s"] > 0 and record["peak_bytes"] > 1e7
    assert record["loss"] > 0 and record["remat"] == "full" and record["scan_layers"]
    for wrong in ("--engine=vllm", "--repeats=0", "--batch=0", "--seq=1"):
        assert bench.main([*flags, wrong]) == 2
        assert wrong in capsys.readouterr().err
    assert bench.main(["--model=/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err
