"""The environment protocol: a state is an immutable value, so a snapshot is the value itself.

`reset(task) -> (State, observation)` and `step(state, action) -> (State, StepResult)` never change
their arguments. To roll back ("restore h_tau and E_tau", arXiv 2603.16843), a caller keeps an old state.
A new environment subclasses `Environment`, which counts steps and ends episodes. It writes `_reset`,
`_step` and the task lists. docs/ENVIRONMENTS.md has an example.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from envs import options as _options
from envs import replies
from envs.actions import Form
from envs.errors import EnvDataError
from envs.options import FilePath, Options, one_of

__all__ = [
    "EnvDataError", "Environment", "FilePath", "Form", "Options", "State", "StepResult", "Task", "one_of",
    "stable_seed",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Task:
    """One enumerable task.

    Attributes:
      task_id: stable id, `split/family/number`, the same on every machine.
      family: the group that tables report separately (a household task type, a Sokoban size).
      split: "train", "valid" or "test".
    """

    task_id: str
    family: str
    split: str


@dataclasses.dataclass(frozen=True)
class State:
    """Base of every environment's state: frozen, picklable, compared by value.

    Attributes:
      task_id: the task being played.
      num_steps: environment steps taken so far.
      done: the episode is over; further steps change nothing.
      success: the goal has been reached.
    """

    task_id: str
    num_steps: int = 0
    done: bool = False
    success: bool = False


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one step returns.

    Attributes:
      observation: feedback in the original benchmark's words.
      reward: reward of this step.
      done: episode over (goal, failure or horizon).
      success: goal reached.
      info: extras that JSON can hold, e.g. {"valid": False} if the action was not understood and so
        had no effect.
    """

    observation: str
    reward: float
    done: bool
    success: bool
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Environment(abc.ABC):
    """Base class: options, horizon, step counting, ends of episodes, task look-up.

    A subclass writes the rules, and sets what is particular to it as class attributes. `name`,
    `description` and `horizon` have no default.

    Attributes:
      name: what errors, records and prompts call it.
      description: one paragraph on the environment and its actions, for prompts.
      horizon: most environment steps per episode; of the class, the default.
      Options: the type of its options, a frozen dataclass; see envs/options.py.
      options: the values of this environment.
      max_replies: most actions per episode; not the horizon only where an action may take no step.
      splits: names of the task lists; the first one is for training.
      split: whose tasks `tasks` lists; None lists those of all splits.
      prompt_styles: the styles of envs/prompts.py that it can be played in, its default first.
      form: how its "react" messages and replies differ from the general form (envs/actions.py).
      programs: an action is a program of several lines.
      states_goal: the first observation says "Your task is to: ...".
      player: its scripted player, "module:Class" (envs/player.py); "" if it has none.
      has_workers: steps are played in worker processes, so they take time.
      replays: going back to a state takes a reset and its actions again. Such steps are booked.
      packages: distributions beside the environment's own whose version decides how it plays.

    Args:
      horizon: most environment steps per episode, at least 1; None takes the class's.
      options: an instance of the class's Options; None takes the defaults.

    Raises:
      EnvDataError: a value is not allowed, or the class sets no name or horizon.
    """

    name: str = ""
    description: str = ""
    horizon: int = 0
    Options: type[Options] = Options
    splits: tuple[str, ...] = ("train", "valid", "test")
    split: str | None = None
    prompt_styles: tuple[str, ...] = ("plain", "chat", "react")
    form: Form = Form()
    programs: bool = False
    states_goal: bool = False
    player: str = ""
    has_workers: bool = False
    replays: bool = False
    packages: tuple[str, ...] = ()

    def __init__(self, horizon: int | None = None, options: Options | None = None):
        if not self.name:
            raise EnvDataError(f"{type(self).__name__}: the class sets no name")
        self.horizon = _options.check_horizon(self.horizon if horizon is None else horizon)
        self.options: Any = self.Options() if options is None else options
        if not isinstance(self.options, self.Options):
            raise EnvDataError(
                f"{self.name} options = {_options.shown(options)}: must be {self.Options.__name__}"
            )
        self.max_replies = self.horizon
        self._tasks: dict[str, tuple[Task, ...]] = {}

    # -- what an environment writes ------------------------------------------------------------
    @abc.abstractmethod
    def _list_tasks(self, split: str) -> Sequence[Task]:
        """All tasks of `split`, one of `self.splits`, in a fixed order."""

    @abc.abstractmethod
    def _reset(self, task_id: str) -> tuple[State, str]:
        """First state and first observation of a task."""

    @abc.abstractmethod
    def _step(self, state: Any, action: str) -> tuple[State, StepResult]:
        """The rules of one step. The base class sets num_steps, success, and done at the horizon."""

    @abc.abstractmethod
    def actions(self, state: Any) -> tuple[str, ...]:
        """The actions that are understood in `state`, in a fixed order."""

    def prompt_actions(self, state: Any) -> Sequence[str] | str:
        """What window prompts list as admissible: actions, or a text if there are too many."""
        return self.actions(state)

    def shown_actions(self, state: Any) -> Sequence[str] | str:
        """What `prompt_actions` returns, checked.

        Raises:
          EnvDataError: it is neither a text nor a sequence of texts.
        """
        where = f"{self.name} task {state.task_id!r}, step {state.num_steps + 1}"
        return replies.listed(where, self.prompt_actions(state))

    def goal(self, first_observation: str) -> str:
        """The task in words, from the first observation; "" if every observation states it."""
        return first_observation.rpartition("Your task is to: ")[2] if self.states_goal else ""

    @abc.abstractmethod
    def solve(self, state: Any) -> list[str] | None:
        """Actions that reach the goal from `state` in the steps left, or None."""

    # -- what callers use ----------------------------------------------------------------------
    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of `self.split`, or of all splits if it is None."""
        if self.split is not None:
            return self.list_tasks(self.split)
        return tuple(task for split in self.splits for task in self.list_tasks(split))

    def list_tasks(self, split: str) -> tuple[Task, ...]:
        """The fixed, enumerable task list of a split.

        Raises:
          EnvDataError: unknown split.
        """
        if split not in self.splits:
            raise EnvDataError(
                f"{self.name} split {split!r}: must be one of {', '.join(self.splits)}"
            )
        if split not in self._tasks:
            self._tasks[split] = tuple(self._list_tasks(split))
        return self._tasks[split]

    def split_hash(self, split: str) -> str:
        """Short SHA-256 of the split's task ids and first observations, to compare machines."""
        digest = hashlib.sha256()
        for task in self.list_tasks(split):
            _, observation = self.reset(task)
            # A task's id may contain a file name that is not UTF-8.
            digest.update(f"{task.task_id}\n{observation}\n".encode(errors="backslashreplace"))
        return digest.hexdigest()[:16]

    def reset(self, task: Task | str) -> tuple[State, str]:
        """Returns the first state and observation of `task`, a Task or its id.

        Raises:
          EnvDataError: the task is unknown, or the environment's reply is wrong.
        """
        task_id = task.task_id if isinstance(task, Task) else task
        if not isinstance(task_id, str):
            raise EnvDataError(f"{self.name} task {task!r:.80}: must be a Task or its id")
        where = f"{self.name} task {task_id!r}, reset"
        reply = self._reset(task_id)
        if not isinstance(reply, tuple) or len(reply) != 2:
            raise EnvDataError(f"{where}: returned {reply!r:.80}: must be (State, observation)")
        state, observation = reply
        replies.instance(where, "state", state, State)
        return state, replies.text(where, "observation", observation)

    def step(self, state: Any, action: str) -> tuple[State, StepResult]:
        """Plays `action`. Any string is an action. After the end of an episode nothing changes.

        Raises:
          EnvDataError: the environment's reply is wrong; see envs/replies.py.
        """
        ((new_state, result),) = self.step_many([(state, action)])
        return new_state, result

    def step_many(self, moves: Sequence[tuple[Any, str]]) -> list[tuple[State, StepResult]]:
        """Results of `step` for several (state, action) pairs, in their order.

        Environments with workers (a simulator, a sandbox) override `_step_many` to play them in
        parallel. The results are the same.
        """
        live = [number for number, (state, _) in enumerate(moves) if not state.done]
        played = dict(zip(live, self._step_many([moves[n] for n in live]), strict=True))
        return [
            self._finish(state, *self._checked(state, played[number]))
            if number in played
            else (
                state,
                StepResult("The episode is over.", 0.0, True, state.success, {"valid": False}),
            )
            for number, (state, _) in enumerate(moves)
        ]

    def _step_many(self, moves: Sequence[tuple[Any, str]]) -> list[tuple[State, StepResult]]:
        return [self._step(state, action) for state, action in moves]

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends worker processes, if there are any. The environment cannot be used afterwards."""

    def _checked(self, state: State, reply: Any) -> tuple[State, StepResult]:
        """What `_step` returned, as plain Python values; EnvDataError if it is wrong."""
        where = f"{self.name} task {state.task_id!r}, step {state.num_steps + 1}"
        if not isinstance(reply, tuple) or len(reply) != 2:
            raise EnvDataError(f"{where}: returned {reply!r:.80}: must be (State, StepResult)")
        new_state, result = reply
        replies.instance(where, "state", new_state, State)
        replies.instance(where, "result", result, StepResult)
        return new_state, StepResult(
            replies.text(where, "observation", result.observation),
            replies.number(where, "reward", result.reward),
            replies.flag(where, "done", result.done),
            replies.flag(where, "success", result.success),
            replies.info(where, result.info),
        )

    def _finish(self, state: State, new_state: State, result: StepResult):
        """Counts the step and ends the episode at the goal or the horizon."""
        num_steps = state.num_steps + 1
        done = result.done or result.success or num_steps >= self.horizon
        new_state = dataclasses.replace(
            new_state, num_steps=num_steps, done=done, success=result.success
        )
        return new_state, dataclasses.replace(result, done=done)


def stable_seed(*names: object) -> int:
    """A 63-bit seed from names (SHA-256; Python's own `hash` is salted)."""
    digest = hashlib.sha256("/".join(str(n) for n in names).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
