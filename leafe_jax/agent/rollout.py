"""Episodes side by side: each asks the policy as soon as its environment has answered.

The loop knows no model and no environment in particular. An episode keeps all states it went
through, so going back is keeping an old one, and for each turn the length of the conversation
before it, so the model's cache goes back to the same place.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from envs.base import Environment
from envs.prompts import Prompts
from leafe_jax.agent.policy import Completion, Policy, Request
from leafe_jax.agent.seeds import seed_for
from leafe_jax.errors import UserError
from leafe_jax.types import Budget, Node, Sampling, Turn


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How turns are rendered and sampled.

    Attributes:
      mode: "dialogue" (one growing conversation) or "window" (rebuilt every step).
      window: observation-action pairs shown in window mode.
      experience_span: "branch" (e stays in the context) or "step" (only at step tau).
      sampling: of actions and reflections.
      max_action_tokens, max_reflection_tokens: most tokens of a reply.
      seed: the run's seed.
      purpose: "explore", "evaluate" (the same for every method) or of the habits: part of every key's name.
    """

    mode: str
    window: int
    experience_span: str
    sampling: Sampling
    max_action_tokens: int
    max_reflection_tokens: int
    seed: int
    purpose: str


@dataclasses.dataclass(eq=False)
class Episode:
    """A trajectory being played.

    Attributes:
      node: where its own turns go (a leaf record, also in evaluation).
      name: stable name, part of the sampling keys.
      state, observation: now.
      states: state before each step, states[t - 1] before a_t, shared prefix included.
      turns: all turns of the path, shared prefix included.
      lengths: session length before each turn's prompt.
      session: the conversation; None until the first request.
      budget: where it books what it spends (the tree's, in exploration).
      owner: the tree or task it belongs to; the loop does not look into it.
      reflecting: session forked for a reflection that is due now.
    """

    node: Node
    name: str
    state: Any
    observation: str
    states: list[Any] = dataclasses.field(default_factory=list)
    turns: list[Turn] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    session: Any = None
    budget: Budget = dataclasses.field(default_factory=Budget)
    owner: Any = None
    reflecting: bool = False

    @property
    def step(self) -> int:
        """The 1-based number of the next action."""
        return len(self.turns) + 1


class Hooks:
    """What a driver decides; the defaults play every episode once to its end."""

    def reflect_now(self, episode: Episode) -> bool:
        """After a step: is a reflection due?"""
        return False

    def reflected(self, episode: Episode, completion: Completion) -> bool:
        """Takes in a reflection; False ends the episode."""
        return True

    def exhausted(self, episode: Episode) -> bool:
        """After a step or a reflection: is the budget spent?"""
        return False

    def finished(self, episode: Episode) -> None:
        """The episode is over."""


