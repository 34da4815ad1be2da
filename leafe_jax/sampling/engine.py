"""The sampler: token sessions that fork and rewind over one pool of KV pages, batched continuously.

A session is a list of token ids and nothing else. What has been computed lies in pages that a prefix tree
over token ids finds again (`leafe_jax.sampling.prefix_tree`): forks, branches from an earlier step, the
reflection call, samples of one task and prompts that are rebuilt every step share what they have in
common, whoever computed it. What is not there is computed, so running out of pages costs time, never
correctness. The engine knows token ids only; text is `leafe_jax.agent.chat`'s and
`leafe_jax.sampling.lm_policy`'s business.

Requests enter at any time (`submit`) and leave when they have stopped (`collect`). Between two bursts of
decoding the scheduler gives every running row the pages that its next tokens may need, admits what waits
in the order of arrival, and computes prompts chunk by chunk. When pages run out, the youngest row gives its
place up; what it has computed stays in the tree as long as there is room, and the rest is computed again
later. Nothing here looks at a clock, so the same requests take the same course.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling import draw as methods
from leafe_jax.sampling.gathered import Gathered
from leafe_jax.sampling.paged import Paged
from leafe_jax.sampling.prefix_tree import Match, PageTree, common_length
from leafe_jax.sampling.programs import Burst, Programs, Statics
from leafe_jax.sampling.requests import Generation, Request, Session, refusal, strange_token
from leafe_jax.sampling.shapes import Layout, Row, Shapes
from leafe_jax.types import Sampling

_BURST = 64  # most tokens of a burst
_MIN_BURST = 16  # steps before a burst leaves rows behind: to regroup costs about as much
_LEAVE = 4  # then it ends when one row in so many has stopped
_PREFILLS = 8  # chunks between two bursts while rows wait to go on decoding


@dataclasses.dataclass(eq=False)
class _Job(Row):
    """A request, waiting or in flight.

    Attributes:
      ticket: order of arrival.
      request: None for a trunk, a prefix that several waiting requests have in common and that is
        computed once for all of them.
      prompt: length of session and prompt.
      logprobs, sampled_logprobs: of the tokens sampled so far.
      prefilled, cached: see Generation.
    """

    ticket: int = 0
    request: Request | None = None
    prompt: int = 0
    logprobs: list[float] = dataclasses.field(default_factory=list)
    sampled_logprobs: list[float] = dataclasses.field(default_factory=list)
    prefilled: int = 0
    cached: int = 0

    def __lt__(self, other: _Job) -> bool:
        return self.ticket < other.ticket

    @property
    def end(self) -> int:
        """Positions it may come to have; max_len is the turn program's to watch."""
        return self.prompt + (self.request.max_new_tokens if self.request else 0)


def check_sizes(config: ModelConfig, *, max_len: int, **sizes: int) -> None:
    """Refuses what no engine of this model can have; arguments as of `Engine`.

    Raises:
      UserError: a size is out of range.
    """
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"sampler.{name} = {value}: must be at least 1")
    least = sizes["turn_chunk"] + sizes["max_new_tokens"]
    if not least <= max_len <= config.max_position_embeddings:
        raise UserError(
            f"sampler.max_len = {max_len}: must be at least turn_chunk + max_new_tokens = {least} and"
            f" at most the model's {config.max_position_embeddings} positions"
        )


