"""Plays many episodes concurrently; each asks the policy as soon as its environment has answered.

The loop does not depend on a model or an environment. An episode keeps every state it went through,
so rolling back is reusing an old state. For each turn it also keeps the length of the conversation
before it, so the KV cache can be rewound to the same point.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from envs.base import Environment, State, StepResult
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
      experience_span: "branch" (e stays in the context) or "step" (only at step tau). Both modes show
        the same e at the same steps.
      sampling: how tokens of actions and reflections are drawn.
      max_action_tokens: limit on an action's sampled tokens; PromptsConfig has that of a reflection.
      seed: the run's seed.
      purpose: "explore", "evaluate" (the same for every method) or "habits/..."; part of the name of
        every sampling key.
    """

    mode: str
    window: int
    experience_span: str
    sampling: Sampling
    max_action_tokens: int
    seed: int
    purpose: str


@dataclasses.dataclass(eq=False)
class Episode:
    """A trajectory being played.

    Attributes:
      node: record of this trajectory's own turns.
      name: stable name, part of the sampling keys.
      state, observation: the current ones.
      states: state before each step; states[t - 1] precedes a_t. Includes the shared prefix.
      turns: all turns of the path, including the shared prefix.
      lengths: session length in tokens before each turn's prompt.
      told: (step, e) pairs: the experiences on this path and the step that each was given for, in order.
      session: the conversation; None until the first request.
      budget: where the episode books what it spends; in a search, the tree's.
      owner: the tree or task it belongs to; the loop does not use it.
      reflecting: the next request asks for a reflection. It uses the episode's own session, which is
        rewound afterwards.
    """

    node: Node
    name: str
    state: Any
    observation: str
    states: list[Any] = dataclasses.field(default_factory=list)
    turns: list[Turn] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    told: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    session: Any = None
    budget: Budget = dataclasses.field(default_factory=Budget)
    owner: Any = None
    reflecting: bool = False

    @property
    def step(self) -> int:
        """The 1-based number of the next action."""
        return len(self.turns) + 1


class Hooks:
    """Decisions of whoever drives the rollout; the defaults play every episode to its end."""

    def reflect_now(self, episode: Episode) -> bool:
        """After a step: is a reflection due?"""
        return False

    def reflected(self, episode: Episode, completion: Completion) -> bool:
        """Handles a reflection; False ends the episode."""
        return True

    def question(self, episode: Episode, history: str) -> str | None:
        """What is asked in place of p_refl (None: that); `history` as in `Prompts.reflection`."""
        return None

    def declines(self, episode: Episode, action: str) -> bool:
        """Is this action not to be played? Then the episode ends before it."""
        return False

    def leaves(self, episode: Episode) -> bool:
        """After a step that asks no reflection: does the episode end here, though its game goes on?"""
        return False

    def exhausted(self, episode: Episode) -> bool:
        """After a step or a reflection: is the budget spent?"""
        return False

    def finished(self, episode: Episode) -> None:
        """The episode is over."""


