"""Groups: several plain episodes of one task, as on-policy methods sample and judge them.

A group is played by one process, beginning with the task's first prompt, which its episodes share in the
sampler's cache. What is kept of it can be JSON, so that processes exchange groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from envs.base import Environment, State, Task
from envs.prompts import Prompts
from leafe_jax.agent.evaluate import play
from leafe_jax.agent.policy import Policy
from leafe_jax.agent.rollout import Episode, RolloutConfig
from leafe_jax.types import Budget, Turn


@dataclasses.dataclass
class Played:
    """An episode of a group.

    Attributes:
      turns: what was sampled, and what came of it.
      return_: sum of the rewards.
      success: the goal was reached.
      final_observation: what the last action brought.
      stop: as Node.stop; "context" if the context was full.
      budget: what it spent.
      anchors: of each step, a number of the state before it. Within a group, states have the same number
        if they are equal, counters of steps aside.
      shown_actions: of each step, what a window prompt lists as admissible; [] in dialogue mode.
      reflection: what was said of it, as a turn behind its last one (ERL); None if it was not asked.
      again: the second attempt, made with the reflection's advice; None if there is none.
    """

    turns: list[Turn]
    return_: float
    success: bool
    final_observation: str
    stop: str
    budget: Budget
    anchors: list[int]
    shown_actions: list[list[str] | str] = dataclasses.field(default_factory=list)
    reflection: Turn | None = None
    again: Played | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Played:
        """Inverse of dataclasses.asdict."""
        said, again = data["reflection"], data["again"]
        return cls(
            **{
                **data,
                "turns": [Turn(**turn) for turn in data["turns"]],
                "budget": Budget(**data["budget"]),
                "reflection": None if said is None else Turn(**said),
                "again": None if again is None else cls.from_json(again),
            }
        )


@dataclasses.dataclass
class Group:
    """Episodes of one task.

    Attributes:
      task_id, family: of the task.
      episodes: in the order of their numbers.
    """

    task_id: str
    family: str
    episodes: list[Played]

    @property
    def env_steps(self) -> int:
        """Environment steps of all episodes."""
        return sum(episode.budget.env_steps for episode in self.episodes)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Group:
        """Inverse of `to_json`."""
        episodes = [Played.from_json(episode) for episode in data["episodes"]]
        return cls(data["task_id"], data["family"], episodes)


def anchor_of(state: State) -> State:
    """The state without its counters (fields `num_*`): the same place at another time is equal to it.

    An environment that replays (envs/replay.py) has its history as its state: there only equal histories
    are equal states.
    """
    counters: dict[str, Any] = {
        f.name: 0 for f in dataclasses.fields(state) if f.name.startswith("num_")
    }
    return dataclasses.replace(state, **counters)


def _numbered(paths: Sequence[Sequence[State]]) -> list[list[int]]:
    """A number for each state of each path, the same for equal anchors."""
    numbers: dict[State, int] = {}
    return [
        [numbers.setdefault(anchor_of(state), len(numbers)) for state in path] for path in paths
    ]


def play_groups(
    policy: Policy,
    env: Environment,
    prompts: Prompts,
    tasks: Sequence[Task],
    size: int,
    rollout: RolloutConfig,
) -> list[Group]:
    """Plays `size` episodes of each task; returns the groups in the order of the tasks.

    Args:
      policy, env, prompts: who plays, what is played, and how it is put into words.
      tasks: different ones.
      size: episodes of a group.
      rollout: how turns are rendered and sampled; its purpose is part of every sampling key's name.
    """
    found: dict[str, dict[int, Episode]] = {task.task_id: {} for task in tasks}

    def keep(episode: Episode) -> None:
        found[episode.owner.task_id][episode.node.id] = episode

    play(policy, env, prompts, tasks, size, rollout, keep)
    return [
        group_of(env, task, [found[task.task_id][number] for number in range(size)], rollout)
        for task in tasks
    ]


def group_of(
    env: Environment, task: Task, episodes: Sequence[Episode], rollout: RolloutConfig
) -> Group:
    """What is kept of the finished episodes of a task."""
    paths = [e.states[: len(e.turns)] for e in episodes]
    window = rollout.mode == "window"
    played = [
        Played(
            e.turns, e.node.return_, bool(e.state.success), e.node.final_observation, e.node.stop,
            e.budget, numbers, [_plain(env.shown_actions(s)) for s in path] if window else [],
        )
        for e, numbers, path in zip(episodes, _numbered(paths), paths, strict=True)
    ]  # fmt: skip
    return Group(task.task_id, task.family, played)


def _plain(actions: Sequence[str] | str) -> list[str] | str:
    return actions if isinstance(actions, str) else list(actions)
