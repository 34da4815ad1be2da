"""Fifty steps beside a plain torch loop over transformers' model: the same losses."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import trainer

from leafe_jax.models import hf
from leafe_jax.training.objectives import sft
from leafe_jax.training.optimizer import make_optimizer
from leafe_jax.training.packing import Batches, make_plan
from leafe_jax.training.step import init_state, make_train_step, step_options

STEPS = 50


def torch_losses(directory, made, settings, steps: int = STEPS) -> list[float]:
    """One example at a time, no packing; loss and schedule written out from their definitions."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]  # norms and biases: no decay
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate, betas=(settings.b1, settings.b2), eps=settings.eps,
    )  # fmt: skip
    losses = []
    for step in range(steps):
        left = steps - settings.warmup_steps
        done = step - settings.warmup_steps
        share = (step + 1) / (settings.warmup_steps + 1) if done < 0 else 1 - done / left
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        optimizer.zero_grad()
        total = 0.0
        for example in made:
            ids = torch.from_numpy(example.ids).long()[None]
            table = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
            nll = -table[torch.arange(len(example.ids) - 1), ids[0, 1:]]
            total = total + (torch.from_numpy(example.mass[1:]) * nll).sum()
        loss = total / sum(float(e.mass.sum()) for e in made)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_losses(config, start, made, settings, steps: int = STEPS) -> tuple[list[float], Any]:
    """(the loss of each step, trained parameters): all examples are in every step.

    Args:
      config, start: the model.
      made: the examples.
      settings: a TrainConfig; the examples must fit into one batch of it.
      steps: their number.
    """
    packed = Batches(
        made, make_plan([len(e.ids) - 1 for e in made], settings, 0, 1), settings.seq_len
    )
    assert packed.num_steps == settings.num_epochs == 1, "every step sees all examples"
    mesh, tx = trainer.one_device(), make_optimizer(settings, steps)
    state = init_state(jax.tree.map(jax.numpy.array, start), tx, mesh)
    step = make_train_step(
        config, tx, objective=sft(float(sum(e.mass.sum() for e in made))), sources=trainer.sources(),
        options=step_options(settings, config, mesh), state=state, frozen={},
    )  # fmt: skip
    losses = []
    for _ in range(steps):
        state, measured = step(state, {}, next(iter(packed)))
        losses.append(float(measured["loss"]))
    return losses, state["params"]


@pytest.mark.parametrize("model_type", ["qwen2", pytest.param("llama", marks=pytest.mark.slow)])
def test_loss_curve_is_torchs(tmp_path, model_type):
    pytest.importorskip("torch")
    config = dataclasses.replace(trainer.CONFIG, model_type=model_type)
    start = trainer.params(config)
    made = trainer.examples(8)
    changes = dict(
        batch_size=4, learning_rate=3e-3, schedule="linear", warmup_steps=5, weight_decay=0.01,
        accumulation=2, remat="full", scan_layers=True, loss_chunk=16,
    )  # fmt: skip
    hf.save(tmp_path / "start", config, start)
    settings = trainer.train_config(num_epochs=1, **changes)
    ours, _ = our_losses(config, start, made, settings)
    theirs = torch_losses(tmp_path / "start", made, settings)
    assert ours[-1] < 0.7 * ours[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