class Rollout:
    """Plays episodes from a FIFO queue, at most `policy.num_slots` at once.

    Args:
      policy, env, prompts: who plays, what is played, and how it is put into words.
      config: how turns are rendered and sampled.
    """

    def __init__(self, policy: Policy, env: Environment, prompts: Prompts, config: RolloutConfig):
        self.policy, self.env, self.prompts, self.config = policy, env, prompts, config
        self.queue: collections.deque[Episode] = collections.deque()

    def run(self, hooks: Hooks) -> None:
        """Plays until the queue is empty. Hooks may append to `self.queue`.

        Raises:
          UserError: the policy cannot serve a request.
        """
        flying: dict[int, Episode] = {}
        asking: list[Episode] = []
        while True:
            while self.queue and len(flying) + len(asking) < self.policy.num_slots:
                asking.append(self.queue.popleft())
            for episode in asking:
                flying[self.policy.submit(self._request(episode, hooks))] = episode
            if not flying:
                return
            arrived = [(flying.pop(ticket), reply) for ticket, reply in self.policy.collect()]
            if self.env.has_workers:
                self.policy.launch()  # other episodes decode while the workers play
            asking = self._take_in(arrived, hooks)

    def _take_in(
        self, arrived: Sequence[tuple[Episode, Completion]], hooks: Hooks
    ) -> list[Episode]:
        """Plays the actions that have arrived; returns the episodes that continue."""
        for _, completion in arrived:
            if completion.finish_reason == "error":
                raise UserError(completion.error)
        acting, actions = [], []
        for episode, completion in arrived:
            if completion.ids and not episode.reflecting:
                action = self.prompts.parse_action(completion.text)
                if not hooks.declines(episode, action[0]):
                    acting.append((episode, completion))
                    actions.append(action)
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
    def _shown(self, episode: Episode) -> list[tuple[int, str]]:
        """The experiences that the next message has to show, as in `Episode.told`."""
        # A window is rebuilt every step, so it shows again what a conversation would still hold.
        if self.config.mode == "window" and self.config.experience_span == "branch":
            return episode.told
        return [(step, e) for step, e in episode.told if step == episode.step]

    def _text(self, episode: Episode, told: Sequence[tuple[int, str]]) -> str:
        if self.config.mode == "dialogue":
            return self.prompts.observation(episode.step, episode.observation, told)
        shown = episode.turns[max(0, len(episode.turns) - self.config.window) :]
        return self._window(episode, shown, told, self.env.shown_actions(episode.state))

    def _window(
        self,
        episode: Episode,
        shown: Sequence[Turn],
        told: Sequence[tuple[int, str]],
        actions: Sequence[str] | str | None,
    ) -> str:
        first = episode.turns[0].observation if episode.turns else episode.observation
        return self.prompts.window(
            first,
            [(t.observation, t.action) for t in shown],
            episode.step,
            episode.observation,
            told,
            self.env.goal(first),
            actions,
        )

    def _request(self, episode: Episode, hooks: Hooks) -> Request:
        config = self.config
        if episode.session is None:
            episode.session = self.policy.start()
        if episode.reflecting:
            return self._reflection_request(episode, hooks)
        if config.mode == "window":
            self.policy.rewind(episode.session, 0)
        episode.lengths.append(self.policy.length(episode.session))
        told = self._shown(episode)
        seed = seed_for(config.seed, config.purpose, episode.name, episode.step)
        return Request(
            episode.session,
            self._text(episode, told),
            self._text(episode, ()) if told else None,
            config.max_action_tokens,
            config.sampling,
            seed,
        )

    def _reflection_request(self, episode: Episode, hooks: Hooks) -> Request:
        config = self.config
        # A window holds the last steps only. A reflection needs all of them, and the e being followed.
        history = ""
        if config.mode == "window":
            self.policy.rewind(episode.session, 0)
            history = self._window(episode, episode.turns, self._shown(episode), None)
        text = hooks.question(episode, history)
        if text is None:
            text = self.prompts.reflection(episode.step, episode.observation, history)
        seed = seed_for(config.seed, config.purpose, episode.name, episode.step, "reflect")
        length = self.policy.length(episode.session)
        episode.lengths.append(length)
        return Request(
            episode.session,
            text,
            None,
            self.prompts.config.reflection_tokens,
            config.sampling,
            seed,
        )

    def force(self, episode: Episode, action: str) -> None:
        """Plays an action that somebody else chose, without asking the policy. The turn has the ids of a
        reply that says it, and log-probabilities of 0: no model sampled it."""
        request = self._request(episode, Hooks())
        encoder, session = self.policy.encoder, episode.session
        ids = encoder.turn(self.policy.ids(session), request.text)
        reply = self.prompts.format_action(action)
        said = encoder.reply(reply)
        self.policy.append(session, [*ids, *said])
        given = Completion(reply, ids, None, said, (0.0,) * len(said), "stop", 0, 0)
        parsed, well_formed = self.prompts.parse_action(reply)
        state, result = self.env.step(episode.state, parsed)
        self._step(episode, given, parsed, well_formed, state, result)

    # -- one reply -------------------------------------------------------------------------------
    def _advance(
        self, episode: Episode, completion: Completion, move: tuple | None, hooks: Hooks
    ) -> bool:
        """Handles a reply; False if the episode is over.

        Args:
          episode: whose reply it is.
          completion: the reply.
          move: (action, well-formed, state, result) if the reply was an action that is played, or None.
          hooks: the driver.
        """
        budget = episode.budget
        budget.generated_tokens += len(completion.ids)
        budget.prefilled_tokens += completion.prefilled
        budget.cached_tokens += completion.cached
        if episode.reflecting:
            budget.reflections += completion.finish_reason != "context"
            episode.reflecting = False
            # The reflection is not part of the trajectory, so the cache goes back to before it.
            self.policy.rewind(episode.session, episode.lengths.pop())
            if not hooks.reflected(episode, completion) or episode.state.done:
                return False
            return self._affords(episode, hooks)
        if move is None:
            episode.node.stop = episode.node.stop or "context"
            episode.lengths.pop()
            return False
        self._step(episode, completion, *move)
        if not self._affords(episode, hooks):
            return False
        if hooks.reflect_now(episode):
            episode.reflecting = True
            return True
        return not (episode.state.done or hooks.leaves(episode))

    @staticmethod
    def _affords(episode: Episode, hooks: Hooks) -> bool:
        if hooks.exhausted(episode):
            episode.node.stop = episode.node.stop or "budget"
            return False
        return True

    def _step(
        self,
        episode: Episode,
        completion: Completion,
        action: str,
        well_formed: bool,
        state: State,
        result: StepResult,
    ) -> None:
        """Appends a turn and moves the episode to its new state."""
        node = episode.node
        plain = completion.plain_prompt_ids
        turn = Turn(
            step=episode.step,
            observation=episode.observation,
            experiences=[e for _, e in self._shown(episode)],
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
                # From here on, the conversation reads as if e had not been shown.
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


def branch(
    policy: Policy, parent: Episode, tau: int, node: Node, name: str, experience: str | None
) -> Episode:
    """A new episode at h_tau, with environment state and conversation from before a_tau.

    Args:
      policy: owner of the sessions.
      parent: the episode to branch from; its session must not be released yet.
      tau: 1-based step, at most the number of steps taken.
      node: record of the new trajectory.
      name: stable name for the sampling keys.
      experience: e, shown from step tau on; None shows none. What was told at tau or later is gone.
    """
    node.return_ = sum(t.reward for t in parent.turns[: tau - 1])
    told = [(step, e) for step, e in parent.told if step < tau]
    return Episode(
        node=node,
        name=name,
        state=parent.states[tau - 1],
        observation=parent.turns[tau - 1].observation,
        states=parent.states[: tau - 1],
        turns=parent.turns[: tau - 1],
        lengths=parent.lengths[: tau - 1],
        told=told if experience is None else [*told, (tau, experience)],
        session=policy.fork(parent.session, parent.lengths[tau - 1]),
        budget=parent.budget,
        owner=parent.owner,
    )
