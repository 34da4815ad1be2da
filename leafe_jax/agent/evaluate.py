"""Evaluation: independent rollouts on held-out tasks, without reflection, rollback or experience."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from envs.base import Environment, Task
from envs.prompts import Prompts
from leafe_jax.agent.policy import Policy
from leafe_jax.agent.rollout import Episode, Hooks, Rollout, RolloutConfig
from leafe_jax.types import Budget, Node


class _Counter(Hooks):
    """Passes every finished episode on."""

    def __init__(self, on_episode: Callable[[Episode], None]):
        self._on_episode = on_episode

    def finished(self, episode: Episode) -> None:
        self._on_episode(episode)


def evaluate(
    policy: Policy,
    env: Environment,
    prompts: Prompts,
    tasks: Sequence[Task],
    num_samples: int,
    rollout_config: RolloutConfig,
    on_episode: Callable[[], None],
) -> tuple[list[dict[str, Any]], Budget]:
    """Plays every task `num_samples` times.

    Args:
      policy, env, prompts: who plays, what is played, and how it is put into words.
      tasks: held-out tasks.
      num_samples: n of the Pass@k estimator.
      rollout_config: how turns are rendered and sampled.
      on_episode: called after each episode, for progress.

    Returns:
      (records, budget). There is one record per task: {"task_id", "family", "successes": [n bools],
      "steps": [n ints], "returns": [n floats], "out_of_context": number of samples that ended because
      the context was full, "transcript": the first sample's [observation, reply] pairs}. The budget
      is what all episodes spent.
    """
    budget = Budget()
    records: dict[str, dict[str, Any]] = {
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

    def finished(episode: Episode) -> None:
        task_id, number = episode.owner
        record = records[task_id]
        record["successes"][number] = bool(episode.state.success)
        record["steps"][number] = len(episode.turns)
        record["returns"][number] = episode.node.return_
        record["out_of_context"] += episode.node.stop == "context"
        if number == 0:
            record["transcript"] = [[t.observation, t.text] for t in episode.turns]
        on_episode()

    rollout = Rollout(policy, env, prompts, rollout_config)
    for task in tasks:
        state, observation = env.reset(task.task_id)
        for number in range(num_samples):
            budget.episodes += 1
            rollout.queue.append(
                Episode(
                    node=Node(number, None, None, 0, "root", None),
                    name=f"{task.task_id}/s{number}",
                    state=state,
                    observation=observation,
                    budget=budget,
                    owner=(task.task_id, number),
                )
            )
    rollout.run(_Counter(finished))
    return list(records.values()), budget


def merge_budgets(parts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Sum of budgets in their JSON form."""
    total = Budget()
    for part in parts:
        total.add(Budget(**part))
    return dataclasses.asdict(total)
