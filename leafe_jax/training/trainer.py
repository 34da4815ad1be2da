"""One SFT run: data, optimizer, steps, checkpoints. The base model and Stage 2 both use it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from leafe_jax.errors import UserError
from leafe_jax.models import lora
from leafe_jax.models.decoder import ModelConfig, abstract_params
from leafe_jax.models.sharding import BATCH, shardings_for, train_mesh
from leafe_jax.runtime.memory import DIVIDE, needed_for
from leafe_jax.runtime.preemption import Preemption
from leafe_jax.training.checkpoint import Checkpoints
from leafe_jax.training.optimizer import make_optimizer
from leafe_jax.training.packing import Batches, mixing_coefficients
from leafe_jax.training.records import survey
from leafe_jax.training.step import (
    StepOptions,
    init_state,
    make_train_step,
    state_shapes,
    step_options,
)
from leafe_jax.types import Example

LoadParams = Callable[[Any, Any], Any]


def place(params: Any) -> LoadParams:
    """Parameters that are there already, as `fit` wants them: a copy, cast and placed."""

    def load(dtype, shardings):
        return jax.jit(
            lambda p: jax.tree.map(lambda x: x.astype(dtype), p), out_shardings=shardings
        )(jax.tree.map(np.asarray, params))

    return load


def check(train, model_config: ModelConfig) -> tuple[Mesh, ModelConfig, StepOptions]:
    """What a train section says about a model; all that can be refused without an example.

    Args:
      train: train section of a config.
      model_config: the model, without adapters.

    Returns:
      (mesh over all devices, model with the adapters of train.lora, options of the step).

    Raises:
      UserError: a field is out of range, or does not go with the devices or the model.
    """
    mesh = train_mesh(train.mesh)
    model_config = lora.with_adapters(model_config, train.lora)
    options = step_options(train, model_config, mesh)
    make_optimizer(train, 1)
    shardings_for(abstract_params(model_config), mesh)
    return mesh, model_config, options


def fit(
    *,
    model_config: ModelConfig,
    load_params: LoadParams,
    examples: Sequence[Example],
    train_config,
    sources: Sequence[str],
    source_weights: Sequence[float],
    directory,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
    progress: Callable[[int, int], None],
) -> Any:
    """Trains on `examples` and returns what was trained, float32: the parameters or, with
    train.lora.rank > 0, the adapters.

    Picks up from the newest checkpoint in `directory`, bit-exactly and whatever the mesh was: weights,
    optimizer state and position in the data come from it. A signal or maintenance notice saves and
    leaves. `log` and `progress` are called in the first process only.

    Args:
      model_config: the model.
      load_params: load_params(dtype, shardings) gives the weights to start from; not asked where
        a checkpoint has them all. `fit` uses their memory.
      examples: training data, e.g. an ExampleFile.
      train_config: train section of a config, see configs/default.py.
      sources, source_weights: names and loss weights of the data sources.
      directory: of the checkpoints.
      seed: of the data order and of the adapters.
      log: log(step, measurements), every `log_every` steps, at the end, and for a skipped step.
      progress: progress(step, total).

    Raises:
      UserError: a setting is out of range, the checkpoint is another run's, `max_nonfinite` steps in a
        row were not finite (the last batch is saved beside the checkpoints), the devices' memory is
        too small, another process died or has other examples.
      OSError: the disk is full; the last checkpoint is intact.
      SystemExit: 75, or 130 after SIGINT, once the state is saved.
    """
    mesh, model_config, options = check(train_config, model_config)  # before anything is written
    facts = survey(examples, len(sources), model_config.vocab_size)
    _agree(facts.digest)
    place_rows = NamedSharding(mesh, BATCH)
    shape = (train_config.batch_size, train_config.seq_len)
    batches = Batches(
        examples, facts.lengths, train_config.seq_len, train_config.batch_size,
        train_config.num_epochs, seed, _own_rows(place_rows, shape),
    )  # fmt: skip
    tx = make_optimizer(train_config, batches.num_steps)
    identity = _identity(model_config, train_config, facts.digest, seed)
    checkpoints = Checkpoints(directory, identity)
    remedy = f"{DIVIDE}, or train adapters (train.lora.rank)"
    with needed_for("loading the weights and making the optimizer's state", remedy):
        frozen, step, state, data_state = _start(
            model_config, load_params, tx, mesh, checkpoints, seed, options.compute_dtype
        )
    iterator = iter(batches)
    if data_state is not None:
        iterator.set_state(data_state)
    train_step = make_train_step(
        model_config, tx, sources=sources,
        coefficients=mixing_coefficients(facts.masses, source_weights),
        options=options, mesh=mesh, state=state, frozen=frozen,
    )  # fmt: skip
    run = _Run(train_config, batches.num_steps, Path(directory), checkpoints, log, progress)
    try:
        with (
            needed_for(
                "training", f"raise train.accumulation, set train.remat = 'full', or {remedy}"
            ),
            Preemption(train_config.notice_url) as preemption,
        ):
            state = run.steps(step, state, frozen, iterator, train_step, place_rows, preemption)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise UserError(
            f"train: a step failed ({str(error).splitlines()[0]}), mostly because another process of"
            " this run has died or cannot be reached; start all of them again to go on from the last"
            " checkpoint; if the same words come again, the cause is in them"
        ) from error
    checkpoints.close()
    return state["params"]


def _agree(digest: str) -> None:
    """All processes must train on the same examples: they read the file, each for itself."""
    own = np.frombuffer(bytes.fromhex(digest), np.uint8)
    every = multihost_utils.process_allgather(own, tiled=False)
    other = np.flatnonzero((every != every[0]).any(axis=1))
    if other.size:
        raise UserError(
            f"train: process {other[0]} reads other examples than process 0: all need the same files"
        )


def _own_rows(sharding: NamedSharding, shape: tuple[int, int]) -> list[int]:
    """Rows of a batch that this process's devices hold, ascending."""
    rows = set()
    for index in sharding.addressable_devices_indices_map(shape).values():
        rows |= set(range(*index[0].indices(shape[0])))
    return sorted(rows)