class Engine:
    """Sessions over one pool of pages.

    Args:
      config, params: the model; the dtype of the parameters is the compute dtype.
      num_slots: sequences computed together.
      max_len: most tokens a session can have.
      turn_chunk: prompt tokens handled in the same program as decoding.
      prefill_chunk: prompt tokens a prefill call handles.
      max_new_tokens: most tokens a request may ask for.
      stop_ids: token ids that end a reply, all of the model.
      page_size: positions of a page.
      num_pages: of the pool; 0 makes room for num_slots sessions of max_len tokens.
      attention: "gather" or "paged" (see leafe_jax.sampling.gathered); "auto" is "paged" on TPU.
      options: requests may use top-k, top-p, min-p, repetition penalty and logit bias.
      mesh: from training.sharding.make_mesh, when the model is divided along its "tensor" axis.

    Raises:
      UserError: sizes out of range.
    """

    def __init__(
        self,
        config: ModelConfig,
        params,
        *,
        num_slots: int,
        max_len: int,
        turn_chunk: int,
        prefill_chunk: int,
        max_new_tokens: int,
        stop_ids: tuple[int, ...],
        page_size: int = 16,
        num_pages: int = 0,
        attention: str = "auto",
        options: bool = False,
        mesh: Mesh | None = None,
    ):
        check_sizes(
            config, num_slots=num_slots, max_len=max_len, turn_chunk=turn_chunk,
            prefill_chunk=prefill_chunk, max_new_tokens=max_new_tokens, page_size=page_size,
        )  # fmt: skip
        # One more than the tokens need: a page that is read in part is written anew.
        num_pages = num_pages or num_slots * (-(-max_len // page_size) + 1)
        if num_pages < 2:
            raise UserError(f"sampler.num_pages = {num_pages}: must be at least 2, or 0")
        self.config, self.params = config, params
        self.num_slots, self.max_len, self.max_new_tokens = num_slots, max_len, max_new_tokens
        self.turn_chunk, self.prefill_chunk, self.stop_ids = turn_chunk, prefill_chunk, stop_ids
        self.options = options
        storage = make_storage(attention, config, mesh)
        self.shapes, self.programs, pool = plan_programs(
            config, params, storage, num_slots=num_slots, max_len=max_len, turn_chunk=turn_chunk,
            prefill_chunk=prefill_chunk, max_new_tokens=max_new_tokens, stop_ids=stop_ids,
            page_size=page_size, num_pages=num_pages, options=options,
        )  # fmt: skip
        self._pool = jax.tree.map(
            lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), pool
        )
        self._next = 0
        self.num_preemptions = 0
        self.tree = PageTree(num_pages, page_size)
        self._waiting: list[_Job] = []  # a heap, oldest first
        self._running: list[_Job] = []
        self._charged: dict[int, int] = {}  # ticket -> trunk positions computed on its account
        self._done: list[tuple[int, Generation]] = []
        self._flight: list[tuple] = []  # turns in flight
        self._busy: set[int] = set()  # ids of sessions with a request in flight

    def clear(self) -> None:
        """Forgets what is cached; programs and pool stay. Nothing may be in flight.

        Raises:
          RuntimeError: requests are in flight.
        """
        if self._busy:
            raise RuntimeError(f"{len(self._busy)} requests are in flight")
        self.tree = PageTree(self.tree.num_pages, self.tree.page_size)
        self._charged.clear()

    # -- sessions ------------------------------------------------------------------------------
    def start(self) -> Session:
        """An empty session."""
        return Session()

    def fork(self, session: Session, length: int | None = None) -> Session:
        """A new session with the first `length` ids of `session`; shares no state with it."""
        length = len(session) if length is None else length
        if not 0 <= length <= len(session):
            raise ValueError(f"fork length {length}: the session has {len(session)} tokens")
        return Session(ids=session.ids[:length])

    def rewind(self, session: Session, length: int) -> None:
        """Forgets everything after the first `length` ids."""
        if not 0 <= length <= len(session):
            raise ValueError(f"rewind length {length}: the session has {len(session)} tokens")
        del session.ids[length:]

    def append(self, session: Session, ids: Sequence[int]) -> None:
        """Appends known ids without sampling; they are computed when the session is next used.

        Raises:
          UserError: an id that the model does not have.
        """
        new = list(ids)
        if error := strange_token(new, self.config.vocab_size):
            raise UserError(f"sampler: {error}")
        session.ids.extend(new)

    def release(self, session: Session) -> None:
        """Ends a session; its pages stay until room is needed."""
        session.ids.clear()

    # -- requests ------------------------------------------------------------------------------
    def submit(self, request: Request) -> int:
        """Queues a request and returns its ticket; what is wrong with it comes back as its result."""
        ticket = self._next
        self._next += 1
        ids = request.session.ids + list(request.new_ids)
        error = self._refusal(request, ids)
        if error:
            self._done.append((ticket, Generation(error=error)))
        elif len(ids) >= self.max_len:
            self._done.append((ticket, Generation(finish_reason="context")))
        else:
            self._busy.add(id(request.session))
            job = _Job(ids, Match((), 0), {}, 0, ticket, request, len(ids))
            heapq.heappush(self._waiting, job)
        return ticket

    def _refusal(self, request: Request, ids: list[int]) -> str:
        """What is wrong with a request, or ""."""
        if id(request.session) in self._busy:
            return "the session has a request in flight already"
        limits = (self.max_new_tokens, self.config.vocab_size, self.options)
        if error := refusal(request, ids, *limits):
            return error
        end = min(len(ids) + request.max_new_tokens, self.max_len)
        pages = -(-end // self.tree.page_size) + 1
        if pages > self.tree.num_pages and len(ids) < self.max_len:
            return f"{end} tokens need {pages} pages: sampler.num_pages = {self.tree.num_pages}"
        return ""

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Serves requests and returns their results in the same order; nothing else may be in flight."""
        tickets = [self.submit(request) for request in requests]
        results: dict[int, Generation] = {}
        while len(results) < len(tickets):
            results.update(self.collect())
        return [results[ticket] for ticket in tickets]

    def collect(self) -> list[tuple[int, Generation]]:
        """(ticket, result) of requests that have ended, at least one; [] when nothing is queued."""
        while not self._done:
            self.launch()
            if not self._flight:
                break
            self.land()
        return self.take_done()

    def take_done(self) -> list[tuple[int, Generation]]:
        """Results that are there already."""
        done, self._done = self._done, []
        return done

    @property
    def num_queued(self) -> int:
        """Requests that have not ended."""
        return len(self._busy)

    def launch(self) -> None:
        """Starts the next burst without waiting for it, unless one is in flight already."""
        prefills = 0
        while not self._flight and (self._running or self._waiting):
            self._grow()
            self._admit_waiting()
            ready, behind = self._sort()
            if behind and (not ready or prefills < _PREFILLS):
                self._prefill(behind)
                prefills += 1
            else:
                self._start_burst(ready)

    # -- pages ---------------------------------------------------------------------------------
    def _reach(self, job: _Job) -> int:
        """Positions that the next burst may write."""
        burst = self.shapes.burst if job.request else 0
        return min(len(job.ids) + burst, job.end, self.max_len)

    def _take(self, job: _Job) -> bool:
        """Pages for the next burst; False when there are not enough."""
        size = self.tree.page_size
        first = max(job.match.length, job.done - 1) // size  # what lies before has its pages
        missing = [i for i in range(first, -(-self._reach(job) // size)) if i not in job.pages]
        taken = self.tree.take(len(missing))
        if taken is None:
            return False
        job.pages.update(zip(missing, taken, strict=True))
        return True

    def _grow(self) -> None:
        """Pages for every running row, oldest first; the youngest give way."""
        for job in sorted(self._running):
            while job in self._running and not self._take(job):
                self._preempt(max(self._running))

    def _preempt(self, job: _Job) -> None:
        self.num_preemptions += 1
        self._running.remove(job)
        if job.request is None:
            self._charged[job.ticket] -= job.rest - 1  # what it was to compute and has not
        else:
            heapq.heappush(self._waiting, job)
        self._leave(job)

    def _leave(self, job: _Job) -> None:
        """The tree takes over what has been computed; the rest of the pages are free again."""
        self.tree.unpin(job.match.nodes)
        self.tree.insert(job.ids[: job.done], job.pages)
        job.pages, job.match, job.done = {}, Match((), 0), 0

    def _admit_waiting(self) -> None:
        """Admits in the order of arrival, as far as there are places and pages."""
        room = self.num_slots - sum(job.request is not None for job in self._running)
        if not room or not self._waiting:
            return
        candidates = heapq.nsmallest(room, self._waiting)
        self._plant_trunks(candidates)
        trunks = [job.ids for job in self._running if job.request is None]
        for job in candidates:
            # Its prefix is being computed; younger ones may well go ahead meanwhile.
            if any(job.ids[: len(t) - 1] == t[:-1] for t in trunks):
                continue
            if not self._admit(job):
                return
            self._waiting.remove(job)
        heapq.heapify(self._waiting)

    def _admit(self, job: _Job) -> bool:
        # The last token is always computed anew, since its hidden state is needed to sample.
        match = self.tree.match(job.ids[:-1])
        self.tree.pin(match.nodes)
        job.match, job.done = match, match.length
        if not self._take(job):
            self.tree.unpin(match.nodes)
            job.match, job.done = Match((), 0), 0
            return False
        self._running.append(job)
        charged = self._charged.pop(job.ticket, 0)
        job.prefilled += len(job.ids) - match.length + charged
        if len(job.ids) == job.prompt:  # not again after a preemption
            job.cached = max(match.length - charged, 0)
        return True

    def _plant_trunks(self, candidates: list[_Job]) -> None:
        """Starts computing what several candidates have in common and nobody has computed.

        One at a time on each path: what hangs on another finds it computed in the next round.
        """
        size = self.tree.page_size
        cached = [self.tree.match(job.ids[:-1]).length for job in candidates]
        order = sorted(range(len(candidates)), key=lambda i: candidates[i].ids)
        shared: dict[tuple[int, ...], _Job] = {}
        for left, right in zip(order, order[1:], strict=False):
            a, b = candidates[left].ids, candidates[right].ids
            length = min(common_length(a, b), len(a) - 1, len(b) - 1)
            length -= length % size
            if length > max(cached[left], cached[right]):
                shared.setdefault(tuple(a[:length]), candidates[left])
        growing = [tuple(j.ids[:-1]) for j in self._running if j.request is None]
        for ids, job in sorted(shared.items(), key=lambda item: len(item[0])):
            if any(ids[: len(other)] == other or other[: len(ids)] == ids for other in growing):
                continue
            # The token after it is never computed.
            trunk = _Job([*ids, 0], Match((), 0), {}, 0, job.ticket, None, len(ids))
            if not self._admit_trunk(trunk, job):
                return  # no room: every request computes its own
            growing.append(ids)

    def _admit_trunk(self, trunk: _Job, job: _Job) -> bool:
        match = self.tree.match(trunk.ids[:-1])
        self.tree.pin(match.nodes)
        trunk.match, trunk.done = match, match.length
        if not self._take(trunk):
            self.tree.unpin(match.nodes)
            return False
        self._running.append(trunk)
        computed = len(trunk.ids) - 1 - match.length
        self._charged[job.ticket] = self._charged.get(job.ticket, 0) + computed
        return True

    # -- device --------------------------------------------------------------------------------
    def _sort(self) -> tuple[list[_Job], list[_Job]]:
        """(rows that can decode, rows whose prompts come first), each oldest first."""
        jobs = sorted(self._running)
        behind = [j for j in jobs if j.request is None or j.rest > self.turn_chunk]
        ready = [j for j in jobs if j.request is not None and j.rest <= self.turn_chunk]
        fresh = [j for j in ready if j.rest > 1]
        # A prompt that rides along makes every row as wide as it: worth it when most have one.
        if 1 in self.shapes.turns and 2 * len(fresh) < len(ready):
            behind = sorted([*behind, *fresh])
            ready = [j for j in ready if j.rest == 1]
        return ready, behind

    def _prefill(self, jobs: list[_Job]) -> None:
        """One chunk of each prompt; finished trunks leave."""
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
            if job.request is None and job.rest == 1:
                self._running.remove(job)
                self._leave(job)

    def _start_burst(self, jobs: list[_Job]) -> None:
        """Dispatches turns; `land` takes their results."""
        chunk = 1 if all(j.rest == 1 for j in jobs) else self.turn_chunk
        chunk = chunk if chunk in self.shapes.turns else self.turn_chunk
        burst = self.shapes.burst
        ends = [max(j.done + chunk, len(j.ids) + min(burst, j.end - len(j.ids))) for j in jobs]
        ends = [min(end, self.max_len + chunk) for end in ends]
        layouts = self.shapes.lay_out_turn(jobs, ends, chunk)
        self._flight = [(layout, jobs, self._dispatch(layout, jobs)) for layout in layouts]

    def _dispatch(self, layout: Layout, jobs: list[_Job]) -> list:
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
        options = methods.make_options(samplings, contexts, self.config.vocab_size, self.options)
        pages = self.shapes.tables(layout, jobs, chunk + self.shapes.burst)
        leave = np.int32(max(1, len(layout.numbers) // _LEAVE))
        self._pool, *results = self.programs.get(layout.program)(
            self.params, self._pool, pages,
            Burst(tokens, num_tokens, budget, options, seeds, leave),
        )  # fmt: skip
        return results

    def land(self) -> None:
        """Waits for the burst in flight, if any; rows that have stopped leave."""
        flights, self._flight = self._flight, []
        for layout, jobs, results in flights:
            ids, logprobs, count = jax.device_get(results)
            for number, line in zip(layout.numbers, layout.lines, strict=True):
                n = count[line]
                self._take_in(jobs[number], ids[line, :n].tolist(), logprobs[:, line, :n].tolist())

    def _take_in(self, job: _Job, new: list[int], logprobs: list[list[float]]) -> None:
        """What a burst sampled for a row; it leaves if it has stopped."""
        # The last sampled token has not been through the model yet.
        if not np.isfinite(logprobs[0]).all():
            raise UserError(
                "sampler: the model's log-probabilities are not finite: its weights are damaged, or"
                f" too large for their dtype ({jax.tree.leaves(self.params)[0].dtype})"
            )
        job.done = len(job.ids) + len(new) - 1
        job.ids = job.ids + new
        job.logprobs += logprobs[0]
        job.sampled_logprobs += logprobs[1]
        reason = self._reason(job)
        if reason:
            self._running.remove(job)
            self._finish(job, reason)

    def _reason(self, job: _Job) -> str:
        """Why a row has stopped, or "" if it goes on; cuts off what lies behind a stop."""
        new = job.ids[job.prompt :]
        kept = job.request.stop(new) if job.request.stop is not None else None
        extra = job.request.sampling.stop_ids
        first = next((i + 1 for i, token in enumerate(new) if token in extra), None)
        kept = min((n for n in (kept, first) if n is not None), default=None)
        if kept is not None:
            del job.ids[job.prompt + kept :], job.logprobs[kept:], job.sampled_logprobs[kept:]
            job.done = min(job.done, len(job.ids))
            return "stop"
        if new[-1] in self.stop_ids:
            return "stop"
        if len(new) == job.request.max_new_tokens:
            return "length"
        return "context" if len(job.ids) >= self.max_len else ""

    def _finish(self, job: _Job, reason: str) -> None:
        session = job.request.session
        session.ids[:] = job.ids
        self._busy.discard(id(session))
        result = Generation(
            tuple(job.ids[job.prompt :]), tuple(job.logprobs), tuple(job.sampled_logprobs), reason,
            prefilled=job.prefilled, cached=job.cached,
        )  # fmt: skip
        self._leave(job)
        self._done.append((job.ticket, result))


def plan_programs(
    config: ModelConfig, params, storage: Gathered | Paged, *, num_slots: int, max_len: int,
    turn_chunk: int, prefill_chunk: int, max_new_tokens: int, stop_ids: tuple[int, ...],
    page_size: int, num_pages: int, options: bool,
) -> tuple[Shapes, Programs, Any]:  # fmt: skip
    """The shapes and programs of an engine, and its pool as shapes; needs no device.

    Args:
      config, storage: the model, and how pages are read and written.
      params: arrays, or shapes with shardings.
      others: see Engine.
    """
    burst = min(max_new_tokens, _BURST)
    statics = Statics(config, storage, page_size, burst, _MIN_BURST, stop_ids, max_len, options)
    shapes = Shapes(
        num_rows=num_slots, max_len=max_len, page_size=page_size, spare=num_pages,
        prefill_chunk=prefill_chunk, turn_chunk=turn_chunk, burst=burst,
        goes_on=max_new_tokens > _MIN_BURST, gathered=isinstance(storage, Gathered),
        **_costs(config, params),
    )  # fmt: skip
    dtype = jax.tree.leaves(params)[0].dtype
    # The last page takes what nobody wants.
    pool = jax.eval_shape(lambda: storage.empty(config, num_pages + 1, page_size, dtype))
    if storage.mesh is not None:
        where = NamedSharding(storage.mesh, storage.spec)
        pool = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), pool)
    return shapes, Programs(statics, params, pool, shapes.listed()), pool


def _costs(config: ModelConfig, params) -> dict[str, float]:
    """Shapes' weight_positions, by bytes, and token_positions, by multiplications.

    A position counts twice: attention is further from the machine's speed than the projections are.
    """
    size = sum(x.size for x in jax.tree.leaves(params))
    position = 2 * config.num_layers * config.head_dim
    return {
        "weight_positions": size / (2 * position * config.num_kv_heads),
        "token_positions": size / (2 * position * config.num_heads),
    }


def make_storage(attention: str, config: ModelConfig, mesh: Mesh | None) -> Gathered | Paged:
    """How pages are read and written.

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
