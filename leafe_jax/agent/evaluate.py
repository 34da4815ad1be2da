"""Plain episodes: independent rollouts without reflection, rollback or experience, and what is counted of
them in an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypedDict

from envs.base import Environment, Task
from envs.prompts import Prompts
from leafe_jax.agent.policy import Policy
from leafe_jax.agent.rollout import Episode, Hooks, Rollout, RolloutConfig
from leafe_jax.types import Budget, Node


class TaskRecord(TypedDict):
    """What is counted of one task's n episodes. Lists are in the order of the episodes' numbers."""

    task_id: str
    family: str
    successes: list[bool]
    steps: list[int]
    returns: list[float]
    out_of_context: int  # episodes that ended because the context was full
    transcript: list[list[str]]  # the first episode's [observation, reply] pairs


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation; `dataclasses.asdict` gives its JSON form.

    Attributes:
      tasks: one record per task, in the order in which the tasks were given.
      budget: what all episodes spent.
    """

    tasks: list[TaskRecord]
    budget: Budget


class _Finished(Hooks):
    """Passes every finished episode on."""

    def __init__(self, on_episode: Callable[[Episode], None]):
        self._on_episode = on_episode

    def finished(self, episode: Episode) -> None:
        self._on_episode(episode)


def play(
    policy: Policy,
    env: Environment,
    prompts: Prompts,
    tasks: Sequence[Task],
    num_samples: int,
    rollout_config: RolloutConfig,
    on_episode: Callable[[Episode], None],
) -> None:
    """Plays every task `num_samples` times.

    Args:
      policy, env, prompts: who plays, what is played, and how it is put into words.
      tasks: the tasks.
      num_samples: episodes per task.
      rollout_config: how turns are rendered and sampled.
      on_episode: called with each episode as it finishes. `owner` is the Task, and `node.id` the
        episode's number within the task. It has a budget of its own.
    """
    rollout = Rollout(policy, env, prompts, rollout_config)
    for task in tasks:
        state, observation = env.reset(task.task_id)
        for number in range(num_samples):
            rollout.queue.append(
                Episode(
                    node=Node(number, None, None, 0, "root", None),
                    name=f"{task.task_id}/s{number}",
                    state=state,
                    observation=observation,
                    budget=Budget(episodes=1),
                    owner=task,
                )
            )
    rollout.run(_Finished(on_episode))


def evaluate(
    policy: Policy,
    env: Environment,
    prompts: Prompts,
    tasks: Sequence[Task],
    num_samples: int,
    rollout_config: RolloutConfig,
    on_episode: Callable[[], None],
) -> Evaluation:
    """Counts the outcomes of `num_samples` episodes per task, without keeping the episodes.

    Args:
      policy, env, prompts, rollout_config: see `play`.
      tasks: held-out tasks.
      num_samples: n of the Pass@k estimator.
      on_episode: called after each episode, for progress.
    """
    budget = Budget()
    records: dict[str, TaskRecord] = {
        task.task_id: {
            "task_id": task.task_id,
            "family": task.family,
            "successes": [False] * num_samples,
            "steps": [0] * num_samples,
            "returns": [0.0] * num_samples,
            "out_of_context": 0,
            "transcript": [],
        }
        for task in tasks
    }

    def count(episode: Episode) -> None:
        record, number = records[episode.owner.task_id], episode.node.id
        record["successes"][number] = bool(episode.state.success)
        record["steps"][number] = len(episode.turns)
        record["returns"][number] = episode.node.return_
        record["out_of_context"] += episode.node.stop == "context"
        if number == 0:
            record["transcript"] = [[t.observation, t.text] for t in episode.turns]
        budget.add(episode.budget)
        on_episode()

    play(policy, env, prompts, tasks, num_samples, rollout_config, count)
    return Evaluation(list(records.values()), budget)


def merge_budgets(parts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Sum of budgets in their JSON form."""
    total = Budget()
    for part in parts:
        total.add(Budget(**part))
    return dataclasses.asdict(total)
