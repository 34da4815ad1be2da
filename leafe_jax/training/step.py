"""The train step: packed batch in, new state and measurements out; jitted, sharded, donated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leafe_jax.errors import UserError
from leafe_jax.models import decoder
from leafe_jax.models.attention import segment_attend
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.training.losses import token_nll
from leafe_jax.training.sharding import BATCH, shardings_for

SCHEDULES = ("constant", "linear", "cosine")


def make_optimizer(train, num_steps: int) -> optax.GradientTransformation:
    """Gradient clipping and AdamW with a warm-up.

    Args:
      train: train section of a config (learning_rate, schedule, warmup_steps, weight_decay, b1, b2,
        eps, clip_norm).
      num_steps: optimizer steps of the run, for the decaying schedules.

    Raises:
      UserError: unknown schedule.
    """
    warmup = min(train.warmup_steps, max(num_steps - 1, 0))
    rest = max(num_steps - warmup, 1)
    if train.schedule == "constant":
        tail = optax.constant_schedule(train.learning_rate)
    elif train.schedule == "linear":
        tail = optax.linear_schedule(train.learning_rate, 0.0, rest)
    elif train.schedule == "cosine":
        tail = optax.cosine_decay_schedule(train.learning_rate, rest)
    else:
        raise UserError(f"train.schedule = {train.schedule!r}: must be one of {SCHEDULES}")
    # From one warm-up step's share, not from 0: a first step without an update would be wasted.
    head = optax.linear_schedule(train.learning_rate / (warmup + 1), train.learning_rate, warmup)
    schedule = optax.join_schedules([head, tail], [warmup]) if warmup else tail
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.adamw(
            schedule, b1=train.b1, b2=train.b2, eps=train.eps, weight_decay=train.weight_decay
        ),
    )


def init_state(params, tx: optax.GradientTransformation, mesh: Mesh) -> dict[str, Any]:
    """{"params": float32 master weights, "opt_state", "step": int32 []}, placed by the rules.

    A 1e-6 update vanishes in bfloat16, so the masters are float32 whatever the compute dtype.
    """

    def make(params):
        masters = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return {"params": masters, "opt_state": tx.init(masters), "step": jnp.zeros((), jnp.int32)}

    # Without out_shardings the moments would land on one device.
    shardings = shardings_for(jax.eval_shape(make, params), mesh)
    return jax.jit(make, out_shardings=shardings)(params)


def batch_loss(
    config: ModelConfig,
    params,
    batch: dict[str, jax.Array],
    coefficients: jax.Array,
    loss_chunk: int,
    remat: bool,
    attention: str,
    mesh: Mesh,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """sum(coefficients[source] * mass * nll) / sum(mass), and each source's own mean.

    Args:
      config, params: the model, in the compute dtype.
      batch: see data.Batches.
      coefficients: float32 [sources], see data.mixing_coefficients.
      loss_chunk: tokens whose logits exist at the same time.
      remat: recompute the decoder's activations in the backward pass.
      attention, mesh: see attention.segment_attend.
    """

    def states(params, tokens, positions, segment_ids):
        attend = segment_attend(segment_ids, attention, mesh)
        return decoder.hidden(config, params, tokens, positions, attend)

    if remat:
        states = jax.checkpoint(states)
    hidden = states(params, batch["tokens"], batch["positions"], batch["segment_ids"])
    nll = token_nll(config, params, hidden, batch["targets"], loss_chunk)
    mass, source = batch["mass"], batch["source"]
    total = jnp.maximum(mass.sum(), 1e-9)  # a batch of padding alone gives 0, not nan
    loss = jnp.sum(coefficients[source] * mass * nll) / total
    means = {}
    for index in range(coefficients.shape[0]):
        own = mass * (source == index)
        means[index] = jnp.sum(own * nll) / jnp.maximum(own.sum(), 1e-9)
    return loss, means


def make_train_step(
    config: ModelConfig,
    tx: optax.GradientTransformation,
    *,
    sources: Sequence[str],
    coefficients: np.ndarray,
    compute_dtype: str,
    loss_chunk: int,
    remat: bool,
    attention: str,
    mesh: Mesh,
    state_shapes: Any,
) -> Callable[[dict[str, Any], dict[str, jax.Array]], tuple[dict[str, Any], dict[str, jax.Array]]]:
    """The jitted step (state, batch) -> (state, measurements); `state` is donated.

    Measurements: loss, loss_<source>, grad_norm, param_norm, update_norm, target_tokens, and finite
    (1.0 or 0.0). A step whose gradient is not finite leaves the weights as they were.

    Args:
      config, tx: model and optimizer.
      sources: names of the data sources, in the order of the batch's `source`.
      coefficients: float32 [sources].
      compute_dtype: "float32" or "bfloat16".
      loss_chunk, remat: see batch_loss.
      attention: backend, from attention.choose_backend.
      mesh: devices; axes as in sharding.AXES.
      state_shapes: the state or its ShapeDtypeStructs.
    """
    coefficients = jnp.asarray(coefficients)

    def step(state, batch):
        def loss_fn(params):
            params = jax.tree.map(lambda x: x.astype(compute_dtype), params)
            return batch_loss(
                config, params, batch, coefficients, loss_chunk, remat, attention, mesh
            )

        (loss, means), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        new = {
            "params": optax.apply_updates(state["params"], updates),
            "opt_state": opt_state,
        }
        kept = {"params": state["params"], "opt_state": state["opt_state"]}
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
        measurements = {
            "loss": loss,
            **{f"loss_{name}": means[index] for index, name in enumerate(sources)},
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(new["params"]),
            "update_norm": optax.tree.norm(updates),
            "target_tokens": jnp.sum(batch["mass"] > 0).astype(jnp.float32),
            "finite": finite.astype(jnp.float32),
        }
        return {**new, "step": state["step"] + 1}, measurements

    shardings = shardings_for(state_shapes, mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=(0,),
    )
