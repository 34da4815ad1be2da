"""The train step: packed batch in, new state and measurements out; jitted, sharded, donated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leafe_jax.errors import UserError
from leafe_jax.models import lora
from leafe_jax.models.attention import choose_backend, segment_attend
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.sharding import BATCH, check_mesh, shardings_for
from leafe_jax.training.forward import hidden_states
from leafe_jax.training.losses import token_nll, token_nll_entropy
from leafe_jax.training.objectives import Objective
from leafe_jax.training.settings import TrainConfig
from leafe_jax.types import ENTROPY

Batch = dict[str, Any]  # see packing.Batches
Measurements = dict[str, Array]
Step = Callable[[Any, Any, Batch], tuple[Any, Measurements]]


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How and where a step computes. None of it changes the result, up to rounding.

    Attributes:
      compute_dtype: "float32" or "bfloat16"; masters, losses, and sums over tokens and over parts are
        float32. A kernel's gradient has this dtype when devices add theirs up.
      accumulation: parts a batch is computed in, one after the other.
      remat: one of forward.REMAT.
      scan_layers: see forward.hidden_states.
      loss_chunk: see losses.token_nll.
      attention: backend, from attention.choose_backend.
      mesh: devices.
    """

    compute_dtype: str
    accumulation: int
    remat: str
    scan_layers: bool
    loss_chunk: int
    attention: str
    mesh: Mesh

    @property
    def row_multiple(self) -> int:
        """The rows of a batch are a multiple of this: every device has as many in every part."""
        return self.accumulation * self.mesh.shape["data"] * self.mesh.shape["fsdp"]


def step_options(train: TrainConfig, config: ModelConfig, mesh: Mesh) -> StepOptions:
    """The options of a training config on a mesh.

    Raises:
      UserError: the mesh does not divide the heads or the rows, or the attention does not run on it.
    """
    check_mesh(config, mesh)
    backend = choose_backend(train.attention, config, train.compute_dtype, mesh)
    options = StepOptions(
        train.compute_dtype, train.accumulation, train.remat, train.scan_layers, train.loss_chunk,
        backend, mesh,
    )  # fmt: skip
    if train.batch_size % options.row_multiple:
        raise UserError(
            f"train.batch_size = {train.batch_size}: must be a multiple of {options.row_multiple}, the"
            f" devices along data and fsdp times train.accumulation = {train.accumulation}"
        )
    return options


def state_shapes(params: Any, tx: optax.GradientTransformation) -> dict[str, Any]:
    """ShapeDtypeStructs of `init_state`'s result."""
    return jax.eval_shape(lambda p: _new_state(p, tx), params)


def _new_state(params: Any, tx: optax.GradientTransformation) -> dict[str, Any]:
    masters = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    zero = jnp.zeros((), jnp.int32)
    return {"params": masters, "opt_state": tx.init(masters), "step": zero, "nonfinite": zero}


