"""Decides which requests run next, and with which pages. This is the sampler's work on the host.

Requests wait in order of arrival. Between two bursts the scheduler gives every running row the pages that
its next tokens may need. It admits waiting requests and separates rows that can decode from rows that still
need prefill. When pages run out, the youngest row is preempted. What it has computed stays in the tree
while there is room; the rest is computed again later. No decision depends on time, so the same requests
always take the same course.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling.prefix_tree import Match, PageTree, common_length
from leafe_jax.sampling.requests import (
    EngineConfig,
    Generation,
    Request,
    Session,
    refusal,
    strange_token,
)
from leafe_jax.sampling.shapes import Row, Shapes


@dataclasses.dataclass(eq=False)
class Job(Row):
    """A request, waiting or in flight.

    Attributes:
      ticket: order of arrival.
      asked: the request; None for a trunk, a prefix that several waiting requests share and that is
        computed once for all of them.
      prompt: length of session and prompt, in tokens.
      logprobs, sampled_logprobs: of the tokens sampled so far.
      prefilled, cached: see Generation.
    """

    ticket: int = 0
    asked: Request | None = None
    prompt: int = 0
    logprobs: list[float] = dataclasses.field(default_factory=list)
    sampled_logprobs: list[float] = dataclasses.field(default_factory=list)
    prefilled: int = 0
    cached: int = 0

    def __lt__(self, other: Job) -> bool:
        return self.ticket < other.ticket

    @property
    def request(self) -> Request:
        """The row's request; a trunk has none."""
        assert self.asked is not None
        return self.asked

    @property
    def end(self) -> int:
        """Most positions that it may reach. The turn program enforces max_len."""
        return self.prompt + (self.asked.max_new_tokens if self.asked else 0)


