"""Adapters: the base stays as it is, the merged export and PEFT compute the same."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trainer
from trainer import CONFIG, equal, run_fit

from leafe_jax.errors import UserError
from leafe_jax.models import decoder, hf, lora
from leafe_jax.models.attention import segment_attend
from leafe_jax.models.settings import TARGETS
from leafe_jax.run import weights
from leafe_jax.run.config import RunConfig
from leafe_jax.training.objectives import sft
from leafe_jax.training.start import Data, Start, place
from leafe_jax.training.trainer import fit

SETTINGS = dict(rank=3, alpha=12.0, targets=TARGETS)


def trained(directory, seen=None):
    """(config, base parameters, adapters after some steps)."""
    base = trainer.params()
    adapters = run_fit(directory, lora=SETTINGS, log=lambda _, m: (seen or []).append(m["loss"]))
    return lora.with_adapters(CONFIG, trainer.train_config(lora=SETTINGS).lora), base, adapters


def logits(config, params, tokens):
    attend = segment_attend(jnp.ones_like(tokens))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = decoder.hidden(config, params, tokens, positions, attend)
    return decoder.head(config, params, hidden)


def test_fresh_adapters_change_nothing_and_training_learns(tmp_path):
    config = lora.with_adapters(CONFIG, trainer.train_config(lora=SETTINGS).lora)
    fresh = lora.init_adapters(config, jax.random.key(1))
    tokens = jnp.arange(1, 13).reshape(2, 6)
    joined = lora.join(trainer.params(), fresh)
    plain = logits(CONFIG, trainer.params(), tokens)
    np.testing.assert_array_equal(logits(config, joined, tokens), plain)
    losses = []
    run_fit(tmp_path, made=trainer.examples(6), lora=SETTINGS, num_epochs=30,
            log=lambda _, m: losses.append(m["loss_counterfactual"]))  # fmt: skip
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_the_base_is_untouched(tmp_path):
    handed = []

    def load(dtype, shardings):
        handed.append(place(trainer.params())(dtype, shardings))
        return handed[-1]

    adapters = fit(
        Start(CONFIG, load), Data(trainer.examples(), trainer.sources((1.0, 0.5))),
        trainer.train_config(lora=SETTINGS), sft(), directory=tmp_path, seed=0,
        log=lambda *_: None, progress=lambda *_: None,
    )  # fmt: skip
    assert equal(handed[0], trainer.params()), "bit for bit"
    names = {str(path[-1].key) for path, _ in jax.tree_util.tree_flatten_with_path(adapters)[0]}
    assert names == {"lora_a", "lora_b"}


@pytest.mark.slow
def test_interrupted_training_of_adapters(tmp_path):
    from test_trainer import Killed, stop_at

    whole = run_fit(tmp_path / "whole", lora=SETTINGS)
    with pytest.raises(Killed):
        run_fit(tmp_path / "cut", lora=SETTINGS, progress=stop_at(5))
    assert equal(whole, run_fit(tmp_path / "cut", lora=SETTINGS))
    with pytest.raises(UserError, match="is of another run: model.lora"):
        run_fit(tmp_path / "cut")


def test_merged_export_and_peft_agree_with_adapter_plus_base(tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import transformers

    config, base, adapters = trained(tmp_path / "run")
    assert max(np.abs(x).max() for x in jax.tree.leaves(adapters)) > 0.01
    tokens = jnp.arange(1, 25).reshape(2, 12)
    expected = np.asarray(logits(config, lora.join(base, adapters), tokens))
    assert np.abs(expected - logits(CONFIG, base, tokens)).max() > 0.05, "it learned something"

    hf.save(tmp_path / "base", CONFIG, base)
    lora.save_adapter(tmp_path / "adapter", config, adapters, str(tmp_path / "base"))
    unread = hf.unread_params(tmp_path / "base", CONFIG, "float32")
    hf.save(tmp_path / "merged", CONFIG, lora.merge(config, unread, adapters))

    def torch_logits(model):
        with torch.no_grad():
            return model.eval()(torch.from_numpy(np.array(tokens)).long()).logits.numpy()

    load = transformers.AutoModelForCausalLM.from_pretrained
    merged = torch_logits(load(tmp_path / "merged", dtype=torch.float32))
    np.testing.assert_allclose(merged, expected, atol=2e-5)
    start = load(tmp_path / "base", dtype=torch.float32)
    with_adapter = peft.PeftModel.from_pretrained(start, tmp_path / "adapter")
    np.testing.assert_allclose(torch_logits(with_adapter), expected, atol=2e-5)
    np.testing.assert_allclose(torch_logits(with_adapter.merge_and_unload()), merged, atol=2e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(rank=-1), "train.lora.rank = -1"),
        (dict(rank=2, alpha=0.0), "train.lora.alpha = 0.0"),
        (dict(rank=2, targets=("query",)), "train.lora.targets = ..query.,.: must be some of q_proj"),
        (dict(rank=2, targets=()), "train.lora.targets"),
    ],
)  # fmt: skip
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        trainer.train_config(lora=changes)


def live_bytes() -> int:
    return sum(x.nbytes for x in jax.live_arrays())


def test_the_export_holds_one_kernel_at_a_time(tmp_path, monkeypatch):
    """No second copy of the weights waits for the sampler."""
    config, base, adapters = trained(tmp_path / "run")
    hf.save(tmp_path / "base", CONFIG, base)
    expected = lora.join(base, adapters)
    kernel = expected["layers"]["1"]["mlp"]["down_proj"]
    a, b = (np.asarray(kernel["lora"][name], np.float64) for name in ("lora_a", "lora_b"))
    expected = (
        np.asarray(kernel["kernel"], np.float64) + SETTINGS["alpha"] / SETTINGS["rank"] * a @ b
    )
    train = trainer.train_config(lora=SETTINGS)
    total = sum(x.nbytes for x in jax.tree.leaves(base))
    largest = max(x.nbytes for x in jax.tree.leaves(base))
    shared = base["embed"]["embedding"].nbytes + 5 * base["final_norm"]["scale"].nbytes
    del base, kernel
    gc.collect()
    before, peak = live_bytes(), []
    to_host = hf.to_host

    def count(array):
        peak.append(live_bytes() - before)
        return to_host(array)

    monkeypatch.setattr(hf, "to_host", count)
    weights.export(tmp_path, tmp_path / "base", train, adapters)
    # On CPU the tensors that the file has as they are share their memory with the host's array.
    assert 0 < max(peak) <= largest + shared < total / 4
    assert live_bytes() - before < 0.1 * largest
    found = hf.load_params(tmp_path / "model", CONFIG, "float32")
    np.testing.assert_allclose(
        found["layers"]["1"]["mlp"]["down_proj"]["kernel"], expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "name, doing, fields",
    [
        ("hf.save", "writing the trained model", "train.mesh.fsdp"),
        ("cast", "keeping the trained weights for the sampler", "sampler.tensor.*model.dtype"),
    ],
)
def test_out_of_memory_after_training(tmp_path, monkeypatch, name, doing, fields):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    base = trainer.params()
    hf.save(tmp_path / "base", CONFIG, base)
    monkeypatch.setattr(f"leafe_jax.run.weights.{name}", full)
    message = f"train: a device is out of memory while {doing}: .*{fields}"
    handed_over = weights.Weights(RunConfig())
    with pytest.raises(UserError, match=message):
        params = weights.export(tmp_path, tmp_path / "base", trainer.train_config(), base)
        handed_over.keep(tmp_path / "model", params)
    assert not handed_over._trained


def test_a_base_with_nan_is_not_exported(tmp_path):
    base = trainer.params()
    base["layers"]["1"]["mlp"]["up_proj"]["kernel"] *= jnp.nan
    hf.save(tmp_path / "base", CONFIG, base)
    config = lora.with_adapters(CONFIG, trainer.train_config(lora=SETTINGS).lora)
    adapters = lora.init_adapters(config, jax.random.key(0))
    with pytest.raises(UserError, match="NaN or infinity in model.layers.1.mlp.up_proj.weight of"):
        train = trainer.train_config(lora=SETTINGS)
        weights.export(tmp_path, tmp_path / "base", train, adapters)
    assert not (tmp_path / "model").exists()
