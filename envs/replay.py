"""Environments whose state is in a simulator: a state is (task, actions so far), restored by replay.

Such a simulator (ScienceWorld's JVM, TextWorld's C library) can neither be copied nor rewound. So a
state is restored by reset + replay (arXiv 2603.16843, Stage 1). That is sound only if the simulator
is deterministic. Therefore a state keeps its observations, and each replayed observation is compared
with them. A difference is an error, never a silently wrong branch.

An adapter consists of a `Simulator`, which lives in a worker process, and a subclass of
`ReplayEnvironment`. A worker has seats, each with a live simulator. The pool knows the
(task, actions) of each seat. A step from there needs no replay. A branch goes to the seat with the
longest common prefix. Workers are fresh interpreters: forking a process that has initialised JAX
deadlocks.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs import replies
from envs.base import EnvDataError, Environment, Options, State, StepResult
from envs.workers import START_SECONDS, Reply, Seat, Worker, WorkerDied

_ATTEMPTS = 3  # tries of one request, each in a new worker, before the run ends
_SHOWN = 600  # characters of each text in the mismatch error


@dataclasses.dataclass(frozen=True)
class ReplayState(State):
    """A state as the actions that led to it.

    Attributes:
      actions: actions played since the reset.
      observations: the first observation and one per action. They are texts, not digests, so that
        a mismatch can show both sides. States of one episode share the strings.
      score: points so far.
    """

    actions: tuple[str, ...] = ()
    observations: tuple[str, ...] = ()
    score: float = 0.0


def _stop_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().stop()


@dataclasses.dataclass(frozen=True)
class ReplayOptions(Options):
    """Options of every adapter; a subclass adds its own.

    Attributes:
      num_workers: worker processes.
      episodes_per_worker: live simulators per worker. Episodes that share a simulator are replayed
        at every turn, so num_workers * episodes_per_worker should be the number of episodes
        played together.
      timeout: seconds for one reset or step; then the worker is replaced.
    """

    num_workers: int = 2
    episodes_per_worker: int = 8
    timeout: float = 60.0

    def check(self) -> None:
        for option in ("num_workers", "episodes_per_worker"):
            self.require(option, getattr(self, option) >= 1, "an integer of at least 1")
        self.require("timeout", self.timeout > 0, "seconds above 0")


class ReplayEnvironment(Environment):
    """Base of adapters. A subclass names its simulator in `factory` and writes the task lists.

    Attributes:
      factory: "module:class" of the Simulator, imported in the worker.
    """

    factory: str = ""
    Options = ReplayOptions
    has_workers = True
    replays = True

    def __init__(self, horizon: int | None = None, options: ReplayOptions | None = None):
        super().__init__(horizon, options)
        self._num_workers = self.options.num_workers
        self._seats = self.options.episodes_per_worker
        self._timeout = self.options.timeout
        self._simulator = dict(self.simulator_options())
        self._workers: list[Worker] = []
        self._busy: set[int] = set()  # id(worker) of those in use
        self._free = threading.Condition()
        self._clock = 0
        self._closed = False
        self._started: dict[str, tuple[ReplayState, str]] = {}  # task -> its first state
        self._answers: collections.OrderedDict = collections.OrderedDict()  # (state, question)
        # Runs at garbage collection and at exit, so that no worker is left behind.
        self._finalizer = weakref.finalize(self, _stop_all, self._workers)

    # -- hooks ---------------------------------------------------------------------------------
    def simulator_options(self) -> Mapping[str, Any]:
        """Keyword arguments of the simulator."""
        return {}

    def same(self, recorded: str, replayed: str) -> bool:
        """True if a replayed observation equals the recorded one; override it if listings shuffle."""
        return recorded == replayed

    # -- the protocol --------------------------------------------------------------------------
    def _reset(self, task_id: str) -> tuple[State, str]:
        if task_id not in self._started:
            first = ReplayState(task_id)
            reply = self._with_seat(first, lambda seat: self._begin(seat, task_id))
            reply = self._checked_reply(f"{self.name} task {task_id!r}, reset", reply)
            text = reply.observation
            state = ReplayState(task_id, observations=(text,), score=reply.score)
            self._started[task_id] = state, text
        return self._started[task_id]

    def _step(self, state: ReplayState, action: str) -> tuple[State, StepResult]:
        def play(seat: Seat) -> Reply:
            self._restore(seat, state)
            seat.live = None  # unknown until the answer arrives
            reply = seat.request(self._timeout, "step", action)
            seat.live = (state.task_id, (*state.actions, action))
            return reply

        reply = self._with_seat(state, play, action)
        where = f"{self.name} task {state.task_id!r}, step {state.num_steps + 1}"
        reply = self._checked_reply(where, reply)
        new_state = dataclasses.replace(
            state,
            actions=(*state.actions, action),
            observations=(*state.observations, reply.observation),
            score=reply.score,
        )
        return new_state, StepResult(
            reply.observation, reply.score - state.score, reply.done, reply.success, reply.info
        )

    @staticmethod
    def _checked_reply(where: str, reply: Any) -> Reply:
        """The simulator's reply with text and score checked; the base class checks the rest."""
        replies.instance(where, "reply", reply, Reply)
        observation = replies.text(where, "observation", reply.observation)
        score = replies.number(where, "score", reply.score)
        return dataclasses.replace(reply, observation=observation, score=score)

    def _step_many(self, moves: Sequence[tuple[Any, str]]) -> list[tuple[State, StepResult]]:
        """Plays in parallel: one thread per worker, for the moves that the worker is nearest to."""
        if len(moves) <= 1:
            return [self._step(state, action) for state, action in moves]
        queues: dict[int, collections.deque[int]] = collections.defaultdict(collections.deque)
        anywhere: collections.deque[int] = collections.deque()
        for number, (state, _) in enumerate(moves):
            seat = self._nearest(state, self._workers)
            continues = seat is not None and seat.cost(state) <= len(state.actions)
            (queues[id(seat.worker)] if continues else anywhere).append(number)
        results: list[Any] = [None] * len(moves)
        failures: list[BaseException] = []

        def run(own: collections.deque[int]) -> None:
            for queue in (own, anywhere):
                while queue and not failures:
                    try:
                        number = queue.popleft()
                        results[number] = self._step(*moves[number])
                    except IndexError:  # another thread took the last one
                        return
                    except BaseException as error:  # raised in the caller's thread below
                        failures.append(error)

        lists = list(queues.values())
        lists += [collections.deque()] * min(self._num_workers - len(lists), len(anywhere))
        threads = [threading.Thread(target=run, args=(own,), daemon=True) for own in lists]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results

    def ask(self, state: ReplayState, question: str) -> Any:
        """The simulator's answer about `state`; the last 256 answers are kept."""
        key = (state, question)
        if key not in self._answers:

            def answer(seat: Seat) -> Any:
                self._restore(seat, state)
                return seat.request(self._timeout, "ask", question)

            self._answers[key] = self._with_seat(state, answer)
            while len(self._answers) > 256:
                self._answers.popitem(last=False)
        return self._answers[key]

    def solve(self, state: ReplayState) -> list[str] | None:
        """The rest of the simulator's expert plan if `state` lies on it, else None."""

        def plan(seat: Seat) -> list[str] | None:
            seat.live = None
            return seat.request(START_SECONDS, "plan", state.task_id)

        actions = self._with_seat(ReplayState(state.task_id), plan)
        played = len(state.actions)
        if actions is None or tuple(actions[:played]) != state.actions:
            return None
        rest = actions[played:]
        return rest if len(rest) <= self.horizon - state.num_steps else None

    def close(self) -> None:
        """Ends all workers; further steps raise EnvDataError."""
        self._closed = True
        _stop_all(self._workers)

    # -- workers -------------------------------------------------------------------------------
    def _begin(self, seat: Seat, task_id: str) -> Reply:
        seat.live = None
        reply = seat.request(self._timeout, "reset", task_id)
        seat.live = (task_id, ())
        return reply

    def _restore(self, seat: Seat, state: ReplayState) -> None:
        """Brings the simulator to `state` and compares its replies on the way."""
        if seat.cost(state) > len(state.actions):
            self._compare(state, 0, self._begin(seat, state.task_id))
        assert seat.live is not None
        score = None
        for number in range(len(seat.live[1]), len(state.actions)):
            seat.live = None
            reply = seat.request(self._timeout, "step", state.actions[number])
            seat.live = (state.task_id, state.actions[: number + 1])
            score = self._compare(state, number + 1, reply)
        if score is not None and score != state.score:
            seat.live = None
            raise EnvDataError(
                f"{self.name} task {state.task_id!r}: replaying {len(state.actions)} actions gave"
                f" the score {score:g}, recorded was {state.score:g}; the simulator is not"
                " deterministic, so this state cannot be restored"
            )

    def _compare(self, state: ReplayState, step: int, reply: Any) -> float:
        """The score of a replayed reply; EnvDataError if it differs from the recorded one."""
        where = f"{self.name} task {state.task_id!r}, step {step}"
        reply = self._checked_reply(where, reply)
        recorded, replayed = state.observations[step], reply.observation
        if not self.same(recorded, replayed):
            action = f" (action {state.actions[step - 1]!r})" if step else " (reset)"
            raise EnvDataError(
                f"{self.name} task {state.task_id!r}, step {step}{action}: the replayed observation"
                f" {replayed[:_SHOWN]!r} is not the recorded one {recorded[:_SHOWN]!r}; the simulator"
                " is not deterministic, so this state cannot be restored"
            )
        return reply.score

    def _with_seat(
        self, state: ReplayState, use: Callable[[Seat], Any], action: str | None = None
    ) -> Any:
        """Runs `use` on the seat nearest to `state`; again in a new worker if one dies or hangs."""
        reason = ""
        for _ in range(_ATTEMPTS):
            seat = None
            try:
                seat = self._take(state)
                return use(seat)
            except EnvDataError:
                raise
            except BaseException as error:
                # Also on Ctrl-C: a late answer would be taken for that of the next request.
                if seat is not None:
                    seat.worker.kill()
                if not isinstance(error, WorkerDied):
                    raise
                reason = str(error)
            finally:
                if seat is not None:
                    self._give_back(seat.worker)
        what = "reset" if action is None else f"action {action[:80]!r}"
        raise EnvDataError(
            f"{self.name} task {state.task_id!r}, step {len(state.actions) + 1} ({what}): the"
            f" simulator broke {_ATTEMPTS} times, last: {reason}"
        )

    def _nearest(self, state: ReplayState, workers: Sequence[Worker]) -> Seat | None:
        seats = [seat for worker in workers for seat in worker.seats]
        return min(seats, key=lambda seat: (seat.cost(state), seat.used), default=None)

    def _take(self, state: ReplayState) -> Seat:
        """The seat that reaches `state` with the fewest calls; its worker is now busy."""
        with self._free:
            while True:
                if self._closed:
                    raise EnvDataError(f"{self.name}: the environment has been closed")
                for worker in [w for w in self._workers if not w.alive]:
                    if id(worker) not in self._busy:  # died while idle
                        worker.kill()
                        self._workers.remove(worker)
                seat = self._nearest(state, self._workers)
                if seat is None or seat.cost(state) > len(state.actions):
                    # No seat holds a part of this episode: take any, a new one if allowed.
                    if len(self._workers) < self._num_workers:
                        worker = Worker(self.factory, self._simulator, self._seats)
                        self._workers.append(worker)
                        seat = worker.seats[0]
                    else:
                        free = [w for w in self._workers if id(w) not in self._busy]
                        seat = self._nearest(state, free)
                if seat is not None and id(seat.worker) not in self._busy:
                    break
                self._free.wait()
            self._clock += 1
            seat.used = self._clock
            self._busy.add(id(seat.worker))
            return seat

    def _give_back(self, worker: Worker) -> None:
        with self._free:
            self._busy.discard(id(worker))
            if not worker.alive and worker in self._workers:
                self._workers.remove(worker)
            self._free.notify_all()