class Scheduler:
    """Sessions, requests and pages; it holds no arrays.

    Args:
      config: the model.
      settings: sizes, and what requests may ask for.
      shapes: what the device's programs can take.

    Attributes:
      tree: which tokens' keys and values lie in which page.
      num_preemptions: how often a row was preempted.
    """

    def __init__(self, config: ModelConfig, settings: EngineConfig, shapes: Shapes):
        self.config, self.settings, self.shapes = config, settings, shapes
        self.num_slots, self.max_len = settings.num_slots, settings.max_len
        self.num_preemptions = 0
        self.tree = PageTree(settings.pool_pages, settings.page_size)
        self._next = 0
        self._waiting: list[Job] = []  # a heap, oldest first
        self._running: list[Job] = []
        self._charged: dict[int, int] = {}  # ticket -> trunk positions computed on its account
        self._done: list[tuple[int, Generation]] = []
        self._busy: set[int] = set()  # ids of sessions with a request in flight

    def clear(self) -> None:
        """Drops everything that is cached; programs and pool stay. Nothing may be in flight.

        Raises:
          RuntimeError: requests are in flight.
        """
        self.refuse_busy()
        self.tree = PageTree(self.tree.num_pages, self.tree.page_size)
        self._charged.clear()

    def refuse_busy(self) -> None:
        """Raises RuntimeError if requests are in flight."""
        if self._busy:
            raise RuntimeError(f"{len(self._busy)} requests are in flight")

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
        """Drops everything after the first `length` ids."""
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
        """Ends a session; its pages stay cached until the room is needed."""
        session.ids.clear()

    # -- requests ------------------------------------------------------------------------------
    def submit(self, request: Request) -> int:
        """Queues a request and returns its ticket. If it is invalid, its result holds the error."""
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
            job = Job(ids, Match((), 0), {}, 0, ticket, request, len(ids))
            heapq.heappush(self._waiting, job)
        return ticket

    def _refusal(self, request: Request, ids: list[int]) -> str:
        """The error of an invalid request, or ""."""
        if id(request.session) in self._busy:
            return "the session has a request in flight already"
        if error := refusal(request, ids, self.settings, self.config.vocab_size):
            return error
        end = min(len(ids) + request.max_new_tokens, self.max_len)
        pages = -(-end // self.tree.page_size) + 1
        if pages > self.tree.num_pages and len(ids) < self.max_len:
            return f"{end} tokens need {pages} pages: sampler.num_pages = {self.tree.num_pages}"
        return ""

    def take_done(self) -> list[tuple[int, Generation]]:
        """The results that are ready; each is returned once."""
        done, self._done = self._done, []
        return done

    @property
    def num_queued(self) -> int:
        """Number of requests that have not ended."""
        return len(self._busy)

    # -- pages ---------------------------------------------------------------------------------
    def _reach(self, job: Job) -> int:
        """End of the positions that the next burst may write."""
        burst = self.shapes.burst if job.asked else 0
        return min(len(job.ids) + burst, job.end, self.max_len)

    def _take(self, job: Job) -> bool:
        """Takes the pages for the next burst; False if there are not enough."""
        size = self.tree.page_size
        first = max(job.match.length, job.done - 1) // size  # earlier positions have their pages
        missing = [i for i in range(first, -(-self._reach(job) // size)) if i not in job.pages]
        taken = self.tree.take(len(missing))
        if taken is None:
            return False
        job.pages.update(zip(missing, taken, strict=True))
        return True

    def _grow(self) -> None:
        """Takes pages for every running row, oldest first, and preempts the youngest if need be."""
        for job in sorted(self._running):
            while job in self._running and not self._take(job):
                self._preempt(max(self._running))

    def _preempt(self, job: Job) -> None:
        self.num_preemptions += 1
        self._running.remove(job)
        if job.asked is None:
            self._charged[job.ticket] -= job.rest - 1  # the part that it has not computed
        else:
            heapq.heappush(self._waiting, job)
        self._leave(job)

    def _leave(self, job: Job) -> None:
        """Gives computed pages to the tree and frees the others."""
        self.tree.unpin(job.match.nodes)
        self.tree.insert(job.ids[: job.done], job.pages)
        job.pages, job.match, job.done = {}, Match((), 0), 0

    def _admit_waiting(self) -> None:
        """Admits requests in order of arrival, while there are slots and pages."""
        room = self.num_slots - sum(job.asked is not None for job in self._running)
        if not room or not self._waiting:
            return
        candidates = heapq.nsmallest(room, self._waiting)
        self._plant_trunks(candidates)
        trunks = [job.ids for job in self._running if job.asked is None]
        for job in candidates:
            # Its prefix is being computed as a trunk. Meanwhile younger requests may be admitted.
            if any(job.ids[: len(t) - 1] == t[:-1] for t in trunks):
                continue
            if not self._admit(job):
                return
            self._waiting.remove(job)
        heapq.heapify(self._waiting)

    def _admit(self, job: Job) -> bool:
        # The last token is always computed again, because sampling needs its hidden state.
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
        if len(job.ids) == job.prompt:  # counted once, also after a preemption
            job.cached = max(match.length - charged, 0)
        return True

    def _plant_trunks(self, candidates: list[Job]) -> None:
        """Starts computing prefixes that several candidates share and that are not cached.

        Only one trunk per path is computed at a time. The next round finds its pages in the tree.
        """
        size = self.tree.page_size
        cached = [self.tree.match(job.ids[:-1]).length for job in candidates]
        order = sorted(range(len(candidates)), key=lambda i: candidates[i].ids)
        shared: dict[tuple[int, ...], Job] = {}
        for left, right in zip(order, order[1:], strict=False):
            a, b = candidates[left].ids, candidates[right].ids
            length = min(common_length(a, b), len(a) - 1, len(b) - 1)
            length -= length % size
            if length > max(cached[left], cached[right]):
                shared.setdefault(tuple(a[:length]), candidates[left])
        growing = [tuple(j.ids[:-1]) for j in self._running if j.asked is None]
        for ids, job in sorted(shared.items(), key=lambda item: len(item[0])):
            if any(ids[: len(other)] == other or other[: len(ids)] == ids for other in growing):
                continue
            # The last token is a placeholder that is never computed.
            trunk = Job([*ids, 0], Match((), 0), {}, 0, job.ticket, None, len(ids))
            if not self._admit_trunk(trunk, job):
                return  # no room: every request computes its own prefix
            growing.append(ids)

    def _admit_trunk(self, trunk: Job, job: Job) -> bool:
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

    # -- rows ----------------------------------------------------------------------------------
    def _sort(self) -> tuple[list[Job], list[Job]]:
        """(rows that can decode, rows that need prefill first), each oldest first."""
        jobs = sorted(self._running)
        behind = [j for j in jobs if j.asked is None or j.rest > self.settings.turn_chunk]
        ready = [j for j in jobs if j.asked is not None and j.rest <= self.settings.turn_chunk]
        fresh = [j for j in ready if j.rest > 1]
        # A prompt in the batch makes every row as wide as the prompt, which pays off if most have one.
        if 1 in self.shapes.turns and 2 * len(fresh) < len(ready):
            behind = sorted([*behind, *fresh])
            ready = [j for j in ready if j.rest == 1]
        return ready, behind

    def _take_in(
        self, job: Job, new: list[int], logprobs: list[float], sampled_logprobs: list[float]
    ) -> None:
        """Takes in what a burst sampled for a row, and finishes the row if it has stopped."""
        # The last sampled token has not been through the model yet.
        job.done = len(job.ids) + len(new) - 1
        job.ids = job.ids + new
        job.logprobs += logprobs
        job.sampled_logprobs += sampled_logprobs
        reason = self._reason(job)
        if reason:
            self._running.remove(job)
            self._finish(job, reason)

    def _reason(self, job: Job) -> str:
        """Why a row has stopped, or "" if it continues; cuts off tokens after a stop."""
        new = job.ids[job.prompt :]
        kept = job.request.stop(new) if job.request.stop is not None else None
        extra = job.request.sampling.stop_ids
        first = next((i + 1 for i, token in enumerate(new) if token in extra), None)
        kept = min((n for n in (kept, first) if n is not None), default=None)
        if kept is not None:
            del job.ids[job.prompt + kept :], job.logprobs[kept:], job.sampled_logprobs[kept:]
            job.done = min(job.done, len(job.ids))
            return "stop"
        if new[-1] in self.settings.stop_ids:
            return "stop"
        if len(new) == job.request.max_new_tokens:
            return "length"
        return "context" if len(job.ids) >= self.max_len else ""

    def _finish(self, job: Job, reason: str) -> None:
        session = job.request.session
        session.ids[:] = job.ids
        self._busy.discard(id(session))
        result = Generation(
            tuple(job.ids[job.prompt :]), tuple(job.logprobs), tuple(job.sampled_logprobs), reason,
            prefilled=job.prefilled, cached=job.cached,
        )  # fmt: skip
        self._leave(job)
        self._done.append((job.ticket, result))
