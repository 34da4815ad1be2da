"""The train step: packed batch in, new state and measurements out; jitted, sharded, donated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leafe_jax.errors import UserError
from leafe_jax.models import lora
from leafe_jax.models.attention import choose_backend, segment_attend
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.sharding import BATCH, check_mesh, shardings_for
from leafe_jax.training.forward import REMAT, hidden_states
from leafe_jax.training.losses import token_nll

_COUNTS = (
    "batch_size", "accumulation", "loss_chunk", "checkpoint_every", "log_every", "max_nonfinite",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step computes; none of it changes what it computes, beyond rounding.

    Attributes:
      compute_dtype: "float32" or "bfloat16"; masters, losses, and sums over tokens and over parts are
        float32. A kernel's gradient has this dtype when devices add theirs up.
      accumulation: parts a batch is computed in, one after the other.
      remat: one of forward.REMAT.
      scan_layers: see forward.hidden_states.
      loss_chunk: see losses.token_nll.
      attention: backend, from attention.choose_backend.
    """

    compute_dtype: str
    accumulation: int
    remat: str
    scan_layers: bool
    loss_chunk: int
    attention: str


def step_options(train, config: ModelConfig, mesh: Mesh) -> StepOptions:
    """The options of a config's train section on a mesh.

    Raises:
      UserError: a field is out of range, the mesh does not divide the heads or the rows.
    """
    if train.remat not in REMAT:
        raise UserError(f"train.remat = {train.remat!r}: must be one of {', '.join(REMAT)}")
    if train.compute_dtype not in ("float32", "bfloat16"):
        raise UserError(
            f"train.compute_dtype = {train.compute_dtype!r}: must be float32 or bfloat16"
        )
    for names, least in ((_COUNTS, 1), (("warmup_steps",), 0)):
        for name in names:
            if getattr(train, name) < least:
                raise UserError(f"train.{name} = {getattr(train, name)}: must be at least {least}")
    for name, allowed, text in (
        ("learning_rate", 0 <= train.learning_rate < math.inf, "at least 0"),
        ("weight_decay", 0 <= train.weight_decay < math.inf, "at least 0"),
        ("b1", 0 <= train.b1 < 1, "at least 0 and below 1"),
        ("b2", 0 <= train.b2 < 1, "at least 0 and below 1"),
        ("eps", 0 < train.eps < math.inf, "above 0"),  # 0: 0 / 0 where a gradient is 0
    ):
        if not allowed:
            raise UserError(f"train.{name} = {getattr(train, name)}: must be {text}")
    if not train.clip_norm > 0:
        raise UserError(
            f"train.clip_norm = {train.clip_norm}: must be above 0, which would scale every gradient"
            " to nothing; inf clips none"
        )
    check_mesh(config, mesh)
    rows = train.accumulation * mesh.shape["data"] * mesh.shape["fsdp"]
    if train.batch_size % rows:
        raise UserError(
            f"train.batch_size = {train.batch_size}: must be a multiple of {rows}, the devices along"
            f" data and fsdp times train.accumulation = {train.accumulation}"
        )
    backend = choose_backend(train.attention, config, train.compute_dtype, mesh)
    return StepOptions(
        train.compute_dtype, train.accumulation, train.remat, train.scan_layers, train.loss_chunk,
        backend,
    )  # fmt: skip


def state_shapes(params, tx: optax.GradientTransformation) -> dict[str, Any]:
    """ShapeDtypeStructs of `init_state`'s result."""
    return jax.eval_shape(lambda p: _new_state(p, tx), params)


def _new_state(params, tx: optax.GradientTransformation) -> dict[str, Any]:
    masters = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    zero = jnp.zeros((), jnp.int32)
    return {"params": masters, "opt_state": tx.init(masters), "step": zero, "nonfinite": zero}


