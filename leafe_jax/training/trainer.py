"""Training: a model, its optimizer and its checkpoints behind steps; and `fit`, a loop over fixed examples.

An on-policy method makes its own loop: examples, steps, new weights for the sampler, new examples.

    with contextlib.closing(Trainer(start, train, grpo(denominator), directory, seed=0)) as trainer:
        state = trainer.restore({"samples": 1.0}, num_steps=1000) or {"iteration": 0}
        for iteration in range(state["iteration"], 100):
            examples = play(engine, iteration)
            for rows in trainer.batches(examples, num_epochs=1, seed=iteration):
                measurements = trainer.step(rows)
            engine.swap(trainer.params)
            trainer.save({"iteration": iteration + 1})
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from leafe_jax.errors import UserError
from leafe_jax.models import lora
from leafe_jax.models.decoder import abstract_params
from leafe_jax.models.sharding import BATCH, shardings_for
from leafe_jax.runtime.memory import DIVIDE, Shortage, needed_for, shortage
from leafe_jax.runtime.preemption import Preemption
from leafe_jax.training.checkpoint import Checkpoints
from leafe_jax.training.objectives import Objective
from leafe_jax.training.optimizer import make_optimizer
from leafe_jax.training.packing import (
    Batches,
    Plan,
    make_even_plan,
    make_plan,
    mixing_coefficients,
)
from leafe_jax.training.records import Survey, survey
from leafe_jax.training.settings import TrainConfig
from leafe_jax.training.start import Data, Start, agree, check, own_rows
from leafe_jax.training.step import (
    Measurements,
    Step,
    init_state,
    make_train_step,
    state_shapes,
)
from leafe_jax.types import Example

Rows = dict[str, np.ndarray]  # a batch, or this process's rows of it; see packing.Batches

_REMEDY = f"{DIVIDE}, or train adapters (train.lora.rank)"
_STEP_REMEDY = f"set train.remat = 'full', or {_REMEDY}"
_MARGIN = 1.05  # an allocator cannot use its last bytes


class Trainer:
    """A model in training. Made, then restored, then stepped, saved and closed.

    Args:
      start: model, and weights to start from.
      train: settings; num_epochs is `fit`'s.
      objective: what is minimised.
      directory: of the checkpoints.
      seed: of fresh adapters.
      average: see optimizer.make_optimizer.

    Attributes:
      config: the model, with its adapters.
      num_done: optimizer steps done.
      frozen: weights that are not trained, in the compute dtype; {} without adapters.

    Raises:
      UserError: see `check`. Nothing is written before `restore`.
    """

    def __init__(
        self,
        start: Start,
        train: TrainConfig,
        objective: Objective,
        directory: Path,
        *,
        seed: int,
        average: float = 0.0,
    ):
        self.mesh, self.config, self.options = check(train, start.config)
        self.train, self.objective, self.directory = train, objective, Path(directory)
        self.num_done = 0
        self.frozen: Any = {}
        self._start, self._seed, self._average = start, seed, average
        self._rows = NamedSharding(self.mesh, BATCH)
        self._num_sources = 1
        self._state: Any = None
        self._step: Step | None = None
        self._checkpoints: Checkpoints | None = None

    @property
    def params(self) -> Any:
        """What is trained, float32: the parameters or, with adapters, those alone.

        The next step donates these arrays. Whoever keeps them longer makes a copy; Engine.swap does.
        """
        return self._state["params"]

    @property
    def averaged(self) -> Any:
        """The running average of what is trained; only with `average`."""
        return self._state["opt_state"][1].average

    # -- start ---------------------------------------------------------------------------------
    def restore(
        self,
        sources: Mapping[str, float],
        num_steps: int,
        identity: Mapping[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Loads the newest checkpoint, or the weights to start from.

        Weights, optimizer state and step number come from a checkpoint bit by bit, on whatever mesh it was
        written.

        Args:
          sources: name -> coefficient of the loss of each data source.
          num_steps: optimizer steps of the run, for the learning rate's schedule.
          identity: name -> JSON value of what the checkpoint must agree with, beside the model.

        Returns:
          The `data_state` that was saved with the checkpoint; None at the start of a run.

        Raises:
          UserError: the checkpoint is another run's, or the devices' memory is too small.
        """
        tx = make_optimizer(self.train, num_steps, self._average)
        self._num_sources = len(sources)
        self._checkpoints = Checkpoints(self.directory, self._identity(identity or {}))
        with needed_for("loading the weights and making the optimizer's state", _REMEDY):
            data_state = self._load(tx, self._checkpoints)
        self._step = make_train_step(
            self.config, tx, objective=self.objective, sources=sources, options=self.options,
            state=self._state, frozen=self.frozen,
        )  # fmt: skip
        return data_state

    def _identity(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What has to be the same for a checkpoint to be this run's."""
        model = {f"model.{k}": v for k, v in dataclasses.asdict(self.config).items()}
        settings: dict[str, Any] = {
            f"train.{k}": getattr(self.train, k)
            for k in ("seq_len", "batch_size", "batch_examples", "num_epochs")
        }
        if self.train.weight_decay and self.config.lora is None:  # adapters are matrices only
            settings["train.decayed"] = "matrices"  # before 2026-11: all weights, and no such entry
        return json.loads(json.dumps({**model, **settings, **facts}))  # tuples as JSON has them

    def _load(self, tx: Any, checkpoints: Checkpoints) -> dict[str, Any] | None:
        """Sets frozen weights, state and step; returns the data state, None without a checkpoint."""
        base = dataclasses.replace(self.config, lora=None)
        places = shardings_for(abstract_params(base), self.mesh)
        adapted = self.config.lora is not None

        def fresh() -> Any:
            return lora.init_adapters(self.config, jax.random.key(self._seed))

        if adapted:
            self.frozen = self._start.load_params(self.options.compute_dtype, places)
            trained = jax.eval_shape(fresh)
        else:
            trained = abstract_params(base)
        shapes = state_shapes(trained, tx)
        like = jax.tree.map(
            lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
            shapes, shardings_for(shapes, self.mesh),
        )  # fmt: skip
        restored = checkpoints.restore(like)
        if restored is not None:
            self.num_done, self._state, data_state = restored
            return data_state
        params = fresh() if adapted else self._start.load_params("float32", places)
        self._state = init_state(params, tx, self.mesh)
        return None

    # -- data ----------------------------------------------------------------------------------
    def survey(self, examples: Sequence[Example], num_sources: int) -> Survey:
        """Reads all examples once; all processes have the same.

        Raises:
          UserError: see records.survey; or another process has other examples.
        """
        facts = survey(examples, num_sources, self.config.vocab_size, self.objective.columns)
        agree(facts.digest)
        return facts

    def pack(
        self, examples: Sequence[Example], lengths: Sequence[int], num_epochs: int, seed: int
    ) -> Batches:
        """This process's rows of the batches of examples whose lengths are known."""
        train = dataclasses.replace(self.train, num_epochs=num_epochs)
        return self._read(examples, make_plan(lengths, train, seed, self.options.row_multiple))

    def _read(self, examples: Sequence[Example], plan: Plan) -> Batches:
        own = own_rows(self._rows, (plan.batch_rows, self.train.seq_len))
        return Batches(examples, plan, self.train.seq_len, own, self.objective.columns)

    def batches(self, examples: Sequence[Example], *, num_epochs: int, seed: int) -> Batches:
        """Fresh examples as batches for `step`; in a run of several processes all have the same.

        Batches are even (packing.make_even_plan). Masses are multiplied by the number of an epoch's
        batches: if they add up to 1, the mean of an epoch's batch losses is the mean over all examples.

        Args:
          examples: sources as in `restore`, with the objective's columns.
          num_epochs: passes over them.
          seed: 32 bits, of their order.

        Raises:
          UserError: see records.survey, or an example is longer than a row.
        """
        facts = self.survey(examples, self._num_sources)
        train = dataclasses.replace(self.train, num_epochs=num_epochs)
        plan = make_even_plan(facts.lengths, train, seed)
        factor = np.float32(plan.num_steps / num_epochs)
        scaled = [dataclasses.replace(e, mass=e.mass * factor) for e in examples]
        return self._read(scaled, plan)

    # -- steps ---------------------------------------------------------------------------------
    def put(self, rows: Rows) -> dict[str, jax.Array]:
        """A batch on the devices; `rows` are this process's."""
        # With train.batch_examples the plan has the number of rows. Here it follows from this process's
        # share of them.
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        own = len(own_rows(self._rows, (parts, self.train.seq_len)))
        shape = (len(rows["tokens"]) * parts // own, self.train.seq_len)
        make = jax.make_array_from_process_local_data
        return {name: make(self._rows, values, shape) for name, values in rows.items()}

    def launch(self, batch: dict[str, jax.Array]) -> Measurements:
        """Starts a step on a batch from `put`, and returns its measurements without waiting for them."""
        assert self._step is not None, "restore comes first"
        self._state, measurements = self._step(self._state, self.frozen, batch)
        self.num_done += 1
        return measurements

    def step(self, rows: Rows) -> dict[str, float]:
        """One optimizer step; returns its measurements (see step.make_train_step).

        Raises:
          UserError: see `refuse_nonfinite`; or the devices' memory is too small.
        """
        with needed_for("training", self.remedy):
            measurements = self.launch(self.put(rows))
            self.refuse_nonfinite(measurements, rows)
            return to_floats(measurements)

    def remedy(self, error: BaseException) -> str:
        """What to do after a step ran out of memory: which train.accumulation fits, where that is known."""
        own = [d for d in self.mesh.devices.flat if d.process_index == jax.process_index()]
        now, lack = self.train.accumulation, shortage(error, own)
        fits = None if lack is None else self._accumulation(lack)
        if fits is not None:
            return f"set train.accumulation = {fits}, which fits (it is {now}), or {_STEP_REMEDY}"
        if lack is None:
            return f"raise train.accumulation (it is {now}), {_STEP_REMEDY}"
        return f"no train.accumulation (it is {now}) saves enough: {_STEP_REMEDY}"

    def _accumulation(self, lack: Shortage) -> int | None:
        """The least train.accumulation with which a step fits, by estimate, or None.

        What a step needs beside its state grows with the rows of a part.
        """
        now, rows = self.train.accumulation, self.train.batch_size
        rows //= self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        # With parts, a sum of float32 gradients stays beside the gradients of a part.
        held = 0 if now > 1 else _device_bytes(self.params)
        needed = lack.needed
        if lack.whole:
            state = _device_bytes(self._state) + _device_bytes(self.frozen)
            held, needed = held + state, needed - state
        for number in range(now + 1, rows + 1):
            if rows % number == 0 and _MARGIN * (held + needed * now / number) <= lack.room:
                return number
        return None

    def refuse_nonfinite(self, measurements: Measurements, rows: Rows) -> None:
        """Ends the run after train.max_nonfinite skipped steps in a row.

        Raises:
          UserError: there were that many; the batch is saved beside the checkpoints.
        """
        train, skipped = self.train, int(measurements["nonfinite_in_a_row"])
        if skipped < train.max_nonfinite:
            return
        name = f"nonfinite_step{self.num_done}_process{jax.process_index()}.npz"
        np.savez(self.directory / name, **rows)  # type: ignore[arg-type]
        self.close()
        raise UserError(
            f"train: loss or gradient was not finite for {skipped} steps in a row (step"
            f" {self.num_done}); its batch is in {self.directory / name}; lower train.learning_rate ="
            f" {train.learning_rate}, with the checkpoints of {self.directory} moved away: they are"
            " those of this one"
        )

    # -- end -----------------------------------------------------------------------------------
    def save(self, data_state: dict[str, Any], *, must: bool = True) -> None:
        """Starts saving; returns once the arrays are copied to the host.

        Args:
          data_state: JSON object of the caller's, e.g. its iteration; `restore` returns it.
          must: if True, wait for a save in progress; if False, skip this save instead.

        Raises:
          OSError: ENOSPC, the disk has no room; older checkpoints stay as they are.
        """
        assert self._checkpoints is not None, "restore comes first"
        self._checkpoints.save(self.num_done, self._state, data_state, must=must)

    def close(self) -> None:
        """Waits for pending saves; closing again does nothing."""
        if self._checkpoints is not None:
            self._checkpoints.close()
            self._checkpoints = None


def _device_bytes(tree: Any) -> int:
    """Bytes that arrays take on each device; they may be donated."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def to_floats(measurements: Measurements) -> dict[str, float]:
    """Measurements on the host."""
    return {name: float(np.asarray(value)) for name, value in measurements.items()}


def fit(
    start: Start,
    data: Data,
    train: TrainConfig,
    objective: Objective,
    *,
    directory: Path,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
    progress: Callable[[int, int], None],
) -> Any:
    """Trains on fixed examples; returns Trainer.params.

    Resumes from the newest checkpoint in `directory`, bit-exactly and whatever the mesh was: weights,
    optimizer state and position in the data come from it. A signal or maintenance notice saves and
    leaves. `log` and `progress` are called in the first process only.

    Args:
      start: model, and weights to start from.
      data: examples and sources.
      train: settings.
      objective: what is minimised; see packing.mixing_coefficients for what the sources are weighted by.
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
    trainer = Trainer(start, train, objective, directory, seed=seed)
    facts = trainer.survey(data.examples, len(data.weights))
    batches = trainer.pack(data.examples, facts.lengths, train.num_epochs, seed)
    coefficients = mixing_coefficients(
        facts.masses, list(data.weights.values()), batches.num_steps / train.num_epochs
    ).tolist()
    data_state = trainer.restore(
        dict(zip(data.weights, coefficients, strict=True)),
        batches.num_steps,
        {"data": facts.digest, "data order": seed, "weights of the sources": coefficients},
    )
    iterator: Any = iter(batches)
    if data_state is not None:
        iterator.set_state(data_state)
    try:
        with needed_for("training", trainer.remedy), Preemption(train.notice_url) as preemption:
            _steps(trainer, iterator, batches.num_steps, preemption, log, progress)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise UserError(
            f"train: a step failed ({str(error).splitlines()[0]}), mostly because another process of"
            " this run has died or cannot be reached; start all of them again to go on from the last"
            " checkpoint; if the same words come again, the cause is in them"
        ) from error
    trainer.close()
    return trainer.params


def _steps(
    trainer: Trainer,
    iterator: Any,
    total: int,
    preemption: Preemption,
    log: Callable[[int, dict[str, float]], None],
    progress: Callable[[int, int], None],
) -> None:
    """Steps to the end; the next batch is read while the devices compute."""
    train, first = trainer.train, jax.process_index() == 0

    def next_batch() -> tuple[Rows, dict[str, jax.Array]] | None:
        rows = next(iterator, None)
        return None if rows is None else (rows, trainer.put(rows))

    if first:
        progress(trainer.num_done, total)
    following = next_batch()
    while trainer.num_done < total and following is not None:
        rows, batch = following
        measurements = trainer.launch(batch)
        step = trainer.num_done
        data_state = iterator.get_state()
        following = next_batch()
        last = step == total
        skipped = int(measurements["nonfinite_in_a_row"])
        if first and (skipped or step % train.log_every == 0 or last):
            log(step, to_floats(measurements))
        trainer.refuse_nonfinite(measurements, rows)
        if first:
            progress(step, total)
        asked = preemption.asked()
        if step % train.checkpoint_every == 0 or last or asked:
            trainer.save(data_state, must=last or asked)
        if asked:
            trainer.close()
            logging.getLogger("leafe_jax").info(
                "train: told to stop; step %d is saved; the same command goes on from there", step
            )
            preemption.leaving()
            raise SystemExit(preemption.code)