def init_state(params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> dict[str, Any]:
    """The state of a run at its start, placed by the sharding rules.

    A 1e-6 update vanishes in bfloat16, so the masters are float32 whatever the compute dtype.

    Returns:
      {"params": what is trained, "opt_state", "step": int32 [], "nonfinite": int32 [], the steps
      skipped in a row}.
    """
    # Without out_shardings the moments would land on one device.
    shardings = shardings_for(state_shapes(params, tx), mesh)
    return jax.jit(lambda p: _new_state(p, tx), out_shardings=shardings)(params)


def loss_sums(
    config: ModelConfig,
    params: Any,
    batch: Batch,
    coefficients: Array,
    objective: Objective,
    options: StepOptions,
) -> tuple[Array, dict[str, Any]]:
    """Sums over a batch, or over a part of one: those of the parts add up.

    Args:
      config, params: the model, in the compute dtype.
      batch: see packing.Batches.
      coefficients: float32 [sources], see packing.mixing_coefficients.
      objective: what is minimised.
      options: how to compute.

    Returns:
      (sum of coefficients[source] * loss, {"loss": sum of the losses of each source [sources], and each of
      the objective's measurements: its sum, weighted by the mass}).
    """
    attend = segment_attend(batch["segment_ids"], options.attention, options.mesh)
    hidden = hidden_states(
        config, params, batch["tokens"], batch["positions"], attend,
        remat=options.remat, scan_layers=options.scan_layers, mesh=options.mesh,
    )  # fmt: skip
    targets, chunk = batch["targets"], options.loss_chunk
    columns = batch
    if objective.entropy:
        nll, entropy = token_nll_entropy(config, params, hidden, targets, chunk, options.mesh)
        columns = {**batch, ENTROPY: entropy}
    else:
        nll = token_nll(config, params, hidden, targets, chunk, options.mesh)
    logprobs = -nll
    loss = objective.token_loss(columns, logprobs)
    each = jnp.stack(
        [jnp.sum(jnp.where(batch["source"] == i, loss, 0)) for i in range(len(coefficients))]
    )
    fixed = jax.lax.stop_gradient(logprobs)
    columns = jax.lax.stop_gradient(columns)
    measured = {
        name: jnp.sum(_watched(objective, batch) * measure(columns, fixed))
        for name, measure in objective.measurements.items()
    }
    return jnp.sum(coefficients * each), {"loss": each, **measured}


def _watched(objective: Objective, batch: Batch) -> Array:
    """The masses by which measurements are weighted."""
    if objective.watched is None:
        return batch["mass"]
    return jnp.where(batch["source"] == objective.watched, batch["mass"], 0)


def _gradients(
    config: ModelConfig,
    trained: Any,
    frozen: Any,
    batch: Batch,
    coefficients: Array,
    objective: Objective,
    options: StepOptions,
) -> tuple[Array, dict[str, Any], Any]:
    """(loss, sums as of loss_sums, float32 gradients of `trained`) of a whole batch.

    The loss is sum(coefficients[source] * loss) / denominator. That is a sum over examples: it is the same
    if the batch is computed in parts.
    """
    total = objective.denominator
    cast = jax.tree.map(lambda x: x.astype(options.compute_dtype), trained)

    def part(rows: Batch) -> tuple[Array, dict[str, Any], Any]:
        def loss(cast: Any) -> tuple[Array, dict[str, Any]]:
            params = lora.join(frozen, cast)
            value, sums = loss_sums(config, params, rows, coefficients, objective, options)
            return value / total, sums

        (value, sums), grads = jax.value_and_grad(loss, has_aux=True)(cast)
        return value, sums, jax.tree.map(lambda x: x.astype(jnp.float32), grads)

    if options.accumulation == 1:
        return part(batch)
    parts = options.accumulation
    # Every device's rows go into every part, so that no row moves to another device.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    placed = NamedSharding(options.mesh, P(None, *BATCH))
    split = jax.lax.with_sharding_constraint(split, placed)

    def add(sums: Any, rows: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, part(rows)), None

    # With a sharding: the carry of a loop could otherwise be a whole copy on every device.
    zeros = jax.lax.with_sharding_constraint(
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained),
        shardings_for(trained, options.mesh),
    )
    sums = {name: jnp.zeros(()) for name in objective.measurements}
    start = (jnp.zeros(()), {"loss": jnp.zeros(coefficients.shape), **sums}, zeros)
    return jax.lax.scan(add, start, split)[0]


def make_train_step(
    config: ModelConfig,
    tx: optax.GradientTransformation,
    *,
    objective: Objective,
    sources: Mapping[str, float],
    options: StepOptions,
    state: Any,
    frozen: Any,
) -> Step:
    """The jitted step (state, frozen, batch) -> (state, measurements); `state` is donated.

    Measurements: loss; loss_<source>, the mean over its mass (nan in a batch without it), and
    tokens_<source>; the objective's own; grad_norm (before clipping), param_norm, update_norm; padding,
    the share of places without a token; finite (1.0 or 0.0) and nonfinite_in_a_row. A step whose loss or
    gradient is not finite leaves weights and optimizer as they were.

    Args:
      config, tx: model and optimizer.
      objective: what is minimised.
      sources: name -> coefficient of each data source, in the order of the batch's `source`.
      options: how to compute.
      state: see init_state; it or its ShapeDtypeStructs.
      frozen: weights that are not trained, in the compute dtype, or their shapes; {} if all are.
    """
    coefficients = jnp.asarray(np.asarray(list(sources.values()), np.float32))
    mesh = options.mesh

    def step(state: Any, frozen: Any, batch: Batch) -> tuple[Any, Measurements]:
        loss, sums, grads = _gradients(
            config, state["params"], frozen, batch, coefficients, objective, options
        )
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        new = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}
        kept = {name: state[name] for name in new}
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
        nonfinite = jnp.where(finite, 0, state["nonfinite"] + 1)
        measurements = {
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(new["params"]),
            "update_norm": optax.tree.norm(updates),
            "finite": finite.astype(jnp.float32),
            "nonfinite_in_a_row": nonfinite.astype(jnp.float32),
            "padding": jnp.mean(batch["segment_ids"] == 0),
        }
        for name in objective.measurements:
            measurements[name] = sums[name] / jnp.maximum(_watched(objective, batch).sum(), 1e-9)
        for index, name in enumerate(sources):
            own = jnp.where(batch["source"] == index, batch["mass"], 0)
            # 0 / 0 is nan: a batch without this source has no loss of it, and 0 would be a perfect one.
            measurements[f"loss_{name}"] = sums["loss"][index] / own.sum()
            measurements[f"tokens_{name}"] = jnp.sum(own > 0).astype(jnp.float32)
        return {**new, "step": state["step"] + 1, "nonfinite": nonfinite}, measurements

    shardings = shardings_for(state, mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, shardings_for(frozen, mesh), NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=(0,),
    )
