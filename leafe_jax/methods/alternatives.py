"""Alternatives: other actions at the steps of an expert, each played for one step (arXiv 2510.08558).

The search of Early Experience. An expert's trajectory is played first: by the environment's scripted
player, by its solver, or it is the agent's own first success. Then the agent is asked for an action at
step 1, 2, and so on to the last, and again at step 1, until the budget is spent. Each of these actions is
played, so that its outcome is known, and left. What is known already, the expert's own action or one that
was played at this step before, is not played again, unless a whole round has brought nothing else. With
`explain` the agent is told both actions with their outcomes, and says why the expert's is better.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from envs.base import Environment
from envs.player import Player, make_player
from envs.reflections import Reflection
from leafe_jax.agent.policy import Completion
from leafe_jax.agent.rollout import Episode, branch
from leafe_jax.methods.search import Explorer, Growth
from leafe_jax.types import Node, Tree

KIND = "alternative"
_KNOWN = "known"


@dataclasses.dataclass(eq=False)
class _Growth(Growth):
    """What is to be played beside the expert's trajectory."""

    expert: Episode | None = None  # its session is kept until the tree is finished
    begun: int = 0  # places at which an alternative was begun, or had no room
    reach: int = 0  # last step at which a prompt fits into the context
    known: set[tuple[int, str]] = dataclasses.field(default_factory=set)  # (step, action)
    stale: int = 0  # known actions since the last new one


class Alternatives(Explorer):
    """The decisions of the search."""

    _growing: dict[str, Any]
    _player: Player | None = None

    def _begin(self, start: tuple[Any, str], roots: int) -> Growth:
        return _Growth(start, roots)

    def plant(self, tree: Tree, env: Environment) -> None:
        if self.config.expert == "own":
            super().plant(tree, env)
            return
        growth = self._growing[tree.task_id] = _Growth(env.reset(tree.task_id), 0)
        root = self._root(tree)
        root.node.kind = "expert"
        for action in self._given(env, tree.task_id, growth.start[0]):
            if tree.budget.spent or root.state.done:
                break
            self.rollout.force(root, action)
        if root.session is None:  # there is no solution: it plays by itself
            tree.nodes.clear()
            self._play(self._root(tree))
            return
        tree.budget.episodes += 1
        if root.state.success:
            self._keep(growth, root)
        else:
            root.node.stop = root.node.stop or "budget"
            self.policy.release(root.session)
        self.finished(root)

    def _given(self, env: Environment, task_id: str, state: Any) -> list[str]:
        """The actions of an expert that is not the agent; [] if it does not reach the goal.

        Raises:
          EnvDataError: the environment has no scripted player.
        """
        if self.config.expert == "solver":
            return env.solve(state) or []
        player = self._player = self._player or make_player(env)
        played = player.play(task_id, player.all_aware)
        return played.actions if played.success else []

    def _keep(self, growth: _Growth, expert: Episode) -> None:
        growth.expert, growth.reach = expert, len(expert.turns)
        growth.known = {(turn.step, turn.action) for turn in expert.turns}

    def _another(self, tree: Tree, last: Episode) -> Episode | None:
        growth = self._growing[tree.task_id]
        if growth.expert is None:
            return super()._another(tree, last)
        if last.node.kind == KIND and last.node.stop == "context":
            assert last.node.branch_step is not None
            growth.reach = min(growth.reach, last.node.branch_step - 1)
        steps = len(growth.expert.turns)
        for _ in range(steps):
            step = growth.begun % steps + 1
            growth.begun += 1
            replayed = step - 1 if self.replays else 0
            if step <= growth.reach and tree.budget.has_room(replayed + 1):
                tree.budget.replayed_steps += replayed
                return self._alternative(tree, growth.expert, step, growth.begun)
        return None

    def _alternative(self, tree: Tree, expert: Episode, step: int, number: int) -> Episode:
        node = Node(len(tree.nodes), expert.node.id, step, 1, KIND, None)
        tree.nodes.append(node)
        return branch(self.policy, expert, step, node, f"{expert.name}/a{number}", None)

    # -- hooks ---------------------------------------------------------------------------------
    def reflect_now(self, episode: Episode) -> bool:
        growth = self._growing[episode.owner.task_id]
        if episode.node.kind == KIND:
            theirs = growth.expert.turns[len(episode.turns) - 1].action
            return self.config.explain and episode.turns[-1].action != theirs
        if growth.expert is None and episode.state.success:
            kept = self.policy.fork(episode.session, self.policy.length(episode.session))
            self._keep(growth, dataclasses.replace(episode, session=kept))
        return False

    def declines(self, episode: Episode, action: str) -> bool:
        growth, place = self._growing[episode.owner.task_id], (episode.step, action)
        if episode.node.kind != KIND:
            return False
        growth.stale = growth.stale + 1 if place in growth.known else 0
        growth.known.add(place)
        if not 0 < growth.stale <= len(growth.expert.turns):
            return False
        episode.node.stop = _KNOWN
        return True

    def finished(self, episode: Episode) -> None:
        if episode.node.stop == _KNOWN:  # nothing was played, so there is nothing to keep
            tree = episode.owner
            assert tree.nodes.pop() is episode.node
            tree.budget.episodes -= 1
            tree.budget.replayed_steps -= len(episode.turns) if self.replays else 0
        super().finished(episode)

    def leaves(self, episode: Episode) -> bool:
        if episode.node.kind != KIND:
            return False
        episode.node.stop = episode.node.stop or "one_step"
        return True

    def question(self, episode: Episode, history: str) -> str:
        expert, step = self._growing[episode.owner.task_id].expert, len(episode.turns)
        later = [turn.observation for turn in expert.turns[step:]]
        return self.prompts.contrast(
            episode.step, episode.observation, history, episode.turns[-1].action,
            expert.turns[step - 1].action, (later or [expert.node.final_observation])[0],
        )  # fmt: skip

    def _read(self, episode: Episode, text: str, cut: bool) -> Reflection:
        reason = self.prompts.parse_contrast(text)
        return Reflection("explained" if reason else "unparsable", None, reason, cut)

    def reflected(self, episode: Episode, completion: Completion) -> bool:
        super().reflected(episode, completion)
        return not self.leaves(episode)

    def _end(self, growth: Growth) -> None:
        super()._end(growth)
        assert isinstance(growth, _Growth)
        if growth.expert is not None:
            self.policy.release(growth.expert.session)
