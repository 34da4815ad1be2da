"""Training SmolLM2-135M-Instruct: torch's losses, and exports that transformers and peft open."""

import functools

import jax
import numpy as np
import pytest
import real_models
import trainer
from checkpoints import logits
from lazily import torch, transformers
from test_curve import our_losses, torch_losses

from leafe_jax.agent.chat import load_chat
from leafe_jax.bootstrap.examples import to_example
from leafe_jax.models import hf
from leafe_jax.run import weights
from leafe_jax.training.objectives import sft
from leafe_jax.training.start import Data, Start
from leafe_jax.training.trainer import fit

STEPS = 20
SYSTEM = "Play the game."
# Few tokens, because a step of 135 million parameters takes seconds.
DIALOGUES = [
    [
        ("[1] You see a safe 1. Your task is to: put two pens in safe.", "go to safe 1"),
        ("[2] The safe 1 is closed.", "open safe 1"),
    ],
    [("Which step was the first mistake?", "[3] open the drawer 1.")],
]


def examples():
    chat = load_chat(str(real_models.smollm2_directory()), 49152, system=SYSTEM)
    return [
        to_example(
            [
                {"role": role, "text": text, "trained": True}
                for pair in dialogue
                for role, text in zip(("user", "assistant"), pair)
            ],
            chat,
            observation_mass=0.2,
        )
        for dialogue in DIALOGUES
    ]


@pytest.fixture(scope="module")
def start():
    """(directory, config, parameters) of the model."""
    directory = real_models.smollm2_directory()
    config = hf.read_config(directory)
    return directory, config, hf.load_params(directory, config, "float32")


def train_config(**changes):
    return trainer.train_config(
        seq_len=112, batch_size=1, num_epochs=1, schedule="linear", warmup_steps=3,
        scan_layers=True, **changes,
    )  # fmt: skip


def torch_logits(model, ids) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids).long()).logits.numpy()


def open_model(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.mark.slow
def test_twenty_steps_have_torchs_losses_and_transformers_opens_the_result(start, tmp_path):
    directory, config, params = start
    made = examples()
    settings = train_config(learning_rate=1e-4, weight_decay=0.01)
    ours, trained = our_losses(config, params, made, settings, STEPS)
    theirs = torch_losses(directory, made, settings, STEPS)
    assert ours[-1] < 0.5 * ours[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-3)

    weights.export(tmp_path, directory, settings, trained)
    exported = tmp_path / "model"
    ids = made[0].ids[None]
    found = torch_logits(open_model(exported), ids)
    expected = logits(config, trained, ids)
    np.testing.assert_allclose(found, expected, atol=1e-3)  # of logits up to 40
    assert np.abs(found - logits(config, params, ids)).max() > 0.5, "it has learned something"
    # Everything beside the weights is the checkpoint's own.
    for file in directory.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            assert (exported / file.name).read_bytes() == file.read_bytes(), file.name
    assert hf.read_config(exported) == config


@pytest.mark.slow
def test_peft_opens_the_adapter(start, tmp_path):
    peft = pytest.importorskip("peft")
    directory, config, params = start
    made = examples()
    settings = train_config(learning_rate=1e-3, lora=dict(rank=4))
    adapters = fit(
        Start(config, functools.partial(hf.load_params, directory, config)),
        Data([*made, *made, *made], trainer.sources()), settings, sft(),
        directory=tmp_path / "checkpoints", seed=0, log=lambda *_: None, progress=lambda *_: None,
    )  # fmt: skip
    merged = weights.export(tmp_path, directory, settings, adapters)
    assert jax.tree.leaves(merged)
    ids = made[0].ids[None]
    base = open_model(directory)
    before = torch_logits(base, ids)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    found = torch_logits(adapted, ids)
    assert np.abs(found - before).max() > 0.1, "it has learned something"
    model = tmp_path / "model"
    ours = logits(config, hf.load_params(model, config, "float32"), ids)
    np.testing.assert_allclose(found, ours, atol=2e-3)
    np.testing.assert_allclose(torch_logits(open_model(model), ids), ours, atol=1e-3)
