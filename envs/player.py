"""The protocol of scripted players with known bad habits, and the diagnosis of what went wrong.

The embedded base model learns from these players (leafe_jax/bootstrap/make.py), and its reflections are
judged by the same diagnosis (leafe_jax/bootstrap/habits.py). A player goes by what a text player sees. Each
habit is a thing it fails to do unless it is aware of it; a piece of experience makes it aware. So a
model that imitates graded players knows when told what it does not do unasked.
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
      actions: what was done, step 1 first.
      observations: what was read; one more than actions.
      habits: for each step the habit that the aware player's action hung on, or None.
      success: the goal was reached.
    """

    actions: list[str]
    observations: list[str]
    habits: list[str | None]
    success: bool


class Player(abc.ABC):
    """A scripted player of one environment; its class names it in `player`.

    Args:
      env: the environment; its tasks are the player's.
    """

    habits: tuple[str, ...] = ()
    # For the tokenizer of a model that learns from the player (leafe_jax/bootstrap/vocabulary.py).
    units: str = ""  # regular expression: names that are one token each and end a phrase
    spelt: str = ""  # regular expression: stretches that are read word by word

    def __init__(self, env: Environment):
        self.env = env

    # -- what a game writes --------------------------------------------------------------------
    @abc.abstractmethod
    def start(self, task_id: str, observation: str) -> Any:
        """What the player knows after the first observation: its memory, changed by `update`."""

    @abc.abstractmethod
    def update(self, memory: Any, action: str, state: Any, observation: str) -> None:
        """Takes in what `action` brought: the state after it and its observation."""

    @abc.abstractmethod
    def decide(self, state: Any, memory: Any, aware: frozenset[str]) -> tuple[str, str | None]:
        """The next action, and the habit that it hangs on (None: any player does the same)."""

    @abc.abstractmethod
    def advice(self, habit: str, task_id: str) -> str:
        """The experience e, one short line, that makes a player of the task aware of a habit."""

    def slip(self, state: Any, rng: random.Random) -> str | None:
        """A wrong turn that spoils nothing, or None where there is none."""
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
        """Replays `prefix` and goes on to the end as a player aware of `aware`.

        Args:
          task_id: the task.
          aware: habits that the player is free of.
          prefix: actions to begin with.
          slip_rate: chance of a slip at a step that no habit decides.
          rng: what draws slips.
          slips: gets the 1-based steps of slips.
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
                # A slip where a habit decides would be indistinguishable from the habit.
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
        """What a player aware of `aware` does after `actions`."""
        state, observation = self.env.reset(task_id)
        memory = self.start(task_id, observation)
        for action in actions:
            state, result = self.env.step(state, action)
            self.update(memory, action, state, result.observation)
        return self.decide(state, memory, aware)[0]

    def diagnose(
        self, task_id: str, actions: Sequence[str], told: Mapping[int, str]
    ) -> tuple[int, str] | None:
        """The first step that a bad habit spoilt, and which habit.

        Args:
          task_id: the task.
          actions: actions taken, step 1 first.
          told: experience shown, by the step from which it was in the context.

        Returns:
          (tau, habit): at 1-based step tau the action was not the aware player's, and the aware
          player's own action hangs on `habit`, of which the player had not been told; or None when
          no habit spoilt anything.
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
        """Whether an action is another than the aware player's."""
        return action != ideal


def make_player(env: Environment) -> Player:
    """The scripted player of an environment.

    Raises:
      EnvDataError: the environment has none, or not with its options.
    """
    if not env.player:
        raise EnvDataError(f"env.name = {env.name!r}: has no scripted player")
    module, _, attribute = env.player.partition(":")
    return getattr(importlib.import_module(module), attribute)(env)
