"""One SFT run: data, optimizer, steps, checkpoints. The base model and Stage 2 both use it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from leafe_jax.errors import UserError
from leafe_jax.models.attention import choose_backend
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.training.checkpoint import Checkpoints
from leafe_jax.training.data import Batches, Example, mixing_coefficients
from leafe_jax.training.sharding import BATCH, make_mesh
from leafe_jax.training.step import init_state, make_optimizer, make_train_step

EXIT_PREEMPTED = 75  # sysexits' EX_TEMPFAIL: run the same command again


class _Preemption:
    """Notes SIGTERM, so that the loop can save before it exits."""

    def __enter__(self):
        self.asked = False
        # Handlers can only be set in the main thread; elsewhere (notebooks, tests) none is needed.
        self._install = threading.current_thread() is threading.main_thread()
        if self._install:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_):
        self.asked = True

    def __exit__(self, *_):
        if self._install:
            signal.signal(signal.SIGTERM, self._previous)


def fit(
    *,
    model_config: ModelConfig,
    params: Any,
    examples: Sequence[Example],
    train_config,
    sources: Sequence[str],
    source_weights: Sequence[float],
    directory,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
    progress: Callable[[int, int], None],
) -> Any:
    """Trains on `examples` and returns the float32 parameters.

    Picks up from the newest checkpoint in `directory`, bit-exactly: weights, optimizer state and
    position in the data come from it.

    Args:
      model_config, params: the model to start from.
      examples: training data.
      train_config: train section of a config, see configs/default.py.
      sources, source_weights: names and loss weights of the data sources.
      directory: of the checkpoints.
      seed: of the data order.
      log: log(step, measurements), every `log_every` steps and at the end.
      progress: progress(step, total).

    Raises:
      UserError: a setting is out of range, or `max_nonfinite` steps in a row were not finite.
      SystemExit: EXIT_PREEMPTED after SIGTERM, once the state is saved.
    """
    mesh = make_mesh(train_config.mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if train_config.batch_size % rows:
        raise UserError(
            f"train.batch_size = {train_config.batch_size}: must be a multiple of {rows}, the"
            " devices along data and fsdp"
        )
    batches = Batches(
        examples, train_config.seq_len, train_config.batch_size, train_config.num_epochs, seed
    )
    total = batches.num_steps()
    tx = make_optimizer(train_config, total)
    state = init_state(params, tx, mesh)
    train_step = make_train_step(
        model_config,
        tx,
        sources=sources,
        coefficients=mixing_coefficients(examples, source_weights),
        compute_dtype=train_config.compute_dtype,
        loss_chunk=train_config.loss_chunk,
        remat=train_config.remat,
        attention=choose_backend(
            train_config.attention, model_config, train_config.compute_dtype, mesh
        ),
        mesh=mesh,
        state_shapes=state,
    )
    checkpoints = Checkpoints(directory)
    iterator = iter(batches)
    step = 0
    restored = checkpoints.restore(state)
    if restored is not None:
        step, state, data_state = restored
        iterator.set_state(data_state)
    placement = NamedSharding(mesh, BATCH)
    nonfinite = 0
    with _Preemption() as preemption:
        progress(step, total)
        while step < total:
            batch = {k: jax.device_put(v, placement) for k, v in next(iterator).items()}
            state, measurements = train_step(state, batch)
            step += 1
            # Reading `finite` waits for the step; on one host that costs little beside the step.
            nonfinite = 0 if float(measurements["finite"]) else nonfinite + 1
            if nonfinite >= train_config.max_nonfinite:
                raise UserError(
                    f"train: loss or gradient was not finite for {nonfinite} steps in a row (step"
                    f" {step}); lower train.learning_rate = {train_config.learning_rate}"
                )
            if step % train_config.log_every == 0 or step == total:
                log(step, {k: float(np.asarray(v)) for k, v in measurements.items()})
            progress(step, total)
            if step % train_config.checkpoint_every == 0 or step == total or preemption.asked:
                checkpoints.save(step, state, iterator.get_state())
            if preemption.asked:
                checkpoints.close()
                raise SystemExit(EXIT_PREEMPTED)
    checkpoints.close()
    return state["params"]
