"""Linear rollback: one trajectory goes back a few steps at a time, and never branches.

As in GA-Rollback (github.com/wisper12933/GA-Rollback): after a wait, an assistant names the step that went
wrong and explains it; the trajectory goes back to it, but at most `rollback_steps` steps; the newest
explanations are kept in view; after `rollbacks` it plays to its end. Here the assistant is the policy
itself, asked with the search's own question every `reflect_every` steps and after a failure, so that the
searches differ by their rules alone. Then a new trajectory begins, until the budget is spent.
"""

from __future__ import annotations

import math

from leafe_jax.agent.policy import Completion
from leafe_jax.agent.rollout import Episode
from leafe_jax.methods.search import Explorer
from leafe_jax.types import ReflectionRecord


class Linear(Explorer):
    """The decisions of linear rollback."""

    def reflect_now(self, episode: Episode) -> bool:
        config, taken = self.config, len(episode.turns)
        if episode.node.depth >= config.rollbacks or not self._may_begin(episode.owner):
            return False
        if episode.state.done:
            return config.reflect_on_failure and not episode.state.success
        return taken >= config.wait_steps and taken % config.reflect_every == 0

    def reflected(self, episode: Episode, completion: Completion) -> bool:
        going = super().reflected(episode, completion)
        # What is left is gone, whatever `continue_after_branch` says: there is one trajectory.
        if episode.node.reflections[-1].status != "branched":
            return going
        episode.node.stop = episode.node.stop or "branched"
        return False

    def _judge(self, episode: Episode, record: ReflectionRecord) -> str:
        if _mean_probability(record.logprobs) < self.config.min_probability:
            return "unsure"
        return super()._judge(episode, record)

    def _follow(self, episode: Episode, tau: int, experience: str | None) -> Episode:
        """Goes back to tau, or to as far as it may; the newest experiences are told again there."""
        tau = max(tau, len(episode.turns) + 1 - self.config.rollback_steps)
        growth = self._growing[episode.owner.task_id]
        child = super()._follow(episode, tau, experience)
        if experience is not None:
            growth.memory.append(experience)
            newest = growth.memory[-self.config.shown_experiences :]
            before = [pair for pair in child.told if pair[0] < tau]
            seen = {e for _, e in before}
            child.told = [*before, *((tau, e) for e in newest if e not in seen)]
        return child


def _mean_probability(logprobs: list[float]) -> float:
    return sum(map(math.exp, logprobs)) / len(logprobs) if logprobs else 1.0
