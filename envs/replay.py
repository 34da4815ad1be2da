"""Environments whose state lives in a simulator: a state is (task, actions so far), restored by replay.

Such a simulator (ScienceWorld's JVM, TextWorld's C library) can neither be copied nor wound back, so
restoring a state means reset + replay (arXiv 2603.16843, Stage 1), and that is only sound when it
plays the same actions the same way. So a state carries the observations it was made of, every
replayed one is compared with them, and a difference is an error, never a silently wrong branch.

The author of an adapter writes a `Simulator`, which lives in a worker process, and subclasses
`ReplayEnvironment`. A worker holds one live simulator; the pool remembers which (task, actions) it
stands at. A step from there costs no replay, a branch goes to the worker that shares the longest
prefix with it. Workers are fresh interpreters: forking a process that has initialised JAX deadlocks.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import dataclasses
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from envs.base import EnvDataError, Environment, State, StepResult

_ATTEMPTS = 3  # workers that may die or hang over one request before the run is ended
_START_SECONDS = 120.0
_SHOWN = 600  # characters of each text in the mismatch error


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a simulator says after an action.

    Attributes:
      observation: feedback text.
      score: points so far; a reward is the difference of two scores.
      done: the simulator has ended the episode.
      success: goal reached.
      info: plain JSON-able extras, see StepResult.
    """

    observation: str
    score: float = 0.0
    done: bool = False
    success: bool = False
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Simulator(abc.ABC):
    """One live simulator inside a worker process. What it raises ends the worker, EnvDataError excepted."""

    @abc.abstractmethod
    def reset(self, task_id: str) -> Reply:
        """Starts a task; the reply has its first observation and the score it begins with."""

    @abc.abstractmethod
    def step(self, action: str) -> Reply:
        """Plays an action; any string is one."""

    @abc.abstractmethod
    def ask(self, question: str) -> Any:
        """Answers about the current state without changing it, e.g. "actions"; picklable."""

    @abc.abstractmethod
    def plan(self, task_id: str) -> list[str] | None:
        """An expert's actions from the task's start; may leave the simulator anywhere."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends what the simulator started."""


@dataclasses.dataclass(frozen=True)
class ReplayState(State):
    """A state by what led to it.

    Attributes:
      actions: actions played since the reset.
      observations: the first observation and one per action. They are kept as texts and not as
        digests, so that a mismatch can show both sides; states of one episode share the strings.
      score: points so far.
    """

    actions: tuple[str, ...] = ()
    observations: tuple[str, ...] = ()
    score: float = 0.0


class WorkerDied(Exception):
    """A worker ended, broke or did not answer in time; its episode is replayed in a new one."""


class _Worker:
    """The parent's side of one worker process.

    Attributes:
      live: (task id, actions) its simulator stands at; None: unknown, a reset is needed.
      used: clock value of the last use, to take the least recently used one.
    """

    def __init__(self, factory: str, options: Mapping[str, Any]):
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(p for p in sys.path if p)
        # No `multiprocessing` spawn: it would import the caller's main module (and JAX) again. A new
        # session, so that Ctrl-C does not reach the worker and its whole process group can be ended.
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import envs.replay as r, sys; r._serve(int(sys.argv[1]))",
             str(theirs.fileno())],
            pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._connection = Connection(ours.detach())
        self.live: tuple[str, tuple[str, ...]] | None = None
        self.used = 0
        try:
            self.request(_START_SECONDS, "start", factory, dict(options))
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, seconds: float, *message: Any) -> Any:
        """Sends one request and waits for its answer.

        Raises:
          WorkerDied: no answer within `seconds`, or the worker broke.
          EnvDataError: the simulator refused the request.
        """
        try:
            self._connection.send(message)
            if not self._connection.poll(seconds):
                raise WorkerDied(f"no answer to {message[0]!r} within {seconds:g} s")
            kind, answer = self._connection.recv()
        except (OSError, EOFError) as error:
            raise WorkerDied(f"the worker ended ({error or type(error).__name__})") from None
        if kind == "refused":
            raise EnvDataError(answer)
        if kind == "broken":
            raise WorkerDied(answer)
        return answer

    def stop(self) -> None:
        """Lets the simulator end by itself, for at most five seconds."""
        with contextlib.suppress(OSError):
            self._connection.send(("close",))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self.kill()

    def kill(self) -> None:
        """Ends the worker and all it started (a JVM is in its process group)."""
        if self._connection.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()


