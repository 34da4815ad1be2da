"""ERL, experiential reinforcement learning (arXiv 2602.13949): a second attempt after a reflection.

An episode that fails is reflected on, and the same task is played again from its start with the advice in
view. First attempts, reflections and second attempts are trained by GRPO; a reflection has the reward of
the attempt that followed it. Successful second attempts are learned without the advice in the prompt, too.

Of LEAFE it is the neighbour that starts over instead of going back to a step, and that keeps the policy
gradient. A reflection that cannot be parsed has no second attempt, and counts as one that failed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from envs.base import Task
from leafe_jax.agent.policy import Completion, Policy
from leafe_jax.agent.rollout import Episode, Hooks, Rollout
from leafe_jax.methods.examples import Columns, sequence
from leafe_jax.methods.groups import Group, Played, group_of
from leafe_jax.methods.grpo import GRPO, GRPOConfig, Part, scaled
from leafe_jax.methods.on_policy import Lesson, Scene
from leafe_jax.types import ADVANTAGE, BEHAVIOUR, Budget, Example, Node, Turn

if TYPE_CHECKING:
    from leafe_jax.training.objectives import Objective


@dataclasses.dataclass(frozen=True)
class ERLConfig(GRPOConfig):
    """GRPO's settings, and the weight of what is learned without the advice.

    Raises:
      UserError: a value is out of range.
    """

    section: ClassVar[str] = "erl"

    internalise_weight: float = 1.0  # of -log pi(second attempt | task), the advice left out

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.internalise_weight < math.inf:
            raise self.error("internalise_weight", "must be at least 0")


class ERL(GRPO):
    """ERL."""

    name = "erl"
    Config = ERLConfig
    config: ERLConfig
    sources = ("rollouts", "internalised")

    def objective(self) -> Objective:
        from leafe_jax.training.objectives import with_targets

        return with_targets(super().objective(), {1: self.config.internalise_weight})

    def play(self, policy: Policy, scene: Scene, tasks: Sequence[Task]) -> list[Group]:
        rollout = Rollout(policy, scene.env, scene.prompts, scene.rollout)
        attempts = _Attempts(rollout)
        for task in tasks:
            for number in range(self.config.group_size):
                attempts.begin(task, number, "root", None, Budget())
        rollout.run(attempts)
        return [attempts.group(task, self.config.group_size) for task in tasks]

    def parts(self, group: Group) -> list[Part]:
        reflected = [e for e in group.episodes if e.reflection is not None]
        seconds = Group(group.task_id, group.family, [_second(e) for e in reflected])
        # Compared among themselves: all of them had a failure behind them.
        later = (
            self.advantages(seconds)
            if len(reflected) > 1
            else [np.zeros(len(e.turns)) for e in seconds.episodes]
        )
        by_first = {id(e): own for e, own in zip(reflected, later, strict=True)}
        found: list[Part] = []
        for episode, own in zip(group.episodes, self.advantages(group), strict=True):
            if episode.reflection is None:
                found.append((episode.turns, own))
                continue
            after = by_first[id(episode)]
            found.append(([*episode.turns, episode.reflection], np.append(own, after[0])))
            if episode.again is not None:
                found.append((episode.again.turns, after[1:]))
        return found

    def lesson(self, groups: Sequence[Group], scene: Scene) -> Lesson:
        examples = super().lesson(groups, scene).examples
        second = [e.again for g in groups for e in g.episodes if e.again is not None]
        learned: list[Example] = []
        for episode in second:
            if not (episode.success and self.config.internalise_weight):
                continue
            turns = episode.turns
            columns: Columns = {
                ADVANTAGE: {t.step: 0.0 for t in turns}, BEHAVIOUR: {t.step: t.logprobs for t in turns},
            }  # fmt: skip
            steps = {t.step for t in turns}
            learned += sequence(turns, steps, scene.rollout.mode, "token", 1, columns=columns)
        if learned:
            examples = examples + scaled(learned, float(sum(e.mass.sum() for e in learned)))
        return Lesson(examples)


def _second(episode: Played) -> Played:
    """A reflection and the attempt that followed it, as one episode."""
    said, again = episode.reflection, episode.again
    assert said is not None, "it was not reflected on"
    if again is None:
        return Played([said], 0.0, False, "", "failure", Budget(), [0])
    return dataclasses.replace(again, turns=[said, *again.turns])


class _Attempts(Hooks):
    """First attempts, a reflection after each that fails, and a second attempt with its advice."""

    def __init__(self, rollout: Rollout):
        self._rollout = rollout
        self._first: dict[str, dict[int, Episode]] = {}
        self._again: dict[str, dict[int, Episode]] = {}
        self._said: dict[str, dict[int, Turn]] = {}

    def begin(self, task: Task, number: int, kind: str, advice: str | None, budget: Budget) -> None:
        """Queues an attempt; both attempts book into one budget."""
        state, observation = self._rollout.env.reset(task.task_id)
        budget.episodes += 1
        name = f"{task.task_id}/s{number}" + ("/again" if advice else "")
        self._rollout.queue.append(
            Episode(
                node=Node(number, None, None, 0, kind, advice), name=name, state=state,
                observation=observation, told=[(1, advice)] if advice else [], budget=budget,
                owner=task,
            )
        )  # fmt: skip

    def reflect_now(self, episode: Episode) -> bool:
        first, state = episode.node.kind == "root", episode.state
        return first and state.done and not state.success

    def reflected(self, episode: Episode, completion: Completion) -> bool:
        if completion.finish_reason == "context":  # there was no room to ask
            return True
        cut = completion.finish_reason == "length"
        parsed = self._rollout.prompts.parse_reflection(completion.text, cut)
        task, number = episode.owner, episode.node.id
        fine = parsed.status == "ok" and bool(parsed.experience)
        said = Turn(
            len(episode.turns) + 1, episode.observation, [], list(completion.prompt_ids), None,
            list(completion.ids), list(completion.logprobs), completion.text, "", fine, 0.0,
        )  # fmt: skip
        self._said.setdefault(task.task_id, {})[number] = said
        if fine:
            self.begin(task, number, "retry", parsed.experience, episode.budget)
        return True

    def finished(self, episode: Episode) -> None:
        kept = self._first if episode.node.kind == "root" else self._again
        kept.setdefault(episode.owner.task_id, {})[episode.node.id] = episode

    def group(self, task: Task, size: int) -> Group:
        """What is kept of a task's attempts."""
        env, rollout = self._rollout.env, self._rollout.config
        firsts = [self._first[task.task_id][number] for number in range(size)]
        group = group_of(env, task, firsts, rollout)
        again, said = self._again.get(task.task_id, {}), self._said.get(task.task_id, {})
        numbers = [number for number in range(size) if number in again]
        seconds = group_of(env, task, [again[number] for number in numbers], rollout).episodes
        for number, second in zip(numbers, seconds, strict=True):
            # Its steps are in the budget of the first attempt already.
            group.episodes[number].again = dataclasses.replace(second, budget=Budget())
        for number, turn in said.items():
            group.episodes[number].reflection = turn
        return group