def init_state(params, tx: optax.GradientTransformation, mesh: Mesh) -> dict[str, Any]:
    """The state of a run that begins, placed by the rules.

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
    params,
    batch: dict[str, jax.Array],
    coefficients: jax.Array,
    options: StepOptions,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Sums that a batch's parts add up to.

    Args:
      config, params: the model, in the compute dtype.
      batch: see data.Batches.
      coefficients: float32 [sources], see data.mixing_coefficients.
      options, mesh: how to compute.

    Returns:
      (sum of coefficients[source] * mass * nll, sum of mass * nll of each source [sources]).
    """
    attend = segment_attend(batch["segment_ids"], options.attention, mesh)
    hidden = hidden_states(
        config, params, batch["tokens"], batch["positions"], attend,
        remat=options.remat, scan_layers=options.scan_layers, mesh=mesh,
    )  # fmt: skip
    nll = token_nll(config, params, hidden, batch["targets"], options.loss_chunk, mesh)
    loss = batch["mass"] * nll
    each = jnp.stack(
        [jnp.sum(jnp.where(batch["source"] == i, loss, 0)) for i in range(len(coefficients))]
    )
    return jnp.sum(coefficients * each), each


def _gradients(
    config: ModelConfig, trained, frozen, batch, coefficients, options: StepOptions, mesh: Mesh
) -> tuple[jax.Array, jax.Array, Any]:
    """(loss, each source's sum of mass * nll, float32 gradients of `trained`) of a whole batch.

    The loss is sum(coefficients[source] * mass * nll) / sum(mass), over the whole batch also where it
    is computed in parts: accumulation is no mean of means.
    """
    total = jnp.maximum(batch["mass"].sum(), 1e-9)  # a batch of padding alone gives 0, not nan
    cast = jax.tree.map(lambda x: x.astype(options.compute_dtype), trained)

    def part(rows):
        def loss(cast):
            params = lora.join(frozen, cast)
            value, each = loss_sums(config, params, rows, coefficients, options, mesh)
            return value / total, each

        (loss, each), grads = jax.value_and_grad(loss, has_aux=True)(cast)
        return loss, each, jax.tree.map(lambda x: x.astype(jnp.float32), grads)

    if options.accumulation == 1:
        return part(batch)
    parts = options.accumulation
    # Every device's rows go into every part, so that no row moves to another device.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    placed = NamedSharding(mesh, P(None, *BATCH))
    split = jax.lax.with_sharding_constraint(split, placed)

    def add(sums, rows):
        return jax.tree.map(jnp.add, sums, part(rows)), None

    # Said where: the carry of a loop could else be a whole copy on every device.
    zeros = jax.lax.with_sharding_constraint(
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained),
        shardings_for(trained, mesh),
    )
    start = (jnp.zeros(()), jnp.zeros(coefficients.shape), zeros)
    return jax.lax.scan(add, start, split)[0]


def make_train_step(
    config: ModelConfig,
    tx: optax.GradientTransformation,
    *,
    sources: Sequence[str],
    coefficients: np.ndarray,
    options: StepOptions,
    mesh: Mesh,
    state: Any,
    frozen: Any,
) -> Callable[[Any, Any, dict[str, jax.Array]], tuple[Any, dict[str, jax.Array]]]:
    """The jitted step (state, frozen, batch) -> (state, measurements); `state` is donated.

    Measurements: loss; loss_<source> (nan in a batch without it) and tokens_<source>; grad_norm
    (before clipping), param_norm, update_norm; padding, the share of places without a token; finite
    (1.0 or 0.0) and nonfinite_in_a_row. A step whose loss or gradient is not finite leaves weights and
    optimizer as they were.

    Args:
      config, tx: model and optimizer.
      sources: names of the data sources, in the order of the batch's `source`.
      coefficients: float32 [sources].
      options, mesh: how to compute.
      state: see init_state; it or its ShapeDtypeStructs.
      frozen: weights that are not trained, in the compute dtype, or their shapes; {} if all are.
    """
    coefficients = jnp.asarray(coefficients)

    def step(state, frozen, batch):
        loss, each, grads = _gradients(
            config, state["params"], frozen, batch, coefficients, options, mesh
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
        for index, name in enumerate(sources):
            own = jnp.where(batch["source"] == index, batch["mass"], 0)
            # 0 / 0 is nan: a batch without this source has no loss of it, and 0 would be a perfect one.
            measurements[f"loss_{name}"] = each[index] / own.sum()
            measurements[f"tokens_{name}"] = jnp.sum(own > 0).astype(jnp.float32)
        return {**new, "step": state["step"] + 1, "nonfinite": nonfinite}, measurements

    shardings = shardings_for(state, mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, shardings_for(frozen, mesh), NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=(0,),
    )
