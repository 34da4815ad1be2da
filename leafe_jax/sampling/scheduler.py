"""Which requests run next, and with which pages: the host's half of the sampler.

Requests wait in the order of arrival. Between two bursts of decoding the scheduler gives every running row
the pages that its next tokens may need, admits what waits, and sorts the rows into those that can decode
and those whose prompts come first. When pages run out, the youngest row gives its place up; what it has
computed stays in the tree as long as there is room, and the rest is computed again later. Nothing here
looks at a clock, so the same requests take the same course.
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
      asked: None for a trunk, a prefix that several waiting requests have in common and that is
        computed once for all of them.
      prompt: length of session and prompt.
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
        """What a row was asked for; a trunk has none."""
        assert self.asked is not None
        return self.asked

    @property
    def end(self) -> int:
        """Positions it may come to have; max_len is the turn program's to watch."""
        return self.prompt + (self.asked.max_new_tokens if self.asked else 0)


class Scheduler:
    """Sessions, requests and pages; knows no array.

    Args:
      config: the model.
      settings: sizes, and what requests may ask for.
      shapes: what the device's programs can take.

    Attributes:
      tree: which tokens' keys and values lie in which page.
      num_preemptions: how often a row has given its place up.
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
        """Forgets what is cached; programs and pool stay. Nothing may be in flight.

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
            job = Job(ids, Match((), 0), {}, 0, ticket, request, len(ids))
            heapq.heappush(self._waiting, job)
        return ticket

    def _refusal(self, request: Request, ids: list[int]) -> str:
        """What is wrong with a request, or ""."""
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
        """Results that are there already."""
        done, self._done = self._done, []
        return done

    @property
    def num_queued(self) -> int:
        """Requests that have not ended."""
        return len(self._busy)

    # -- pages ---------------------------------------------------------------------------------
    def _reach(self, job: Job) -> int:
        """Positions that the next burst may write."""
        burst = self.shapes.burst if job.asked else 0
        return min(len(job.ids) + burst, job.end, self.max_len)

    def _take(self, job: Job) -> bool:
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

    def _preempt(self, job: Job) -> None:
        self.num_preemptions += 1
        self._running.remove(job)
        if job.asked is None:
            self._charged[job.ticket] -= job.rest - 1  # what it was to compute and has not
        else:
            heapq.heappush(self._waiting, job)
        self._leave(job)

    def _leave(self, job: Job) -> None:
        """The tree takes over what has been computed; the rest of the pages are free again."""
        self.tree.unpin(job.match.nodes)
        self.tree.insert(job.ids[: job.done], job.pages)
        job.pages, job.match, job.done = {}, Match((), 0), 0

    def _admit_waiting(self) -> None:
        """Admits in the order of arrival, as far as there are places and pages."""
        room = self.num_slots - sum(job.asked is not None for job in self._running)
        if not room or not self._waiting:
            return
        candidates = heapq.nsmallest(room, self._waiting)
        self._plant_trunks(candidates)
        trunks = [job.ids for job in self._running if job.asked is None]
        for job in candidates:
            # Its prefix is being computed; younger ones may well go ahead meanwhile.
            if any(job.ids[: len(t) - 1] == t[:-1] for t in trunks):
                continue
            if not self._admit(job):
                return
            self._waiting.remove(job)
        heapq.heapify(self._waiting)

    def _admit(self, job: Job) -> bool:
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

    def _plant_trunks(self, candidates: list[Job]) -> None:
        """Starts computing what several candidates have in common and nobody has computed.

        One at a time on each path: a request that shares the path finds it computed in the next round.
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
            # The token after it is never computed.
            trunk = Job([*ids, 0], Match((), 0), {}, 0, job.ticket, None, len(ids))
            if not self._admit_trunk(trunk, job):
                return  # no room: every request computes its own
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
        """(rows that can decode, rows whose prompts come first), each oldest first."""
        jobs = sorted(self._running)
        behind = [j for j in jobs if j.asked is None or j.rest > self.settings.turn_chunk]
        ready = [j for j in jobs if j.asked is not None and j.rest <= self.settings.turn_chunk]
        fresh = [j for j in ready if j.rest > 1]
        # A prompt that rides along makes every row as wide as it: worth it when most have one.
        if 1 in self.shapes.turns and 2 * len(fresh) < len(ready):
            behind = sorted([*behind, *fresh])
            ready = [j for j in ready if j.rest == 1]
        return ready, behind

    def _take_in(
        self, job: Job, new: list[int], logprobs: list[float], sampled_logprobs: list[float]
    ) -> None:
        """What a burst sampled for a row; it leaves if it has stopped."""
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