def _serve(file_descriptor: int) -> None:
    """The worker's main loop: one request, one answer; ends with its parent."""
    connection = Connection(file_descriptor)
    simulator: Simulator | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            verb, *arguments = connection.recv()
            if verb == "close":
                break
            try:
                if verb == "start":
                    module, _, attribute = arguments[0].partition(":")
                    make = getattr(importlib.import_module(module), attribute)
                    simulator = make(**arguments[1])
                    answer = None
                else:
                    answer = getattr(simulator, verb)(*arguments)
            except EnvDataError as error:
                connection.send(("refused", str(error)))
            except Exception as error:  # a broken simulator: the parent starts another worker
                connection.send(("broken", f"{type(error).__name__}: {error}"))
                break
            else:
                connection.send(("answer", answer))
    if simulator is not None:
        simulator.close()


def _stop_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().stop()


class ReplayEnvironment(Environment):
    """Base of adapters; a subclass names its simulator in `factory` and writes the task lists.

    Args:
      horizon: environment steps per episode.
      num_workers: worker processes, each with a live simulator. An episode that shares its worker
        with others is replayed at every turn, so as many as episodes are played together is fastest.
      timeout: seconds that one reset or step may take before its worker is replaced.
      simulator: keyword arguments of the simulator.

    Raises:
      EnvDataError: a value is out of range.
    """

    factory: str = ""  # "module:class" of the Simulator, imported in the worker

    def __init__(
        self, horizon: int, num_workers: int, timeout: float, simulator: Mapping[str, Any]
    ):
        super().__init__(horizon)
        if type(num_workers) is not int or num_workers < 1:
            raise EnvDataError(
                f"env.options.num_workers = {num_workers!r}: must be an integer of at least 1"
            )
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout > 0:
            raise EnvDataError(f"env.options.timeout = {timeout!r}: must be seconds above 0")
        self._num_workers, self._timeout, self._simulator = num_workers, timeout, dict(simulator)
        self._workers: list[_Worker] = []
        self._busy: set[int] = set()  # id(worker) of those in use
        self._free = threading.Condition()
        self._clock = 0
        self._closed = False
        self._started: dict[str, tuple[ReplayState, str]] = {}  # task -> its first state
        self._answers: collections.OrderedDict = collections.OrderedDict()  # (state, question)
        # Runs at garbage collection and at exit, so that no worker is left behind.
        self._finalizer = weakref.finalize(self, _stop_all, self._workers)

    # -- hook ----------------------------------------------------------------------------------
    def same(self, recorded: str, replayed: str) -> bool:
        """Whether a replayed observation is the recorded one (a simulator may shuffle listings)."""
        return recorded == replayed

    # -- the protocol --------------------------------------------------------------------------
    def _reset(self, task_id: str) -> tuple[State, str]:
        if task_id not in self._started:
            reply = self._with_worker(
                ReplayState(task_id), lambda worker: self._begin(worker, task_id)
            )
            text = reply.observation
            state = ReplayState(task_id, observations=(text,), score=reply.score)
            self._started[task_id] = state, text
        return self._started[task_id]

    def _step(self, state: ReplayState, action: str) -> tuple[State, StepResult]:
        def play(worker: _Worker) -> Reply:
            self._restore(worker, state)
            worker.live = None  # until the answer is there
            reply = worker.request(self._timeout, "step", action)
            worker.live = (state.task_id, (*state.actions, action))
            return reply

        reply = self._with_worker(state, play, action)
        new_state = dataclasses.replace(
            state,
            actions=(*state.actions, action),
            observations=(*state.observations, reply.observation),
            score=reply.score,
        )
        return new_state, StepResult(
            reply.observation, reply.score - state.score, reply.done, reply.success, reply.info
        )

    def _step_many(self, moves: Sequence[tuple[Any, str]]) -> list[tuple[State, StepResult]]:
        """Side by side: a thread a worker; those that continue a live simulator go first."""
        if len(moves) <= 1:
            return [self._step(state, action) for state, action in moves]
        live = {worker.live for worker in self._workers}
        order = collections.deque(
            sorted(
                range(len(moves)),
                key=lambda n: (moves[n][0].task_id, moves[n][0].actions) not in live,
            )
        )
        results: list[Any] = [None] * len(moves)
        failures: list[BaseException] = []

        def run() -> None:
            while order and not failures:
                try:
                    number = order.popleft()
                except IndexError:
                    return
                try:
                    results[number] = self._step(*moves[number])
                except BaseException as error:  # handed to the caller below
                    failures.append(error)

        threads = [
            threading.Thread(target=run, daemon=True)
            for _ in range(min(self._num_workers, len(moves)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results

    def ask(self, state: ReplayState, question: str) -> Any:
        """The simulator's answer about `state`; the last few hundred are kept."""
        key = (state, question)
        if key not in self._answers:

            def answer(worker: _Worker) -> Any:
                self._restore(worker, state)
                return worker.request(self._timeout, "ask", question)

            self._answers[key] = self._with_worker(state, answer)
            while len(self._answers) > 256:
                self._answers.popitem(last=False)
        return self._answers[key]

    def solve(self, state: ReplayState) -> list[str] | None:
        """The rest of the simulator's expert plan where `state` lies on it, else None."""

        def plan(worker: _Worker) -> list[str] | None:
            worker.live = None
            return worker.request(_START_SECONDS, "plan", state.task_id)

        actions = self._with_worker(ReplayState(state.task_id), plan)
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
    def _begin(self, worker: _Worker, task_id: str) -> Reply:
        worker.live = None
        reply = worker.request(self._timeout, "reset", task_id)
        worker.live = (task_id, ())
        return reply

    def _restore(self, worker: _Worker, state: ReplayState) -> None:
        """Brings the worker's simulator to `state`, comparing what it says on the way."""
        if _replay_cost(worker, state) > len(state.actions):
            self._compare(state, 0, self._begin(worker, state.task_id).observation)
        assert worker.live is not None
        score = None
        for number in range(len(worker.live[1]), len(state.actions)):
            worker.live = None
            reply = worker.request(self._timeout, "step", state.actions[number])
            worker.live = (state.task_id, state.actions[: number + 1])
            self._compare(state, number + 1, reply.observation)
            score = reply.score
        if score is not None and score != state.score:
            worker.live = None
            raise EnvDataError(
                f"{self.name} task {state.task_id!r}: replaying {len(state.actions)} actions gave"
                f" the score {score:g}, recorded was {state.score:g}; the simulator is not"
                " deterministic, so this state cannot be restored"
            )

    def _compare(self, state: ReplayState, step: int, replayed: str) -> None:
        recorded = state.observations[step]
        if not self.same(recorded, replayed):
            action = f" (action {state.actions[step - 1]!r})" if step else " (reset)"
            raise EnvDataError(
                f"{self.name} task {state.task_id!r}, step {step}{action}: the replayed observation"
                f" {replayed[:_SHOWN]!r} is not the recorded one {recorded[:_SHOWN]!r}; the simulator"
                " is not deterministic, so this state cannot be restored"
            )

    def _with_worker(
        self, state: ReplayState, use: Callable[[_Worker], Any], action: str | None = None
    ) -> Any:
        """Runs `use` on the worker nearest to `state`, on new ones if it dies or hangs."""
        reason = ""
        for _ in range(_ATTEMPTS):
            worker = None
            try:
                worker = self._take(state)
                return use(worker)
            except EnvDataError:
                raise
            except BaseException as error:
                # Also on Ctrl-C: the answer still to come would be taken for the next request's.
                if worker is not None:
                    worker.kill()
                if not isinstance(error, WorkerDied):
                    raise
                reason = str(error)
            finally:
                if worker is not None:
                    self._give_back(worker)
        what = "reset" if action is None else f"action {action[:80]!r}"
        raise EnvDataError(
            f"{self.name} task {state.task_id!r}, step {len(state.actions) + 1} ({what}): the"
            f" simulator broke {_ATTEMPTS} times, last: {reason}"
        )

    def _take(self, state: ReplayState) -> _Worker:
        """A free worker, the one that needs the fewest steps to reach `state`; a new one if allowed."""
        with self._free:
            while True:
                if self._closed:
                    raise EnvDataError(f"{self.name}: the environment has been closed")
                self._clock += 1
                for worker in [w for w in self._workers if not w.alive]:
                    if id(worker) not in self._busy:  # died while idle
                        worker.kill()
                        self._workers.remove(worker)
                free = [w for w in self._workers if id(w) not in self._busy]
                nearest = min(free, key=lambda w: (_replay_cost(w, state), w.used), default=None)
                full = len(self._workers) >= self._num_workers
                if nearest is not None and (
                    full or _replay_cost(nearest, state) <= len(state.actions)
                ):
                    break
                if not full:
                    nearest = _Worker(self.factory, self._simulator)
                    self._workers.append(nearest)
                    break
                self._free.wait()
            nearest.used = self._clock
            self._busy.add(id(nearest))
            return nearest

    def _give_back(self, worker: _Worker) -> None:
        with self._free:
            self._busy.discard(id(worker))
            if not worker.alive and worker in self._workers:
                self._workers.remove(worker)
            self._free.notify()


def _replay_cost(worker: _Worker, state: ReplayState) -> int:
    """Simulator calls that bring the worker to `state`; more than its steps when a reset is needed."""
    steps = len(state.actions)
    if worker.live is None or worker.live[0] != state.task_id:
        return steps + 1
    done = worker.live[1]
    return steps - len(done) if state.actions[: len(done)] == done else steps + 1
