"""The sampler: token sessions that fork and rewind over one pool of KV pages, batched continuously.

A session is a list of token ids and nothing else. Keys and values are stored in pages, which a prefix tree
over token ids indexes (`leafe_jax.sampling.prefix_tree`). So forks, branches from an earlier step,
reflection calls, samples of one task and prompts that are rebuilt every step share their common prefixes. A
prefix that is not cached is computed again, so running out of pages costs time but never changes a result.
The engine knows token ids only; `leafe_jax.agent.chat` and `leafe_jax.sampling.lm_policy` handle text.

Requests enter at any time (`submit`) and leave when they have stopped (`collect`). `scheduler.Scheduler`
decides which run next; `Engine` lays rows out in compiled programs and dispatches them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.sharding import hand_over
from leafe_jax.runtime.memory import is_out_of_memory, shortage
from leafe_jax.sampling import draw as methods
from leafe_jax.sampling import sizes
from leafe_jax.sampling.gathered import Gathered
from leafe_jax.sampling.paged import Paged
from leafe_jax.sampling.programs import Burst, Programs, Statics
from leafe_jax.sampling.requests import EngineConfig, Generation, Request
from leafe_jax.sampling.scheduler import Job, Scheduler
from leafe_jax.sampling.shapes import Layout, Shapes
from leafe_jax.types import Sampling

_BURST = 64  # most tokens of a burst
_MIN_BURST = (
    16  # least steps before a burst ends with rows unfinished: regrouping costs about as much
)
_LEAVE = 4  # after _MIN_BURST steps, a burst ends once 1/_LEAVE of its rows have stopped
_PREFILLS = 1  # most chunks of a prompt between two bursts while rows wait to decode


class Engine(Scheduler):
    """Sessions over one pool of pages.

    Args:
      config, params: the model; the dtype of the parameters is the compute dtype.
      settings: sizes, none of them to be chosen, and what requests may ask for.
      mesh: from models.sharding.make_mesh, if the model is divided along its "tensor" axis.

    Raises:
      UserError: a size does not go with the model, or with the device's memory.
    """

    def __init__(
        self, config: ModelConfig, params: Any, settings: EngineConfig, mesh: Mesh | None = None
    ):
        check_sizes(config, settings)
        if settings.num_slots < 1:
            raise UserError("sampler.num_slots = 0: must be at least 1: make_engines chooses it")
        storage = make_storage(settings.attention, config, mesh)
        shapes, self.programs, pool = plan_programs(config, params, storage, settings)
        super().__init__(config, settings, shapes)
        self.params = params
        self._weights = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
        )
        self._tensor = 1 if mesh is None else mesh.shape["tensor"]
        devices = jax.tree.leaves(params)[0].sharding.device_set
        self._devices = sorted(devices, key=lambda device: device.id)
        self._needs = sizes.needs_of(
            config, params, settings, self._tensor, self._devices[0].platform
        )
        with self._in_memory():
            # Made on the device: the pool may be larger than the host's memory.
            self._pool = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), pool
            )
        # Turns in flight: layout, rows, and results that are still on the device.
        self._flight: list[tuple[Layout, list[Job], list[Any]]] = []

    # -- weights -------------------------------------------------------------------------------
    def swap(self, params: Any) -> None:
        """Replaces the weights, e.g. by a trainer's, on the device; nothing passes through the host.

        They are copied, cast to the sampler's dtype and resharded. They share no memory with `params`, so
        training may continue. No program of the sampler is compiled. The cache was computed with the old
        weights and is dropped. Live sessions keep their ids; they are computed again with the new weights
        when they are next used. In a run of several processes all of them call it.

        Args:
          params: the same tree as the engine's, of any dtype, on all devices of a training mesh.

        Raises:
          RuntimeError: requests are in flight.
          ValueError: these are another model's parameters.
        """
        self.drop_weights(params)
        self.load_weights(self.copies_of(params))

    def drop_weights(self, following: Any) -> None:
        """Frees weights and cache. It is the first part of `swap` and raises the same errors."""
        self.refuse_busy()
        if jax.tree.map(np.shape, following) != jax.tree.map(lambda x: x.shape, self._weights):
            raise ValueError("swap: parameters of another model: names or shapes differ")
        self.params = None  # before the others come: there need not be room for both
        self.clear()

    def copies_of(self, params: Any) -> Callable[[Any], Any]:
        """load_params(shardings) for parameters that are trained on; see sharding.hand_over."""
        dtype = jax.tree.leaves(self._weights)[0].dtype
        return hand_over(params, self._tensor, dtype, copy=True)

    def load_weights(self, load_params: Callable[[Any], Any]) -> None:
        """Takes the weights that load_params(shardings) returns. It is the last part of `swap`."""
        self.params = load_params(jax.tree.map(lambda x: x.sharding, self._weights))

    # -- requests ------------------------------------------------------------------------------
    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Serves requests and returns their results in order; nothing else may be in flight."""
        tickets = [self.submit(request) for request in requests]
        results: dict[int, Generation] = {}
        while len(results) < len(tickets):
            results.update(self.collect())
        return [results[ticket] for ticket in tickets]

    def collect(self) -> list[tuple[int, Generation]]:
        """(ticket, result) of requests that have ended: at least one, or [] if nothing is queued."""
        while not self._done:
            self.launch()
            if not self._flight:
                break
            self.land()
        return self.take_done()

    def launch(self) -> None:
        """Starts the next burst without waiting for it, unless one is in flight already.

        Raises:
          UserError: a device is out of memory; the message names a size that fits.
        """
        prefills = 0
        while not self._flight and (self._running or self._waiting):
            self._grow()
            self._admit_waiting()
            ready, behind = self._sort()
            with self._in_memory():
                if behind and (not ready or prefills < _PREFILLS):
                    self._prefill(behind)
                    prefills += 1
                else:
                    self._start_burst(ready)

    # -- device --------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _in_memory(self) -> Iterator[None]:
        """A context in which running out of device memory becomes a UserError that names what fits."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            lack = shortage(error, self._devices)
            raise sizes.explain(self._needs, error, lack) from error

    def _prefill(self, jobs: list[Job]) -> None:
        """Computes one chunk of each prompt; finished trunks leave."""
        for layout in self.shapes.lay_out_prefill(jobs):
            chunk = layout.program.tokens
            pages = self.shapes.tables(layout, jobs, chunk)
            tokens = np.zeros((layout.program.rows, chunk), np.int32)
            for number, line in zip(layout.numbers, layout.lines, strict=True):
                job = jobs[number]
                count = min(chunk, job.rest - 1)
                tokens[line, :count] = job.ids[job.done : job.done + count]
            self._pool = self.programs.get(layout.program)(self.params, self._pool, pages, tokens)
            for number in layout.numbers:
                jobs[number].done += min(chunk, jobs[number].rest - 1)
        for job in jobs:
            if job.asked is None and job.rest == 1:
                self._running.remove(job)
                self._leave(job)

    def _start_burst(self, jobs: list[Job]) -> None:
        """Dispatches turns; `land` collects their results."""
        chunk = 1 if all(j.rest == 1 for j in jobs) else self.settings.turn_chunk
        chunk = chunk if chunk in self.shapes.turns else self.settings.turn_chunk
        burst = self.shapes.burst
        ends = [max(j.done + chunk, len(j.ids) + min(burst, j.end - len(j.ids))) for j in jobs]
        ends = [min(end, self.max_len + chunk) for end in ends]
        layouts = self.shapes.lay_out_turn(jobs, ends, chunk)
        self._flight = [(layout, jobs, self._dispatch(layout, jobs)) for layout in layouts]

    def _dispatch(self, layout: Layout, jobs: list[Job]) -> list[Any]:
        """Starts one program and returns its results, which are still on the device."""
        width, chunk = layout.program.rows, layout.program.tokens
        tokens = np.zeros((width, chunk), np.int32)
        num_tokens = np.zeros(width, np.int32)
        budget = np.ones(width, np.int32)
        seeds = np.zeros(width, np.uint32)
        samplings: list[Sampling | None] = [None] * width
        contexts: list[Sequence[int]] = [()] * width
        for number, line in zip(layout.numbers, layout.lines, strict=True):
            job = jobs[number]
            tokens[line, : job.rest] = job.ids[job.done :]
            num_tokens[line] = job.rest
            budget[line] = min(job.end - len(job.ids), self.shapes.burst)
            seeds[line] = job.request.seed & 0xFFFFFFFF
            samplings[line], contexts[line] = job.request.sampling, job.ids
        vocab_size, full = self.config.vocab_size, self.settings.options
        options = methods.make_options(samplings, contexts, vocab_size, full)
        pages = self.shapes.tables(layout, jobs, chunk + self.shapes.burst)
        leave = np.int32(max(1, len(layout.numbers) // _LEAVE))
        self._pool, *results = self.programs.get(layout.program)(
            self.params, self._pool, pages,
            Burst(tokens, num_tokens, budget, options, seeds, leave),
        )  # fmt: skip
        return results

    def land(self) -> None:
        """Waits for the burst in flight, if any, and finishes rows that have stopped."""
        flights, self._flight = self._flight, []
        for layout, jobs, results in flights:
            with self._in_memory():  # programs run when the device gets to them, and fail then
                ids, logprobs, count = jax.device_get(results)
            for number, line in zip(layout.numbers, layout.lines, strict=True):
                n = count[line]
                sampled = logprobs[:, line, :n]
                self._refuse_nonfinite(sampled[0])
                self._take_in(jobs[number], ids[line, :n].tolist(), *sampled.tolist())

    def _refuse_nonfinite(self, logprobs: np.ndarray) -> None:
        if not np.isfinite(logprobs).all():
            raise UserError(
                "sampler: the model's log-probabilities are not finite: its weights are damaged, or"
                f" too large for their dtype ({jax.tree.leaves(self.params)[0].dtype})"
            )


def check_sizes(config: ModelConfig, settings: EngineConfig) -> None:
    """Refuses sizes that no engine of this model can have.

    Raises:
      UserError: a size is out of range.
    """
    least = settings.turn_chunk + settings.max_new_tokens
    if not least <= settings.max_len <= config.max_position_embeddings:
        raise UserError(
            f"sampler.max_len = {settings.max_len}: must be at least turn_chunk + max_new_tokens ="
            f" {least} and at most the model's {config.max_position_embeddings} positions"
        )


def plan_programs(
    config: ModelConfig, params: Any, storage: Gathered | Paged, settings: EngineConfig
) -> tuple[Shapes, Programs, Any]:
    """The shapes and programs of an engine, and its pool as shapes; needs no device.

    Args:
      config, storage: the model, and how pages are read and written.
      params: arrays, or shapes with shardings.
      settings: sizes.
    """
    num_pages, page_size, most = settings.pool_pages, settings.page_size, settings.max_new_tokens
    burst = min(most, _BURST)
    statics = Statics(
        config, storage, page_size, burst, _MIN_BURST, settings.stop_ids, settings.max_len,
        settings.options,
    )  # fmt: skip
    shapes = Shapes(
        num_rows=settings.num_slots, max_len=settings.max_len, page_size=page_size,
        spare=num_pages, prefill_chunk=settings.prefill_chunk, turn_chunk=settings.turn_chunk,
        burst=burst, goes_on=most > _MIN_BURST, gathered=isinstance(storage, Gathered),
        **_costs(config, params),
    )  # fmt: skip
    dtype = jax.tree.leaves(params)[0].dtype
    # The last page takes the writes of idle rows.
    pool = jax.eval_shape(lambda: storage.empty(config, num_pages + 1, page_size, dtype))
    if storage.mesh is not None:
        where = NamedSharding(storage.mesh, storage.spec)
        pool = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), pool)
    return shapes, Programs(statics, params, pool, shapes.listed()), pool


def _costs(config: ModelConfig, params: Any) -> dict[str, float]:
    """Shapes' weight_positions, estimated by bytes, and token_positions, estimated by multiplications.

    A position counts twice, because attention uses less of the machine's speed than projections do.
    """
    size = sum(x.size for x in jax.tree.leaves(params))
    position = 2 * config.num_layers * config.head_dim
    return {
        "weight_positions": size / (2 * position * config.num_kv_heads),
        "token_positions": size / (2 * position * config.num_heads),
    }


def make_storage(attention: str, config: ModelConfig, mesh: Mesh | None) -> Gathered | Paged:
    """The object that reads and writes pages.

    Args:
      attention: "auto", "gather" or "paged".
      config: the model.
      mesh: of a model that is divided along its "tensor" axis, or None.

    Raises:
      UserError: unknown value.
    """
    if attention not in ("auto", "gather", "paged"):
        raise UserError(f"sampler.attention = {attention!r}: must be auto, gather or paged")
    devices = jax.devices() if mesh is None else mesh.devices.flat
    on_tpu = next(iter(devices)).platform == "tpu"
    if attention == "paged" or (attention == "auto" and on_tpu):
        return Paged(kernel=on_tpu, mesh=mesh)
    return Gathered(mesh)
