"""Log-probabilities of examples' tokens under a model that is not trained just now: the reference of a KL
term, a teacher, or the trainer before its first step on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from leafe_jax.models.attention import segment_attend
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.sharding import BATCH
from leafe_jax.training.forward import hidden_states
from leafe_jax.training.losses import token_nll
from leafe_jax.training.packing import Batches, Plan, best_fit
from leafe_jax.training.settings import TrainConfig
from leafe_jax.training.start import own_rows
from leafe_jax.training.step import StepOptions
from leafe_jax.types import Example


class Scorer:
    """Scores examples in batches of one shape, so that it compiles once.

    Args:
      config: the model.
      train: seq_len and batch_size.
      options: how and where to compute.
    """

    def __init__(self, config: ModelConfig, train: TrainConfig, options: StepOptions):
        self._train, self._rows = train, NamedSharding(options.mesh, BATCH)

        def score(params: Any, batch: dict[str, Array]) -> Array:
            params = jax.tree.map(lambda x: x.astype(options.compute_dtype), params)
            attend = segment_attend(batch["segment_ids"], options.attention, options.mesh)
            hidden = hidden_states(
                config, params, batch["tokens"], batch["positions"], attend,
                remat="none", scan_layers=options.scan_layers, mesh=options.mesh,
            )  # fmt: skip
            targets, chunk = batch["targets"], options.loss_chunk
            return -token_nll(config, params, hidden, targets, chunk, options.mesh)

        self._score = jax.jit(score, out_shardings=NamedSharding(options.mesh, P()))

    def __call__(self, params: Any, examples: Sequence[Example]) -> list[np.ndarray]:
        """Log-probability of each token given those before it, float32 [n] for each example.

        The first token's is 0. In a run of several processes all call it with the same examples.

        Args:
          params: of the model, on the mesh.
          examples: none longer than train.seq_len + 1.
        """
        train = self._train
        rows = best_fit([len(e.ids) - 1 for e in examples], train.seq_len)
        filled = [tuple(row) for row in rows] + [()] * (-len(rows) % train.batch_size)
        plan = Plan(tuple(filled), train.batch_size, 0.0)
        own = own_rows(self._rows, (train.batch_size, train.seq_len))
        found = [np.zeros(len(e.ids), np.float32) for e in examples]
        for step, batch in enumerate(Batches(examples, plan, train.seq_len, own)):
            shape = (train.batch_size, train.seq_len)
            placed = {
                name: jax.make_array_from_process_local_data(self._rows, batch[name], shape)
                for name in ("tokens", "positions", "segment_ids", "targets")
            }
            scores = np.asarray(self._score(params, placed))
            first = step * train.batch_size
            for values, indices in zip(scores, filled[first:], strict=False):
                begin = 0
                for index in indices:
                    count = len(examples[index].ids) - 1
                    found[index][1:] = values[begin : begin + count]
                    begin += count
        return found
