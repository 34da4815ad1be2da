"""Fifty steps beside a plain torch loop over transformers' model: the same losses."""

import dataclasses

import numpy as np
import pytest
import trainer

from leafe_jax.models import hf

STEPS = 50


def torch_losses(directory, made, settings) -> list[float]:
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
    for step in range(STEPS):
        left = STEPS - settings.warmup_steps
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
    settings = trainer.train_config(**changes)
    packed = trainer.batches(made, batch_size=4)
    assert packed.num_steps == 1, "every step sees all examples"
    import jax

    from leafe_jax.training.objectives import sft
    from leafe_jax.training.optimizer import make_optimizer
    from leafe_jax.training.step import init_state, make_train_step

    mesh, tx = trainer.one_device(), make_optimizer(settings, STEPS)
    state = init_state(jax.tree.map(jax.numpy.array, start), tx, mesh)
    step = make_train_step(
        config, tx, objective=sft(float(sum(e.mass.sum() for e in made))), sources=trainer.sources(),
        options=trainer.options(config, **changes), state=state, frozen={},
    )  # fmt: skip
    ours = []
    for _ in range(STEPS):
        state, measured = step(state, {}, next(iter(packed)))
        ours.append(float(measured["loss"]))
    theirs = torch_losses(tmp_path / "start", made, settings)
    assert ours[-1] < 0.7 * ours[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