class Rollout:
    """Plays episodes from a FIFO queue, at most `max_active` at once.

    Args:
      policy, env, prompts: the three parties.
      config: rendering and sampling.
      max_active: episodes in flight.
    """

    def __init__(
        self, policy: Policy, env: Environment, prompts: Prompts, config: RolloutConfig,
        max_active: int,
    ):  # fmt: skip
        self.policy, self.env, self.prompts = policy, env, prompts
        self.config, self.max_active = config, max_active
        self.queue: collections.deque[Episode] = collections.deque()

    def run(self, hooks: Hooks) -> None:
        """Plays until the queue is empty; hooks may append to `self.queue`.

        Raises:
          UserError: the policy cannot serve a request.
        """
        flying: dict[int, Episode] = {}
        asking: list[Episode] = []
        while True:
            while self.queue and len(flying) + len(asking) < self.max_active:
                asking.append(self.queue.popleft())
            for episode in asking:
                flying[self.policy.submit(self._request(episode))] = episode
            if not flying:
                return
            arrived = [(flying.pop(ticket), reply) for ticket, reply in self.policy.collect()]
            if self.env.has_workers:
                self.policy.launch()  # the others decode while the environment's workers play
            asking = self._take_in(arrived, hooks)

    def _take_in(
        self, arrived: Sequence[tuple[Episode, Completion]], hooks: Hooks
    ) -> list[Episode]:
        """Plays the actions that have come and returns the episodes that go on."""
        for _, completion in arrived:
            if completion.finish_reason == "error":
                raise UserError(completion.error)
        acting = [pair for pair in arrived if pair[1].ids and not pair[0].reflecting]
        actions = [self.prompts.parse_action(completion.text) for _, completion in acting]
        played = self.env.step_many(
            [
                (episode.state, action)
                for (episode, _), (action, _) in zip(acting, actions, strict=True)
            ]
        )
        moves = {
            id(episode): (*action, *result)
            for (episode, _), action, result in zip(acting, actions, played, strict=True)
        }
        going = []
        for episode, completion in arrived:
            if self._advance(episode, completion, moves.get(id(episode)), hooks):
                going.append(episode)
            else:
                self.policy.release(episode.session)
                hooks.finished(episode)
        return going

    # -- one request -----------------------------------------------------------------------------
    def _shown(self, episode: Episode) -> str | None:
        """The experience in this step's prompt, if any."""
        node = episode.node
        first = node.branch_step or 1
        if node.experience is None:
            return None
        if episode.step == first:
            return node.experience
        # In window mode nothing stays in the context by itself: it is shown again every step.
        if self.config.mode == "window" and self.config.experience_span == "branch":
            return node.experience
        return None

    def _text(self, episode: Episode, experience: str | None) -> str:
        if self.config.mode == "dialogue":
            return self.prompts.observation(episode.step, episode.observation, experience)
        shown = episode.turns[max(0, len(episode.turns) - self.config.window) :]
        return self._window(episode, shown, experience, self.env.shown_actions(episode.state))

    def _window(
        self,
        episode: Episode,
        shown: Sequence[Turn],
        experience: str | None,
        actions: Sequence[str] | str | None,
    ) -> str:
        first = episode.turns[0].observation if episode.turns else episode.observation
        return self.prompts.window(
            first,
            [(t.observation, t.action) for t in shown],
            episode.step,
            episode.observation,
            experience,
            self.env.goal(first),
            actions,
        )

    def _request(self, episode: Episode) -> Request:
        config = self.config
        if episode.session is None:
            episode.session = self.policy.start()
        if episode.reflecting:
            return self._reflection_request(episode)
        if config.mode == "window":
            self.policy.rewind(episode.session, 0)
        episode.lengths.append(self.policy.length(episode.session))
        experience = self._shown(episode)
        seed = seed_for(config.seed, config.purpose, episode.name, episode.step)
        return Request(
            episode.session,
            self._text(episode, experience),
            self._text(episode, None) if experience is not None else None,
            config.max_action_tokens,
            config.sampling,
            seed,
        )

    def _reflection_request(self, episode: Episode) -> Request:
        config = self.config
        # In window mode the history has to be rendered for the reflection: the whole of it.
        history = ""
        if config.mode == "window":
            self.policy.rewind(episode.session, 0)
            history = self._window(episode, episode.turns, None, None)
        text = self.prompts.reflection(episode.step, episode.observation, history)
        seed = seed_for(config.seed, config.purpose, episode.name, episode.step, "reflect")
        length = self.policy.length(episode.session)
        episode.lengths.append(length)
        return Request(
            episode.session, text, None, config.max_reflection_tokens, config.sampling, seed
        )

    # -- one reply -------------------------------------------------------------------------------
    def _advance(
        self, episode: Episode, completion: Completion, move: tuple | None, hooks: Hooks
    ) -> bool:
        """Takes in a reply; False when the episode is over.

        `move` is (action, well-formed, state, result) where the reply was an action.
        """
        budget = episode.budget
        budget.generated_tokens += len(completion.ids)
        budget.prefilled_tokens += completion.prefilled
        budget.cached_tokens += completion.cached
        if episode.reflecting:
            budget.reflections += completion.finish_reason != "context"
            episode.reflecting = False
            # The reflection is no part of the trajectory: environment and cache stay where they
            # were before it.
            self.policy.rewind(episode.session, episode.lengths.pop())
            if not hooks.reflected(episode, completion) or episode.state.done:
                return False
            return self._affords(episode, hooks)
        if move is None:
            episode.node.stop = "context"
            episode.lengths.pop()
            return False
        self._step(episode, completion, *move)
        if not self._affords(episode, hooks):
            return False
        if hooks.reflect_now(episode):
            episode.reflecting = True
            return True
        return not episode.state.done

    @staticmethod
    def _affords(episode: Episode, hooks: Hooks) -> bool:
        if hooks.exhausted(episode):
            episode.node.stop = episode.node.stop or "budget"
            return False
        return True

    def _step(self, episode, completion, action, well_formed, state, result) -> None:
        node = episode.node
        plain = completion.plain_prompt_ids
        turn = Turn(
            step=episode.step,
            observation=episode.observation,
            experience=node.experience if plain is not None else None,
            prompt_ids=list(completion.prompt_ids),
            plain_prompt_ids=None if plain is None else list(plain),
            action_ids=list(completion.ids),
            logprobs=list(completion.logprobs),
            text=completion.text,
            action=action,
            valid=well_formed and bool(result.info.get("valid", True)),
            reward=result.reward,
            sampled_logprobs=_list(completion.sampled_logprobs),
        )
        episode.states.append(episode.state)
        episode.turns.append(turn)
        node.turns.append(turn)
        if plain is not None and self.config.experience_span == "step":
            if self.config.mode == "dialogue":
                # From here on the conversation reads as if e had never been said.
                self.policy.rewind(episode.session, episode.lengths[-1])
                self.policy.append(episode.session, [*plain, *completion.ids])
        episode.state, episode.observation = state, result.observation
        episode.budget.env_steps += 1
        node.return_ += result.reward
        node.final_observation = result.observation
        node.success, node.done = state.success, state.done
        if state.done:
            node.stop = "success" if state.success else "failure"


def _list(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else list(values)


def branch(policy: Policy, parent: Episode, tau: int, node: Node, name: str) -> Episode:
    """A new episode at h_tau: environment state and conversation as they were before a_tau.

    Args:
      policy: owner of the sessions.
      parent: the episode to leave; it must still have its session.
      tau: 1-based step, at most the number of steps taken.
      node: record of the new trajectory.
      name: stable name for the sampling keys.
    """
    node.return_ = sum(t.reward for t in parent.turns[: tau - 1])
    return Episode(
        node=node,
        name=name,
        state=parent.states[tau - 1],
        observation=parent.turns[tau - 1].observation,
        states=parent.states[: tau - 1],
        turns=parent.turns[: tau - 1],
        lengths=parent.lengths[: tau - 1],
        session=policy.fork(parent.session, parent.lengths[tau - 1]),
        budget=parent.budget,
        owner=parent.owner,
    )