def _identity(config: ModelConfig, train, digest: str, seed: int) -> dict[str, Any]:
    """What has to be the same for a checkpoint to be this run's."""
    model = {f"model.{k}": v for k, v in dataclasses.asdict(config).items()}
    settings = {f"train.{k}": getattr(train, k) for k in ("seq_len", "batch_size", "num_epochs")}
    data = {"data": digest, "data order": seed}
    if train.weight_decay and config.lora is None:  # adapters are matrices only
        settings["train.decayed"] = "matrices"  # before 2026-11: all weights, and no such entry
    return json.loads(json.dumps({**model, **settings, **data}))  # tuples as JSON has them


def _start(
    config: ModelConfig,
    load_params: LoadParams,
    tx,
    mesh: Mesh,
    checkpoints: Checkpoints,
    seed: int,
    compute_dtype: str,
) -> tuple[Any, int, Any, dict[str, Any] | None]:
    """(frozen weights, step, state, data state): from the newest checkpoint, or from the start."""
    base = dataclasses.replace(config, lora=None)
    places = shardings_for(abstract_params(base), mesh)
    frozen = {}
    if config.lora is not None:
        frozen = load_params(compute_dtype, places)
        trained = jax.eval_shape(lambda: lora.init_adapters(config, jax.random.key(seed)))
    else:
        trained = abstract_params(base)
    shapes = state_shapes(trained, tx)
    like = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
        shapes, shardings_for(shapes, mesh),
    )  # fmt: skip
    restored = checkpoints.restore(like)
    if restored is not None:
        return frozen, *restored
    if config.lora is not None:
        params = lora.init_adapters(config, jax.random.key(seed))
    else:
        params = load_params("float32", places)
    return frozen, 0, init_state(params, tx, mesh), None


@dataclasses.dataclass(frozen=True)
class _Run:
    train_config: Any
    total: int
    directory: Path
    checkpoints: Checkpoints
    log: Callable[[int, dict[str, float]], None]
    progress: Callable[[int, int], None]

    def steps(self, step, state, frozen, iterator, train_step, place_rows, preemption):
        """From `step` to the end; returns the last state."""
        train = self.train_config
        shape = (train.batch_size, train.seq_len)

        def next_batch():
            rows = next(iterator, None)
            if rows is None:
                return None, None
            make = jax.make_array_from_process_local_data
            return rows, {k: make(place_rows, v, shape) for k, v in rows.items()}

        self._show(step)
        rows, batch = next_batch()
        while step < self.total:
            state, measurements = train_step(state, frozen, batch)
            step += 1
            data_state = iterator.get_state()
            used, (rows, batch) = rows, next_batch()  # while the devices are at it
            self._check(step, measurements, used)
            self._show(step)
            asked = preemption.asked()
            last = step == self.total
            if step % train.checkpoint_every == 0 or last or asked:
                self.checkpoints.save(step, state, data_state, must=last or asked)
            if asked:
                self.checkpoints.close()
                logging.getLogger("leafe_jax").info(
                    "train: told to stop; step %d is saved; the same command goes on from there",
                    step,
                )
                preemption.leaving()
                raise SystemExit(preemption.code)
        return state

    def _show(self, step: int) -> None:
        if jax.process_index() == 0:
            self.progress(step, self.total)

    def _check(self, step: int, measurements, rows) -> None:
        """Logs, and stops the run after too many steps that were skipped."""
        train = self.train_config
        skipped = int(measurements["nonfinite_in_a_row"])
        if skipped or step % train.log_every == 0 or step == self.total:
            if jax.process_index() == 0:
                self.log(step, {k: float(np.asarray(v)) for k, v in measurements.items()})
        if skipped >= train.max_nonfinite:
            file = self.directory / f"nonfinite_step{step}_process{jax.process_index()}.npz"
            np.savez(file, **rows)
            self.checkpoints.close()
            raise UserError(
                f"train: loss or gradient was not finite for {skipped} steps in a row (step {step});"
                f" its batch is in {file}; lower train.learning_rate = {train.learning_rate}, with the"
                f" checkpoints of {self.directory} moved away: they are those of this one"
            )
