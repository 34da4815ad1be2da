"""The protocol of scripted players with known bad habits, and the diagnosis of their mistakes.

The embedded base model learns from these players (leafe_jax/bootstrap/make.py), and the same diagnosis
judges its reflections (leafe_jax/bootstrap/habits.py). A player uses only what a text player sees. A
habit is a mistake that the player makes unless it is aware of it, and experience makes it aware. A
model that imitates such players therefore does right when told, and wrong when not.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from envs.base import EnvDataError, Environment


@dataclasses.dataclass
class Played:
    """One episode of a player.

    Attributes:
      actions: the actions played, step 1 first.
      observations: the observations; one more than actions.
      habits: for each step, the habit that the aware player's action depended on, or None.
      success: the goal was reached.
    """

    actions: list[str]
    observations: list[str]
    habits: list[str | None]
    success: bool


class Player(abc.ABC):
    """A scripted player of one environment, whose class names it in `player`.

    Args:
      env: the environment.
    """

    habits: tuple[str, ...] = ()
    # For the tokenizer of a model that learns from the player (leafe_jax/bootstrap/vocabulary.py).
    units: str = ""  # regular expression: names that become one token each and end a phrase
    spelt: str = ""  # regular expression: passages that are tokenized word by word

    def __init__(self, env: Environment):
        self.env = env

    # -- what a game writes --------------------------------------------------------------------
    @abc.abstractmethod
    def start(self, task_id: str, observation: str) -> Any:
        """What the player knows after the first observation: its memory, which `update` changes."""

    @abc.abstractmethod
    def update(self, memory: Any, action: str, state: Any, observation: str) -> None:
        """Adds to the memory what `action` led to: the state after it and its observation."""

    @abc.abstractmethod
    def decide(self, state: Any, memory: Any, aware: frozenset[str]) -> tuple[str, str | None]:
        """The next action, and the habit that it depends on (None: any player does the same)."""

    @abc.abstractmethod
    def advice(self, habit: str, task_id: str) -> str:
        """The experience e, one short line that makes a player of the task aware of a habit."""

    def slip(self, state: Any, rng: random.Random) -> str | None:
        """A wrong action that does no lasting harm, or None if there is none."""
        return None

    # -- what callers use ----------------------------------------------------------------------
    @property
    def all_aware(self) -> frozenset[str]:
        return frozenset(self.habits)

    def play(
        self,
        task_id: str,
        aware: frozenset[str],
        prefix: Sequence[str] = (),
        slip_rate: float = 0.0,
        rng: random.Random | None = None,
        slips: set[int] | None = None,
    ) -> Played:
        """The episode that begins with `prefix` and is then played by a player aware of `aware`.

        Args:
          task_id: the task.
          aware: habits that the player avoids.
          prefix: the first actions.
          slip_rate: probability of a slip at a step that depends on no habit.
          rng: draws the slips.
          slips: receives the 1-based steps of slips.
        """
        state, observation = self.env.reset(task_id)
        memory = self.start(task_id, observation)
        played = Played([], [observation], [], False)
        while not state.done:
            ideal, habit = self.decide(state, memory, self.all_aware)
            step = len(played.actions) + 1
            if step <= len(prefix):
                action = prefix[step - 1]
            else:
                action = ideal if aware == self.all_aware else self.decide(state, memory, aware)[0]
                # At a step that depends on a habit, a slip could not be told from the habit.
                if slip_rate and habit is None and rng.random() < slip_rate:
                    slip = self.slip(state, rng)
                    if slip is not None:
                        action = slip
                        slips.add(step)
            state, result = self.env.step(state, action)
            self.update(memory, action, state, result.observation)
            played.actions.append(action)
            played.observations.append(result.observation)
            played.habits.append(habit)
        played.success = state.success
        return played

    def next_action(self, task_id: str, actions: Sequence[str], aware: frozenset[str]) -> str:
        """The action of a player aware of `aware` after `actions`."""
        state, observation = self.env.reset(task_id)
        memory = self.start(task_id, observation)
        for action in actions:
            state, result = self.env.step(state, action)
            self.update(memory, action, state, result.observation)
        return self.decide(state, memory, aware)[0]

    def diagnose(
        self, task_id: str, actions: Sequence[str], told: Mapping[int, str]
    ) -> tuple[int, str] | None:
        """The first mistake that a bad habit caused, and the habit.

        Args:
          task_id: the task.
          actions: actions taken, step 1 first.
          told: step -> experience that was in the context from this step on.

        Returns:
          (tau, habit): at 1-based step tau the action differs from the aware player's, whose action
          depends on `habit`, and no experience about it had been given. None if there is no such step.
        """
        state, observation = self.env.reset(task_id)
        memory = self.start(task_id, observation)
        heard: set[str] = set()
        for step, action in enumerate(actions, start=1):
            if state.done:
                return None
            if step in told:
                heard.add(told[step])
            ideal, habit = self.decide(state, memory, self.all_aware)
            if habit is not None and self.differs(action, ideal):
                if self.advice(habit, task_id) not in heard:
                    return step, habit
            state, result = self.env.step(state, action)
            self.update(memory, action, state, result.observation)
        return None

    def differs(self, action: str, ideal: str) -> bool:
        """True if an action is not the aware player's."""
        return action != ideal


def make_player(env: Environment) -> Player:
    """The scripted player of an environment.

    Raises:
      EnvDataError: it has none, or none for its options.
    """
    if not env.player:
        raise EnvDataError(f"env.name = {env.name!r}: has no scripted player")
    module, _, attribute = env.player.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        reason = f"{env.name}: player = {env.player!r} cannot be imported: {error}"
        raise EnvDataError(reason) from error
    return kind(env)
