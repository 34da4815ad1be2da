"""The corpus that the base model learns from: conversations of scripted players with bad habits.

A player avoids a habit with a small probability that depends on the habit, or if an experience in its
context tells it to. Only tasks of the split "bootstrap" are played; neither evaluation nor stage 1 uses
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import envs
from envs.base import Environment, Task, stable_seed
from envs.player import Played, Player, make_player
from envs.prompts import Prompts
from leafe_jax.bootstrap.config import BootstrapConfig, GameConfig
from leafe_jax.errors import UserError

SPLIT = "bootstrap"
Turn = dict[str, Any]  # {"role", "text", "trained"}


@dataclasses.dataclass(frozen=True)
class Game:
    """One of `config.bootstrap.games`.

    Attributes:
      name: of the environment.
      config: section of the game.
      player: its scripted player.
      prompts: of the environment.
      tasks: family -> tasks of the split "bootstrap".
    """

    name: str
    config: GameConfig
    player: Player
    prompts: Prompts
    tasks: dict[str, list[Task]]

    @property
    def env(self) -> Environment:
        return self.player.env

    @property
    def units(self) -> str:
        return self.player.units

    @property
    def spelt(self) -> str:
        return self.player.spelt


@contextlib.contextmanager
def open_games(config: BootstrapConfig) -> Iterator[list[Game]]:
    """A context with the games that have a weight above 0. Leaving it closes their environments.

    Raises:
      UserError: a field in a game's section is invalid.
      EnvDataError: an option of an environment is invalid.
    """
    with contextlib.ExitStack() as stack:
        games = []
        for name, section in sorted(config.games.items()):
            if section.weight > 0:
                env = envs.make(name, horizon=section.horizon, **section.options)
                stack.enter_context(contextlib.closing(env))
                games.append(_open_game(name, section, env))
        if not games:
            raise UserError("bootstrap.games: no game has a weight above 0")
        yield games


def _open_game(name: str, section: GameConfig, env: Environment) -> Game:
    player = make_player(env)
    if SPLIT not in env.splits:
        raise UserError(f"bootstrap.games.{name}.options: these tasks have no split {SPLIT!r}")
    tasks: dict[str, list[Task]] = {}
    for task in env.list_tasks(SPLIT):
        tasks.setdefault(task.family, []).append(task)
    for field, given, allowed in (
        ("unaided_rates", section.unaided_rates, player.habits),
        ("family_weights", section.family_weights, tasks),
    ):
        for key in given:
            if key not in allowed:
                raise UserError(
                    f"bootstrap.games.{name}.{field}: {key!r} must be one of {', '.join(allowed)}"
                )
    missing = [habit for habit in player.habits if habit not in section.unaided_rates]
    if missing:
        raise UserError(f"bootstrap.games.{name}.unaided_rates: {', '.join(missing)} missing")
    prompts = Prompts(env, section.prompts)
    return Game(name, section, player, prompts, tasks)


# -- one conversation ------------------------------------------------------------------------------
def _first_repeat(actions: list[str]) -> int:
    """Index of the first action equal to its predecessor, or the length."""
    for index in range(1, len(actions)):
        if actions[index] == actions[index - 1]:
            return index
    return len(actions)


def draw_awareness(game: Game, scale: float, rng: random.Random) -> frozenset[str]:
    """The habits that a player avoids without being told: each with probability scale * its rate."""
    rates = game.config.unaided_rates
    return frozenset(h for h in game.player.habits if rng.random() < scale * rates[h])


def write_conversation(
    game: Game, task_id: str, config: BootstrapConfig, rng: random.Random
) -> list[Turn]:
    """One scripted episode, as a conversation.

    A player with bad habits plays the task. A level is drawn: the number of mistakes to correct. For each,
    the first mistake is diagnosed, the episode goes back to that step and continues with the advice in
    the context. A failed episode may end with a reflection. At level 0 the mistakes stay in the
    conversation.

    Args:
      game: the game to play.
      task_id: a task of the split "bootstrap".
      config: rate_scale, levels, reflect_rate and tail.
      rng: for this conversation only.
    """
    player = game.player
    aware = draw_awareness(game, config.rate_scale, rng)
    level = rng.choices(range(len(config.levels)), weights=config.levels)[0]
    told: dict[int, str] = {}
    prefix: list[str] = []
    slips: set[int] = set()
    while True:
        played = player.play(task_id, aware, prefix, game.config.slip_rate, rng, slips)
        if played.success or len(told) == level:
            break
        mistake = player.diagnose(task_id, played.actions, told)
        if mistake is None or mistake[0] in told:
            break
        tau, habit = mistake
        told[tau] = player.advice(habit, task_id)
        aware = aware | {habit}
        prefix = played.actions[: tau - 1]
        slips = {s for s in slips if s < tau}
    return _render(game, task_id, played, told, slips, config, rng)


def _render(
    game: Game, task_id: str, played: Played, told: dict[int, str], slips: set[int],
    config: BootstrapConfig, rng: random.Random,
) -> list[Turn]:  # fmt: skip
    """The turns of an episode, cut where the conversation ends, and a reflection if one was drawn."""
    prompts, actions, observations = game.prompts, played.actions, played.observations
    last, reflect_at = len(actions), None
    if not played.success:
        # The end of a failed episode repeats itself, so most conversations stop soon after it starts to.
        repeat = _first_repeat(actions)
        longest = min(len(actions), repeat + config.tail)
        last = min(len(actions), repeat + rng.randrange(1, 4)) if rng.random() < 0.8 else longest
        if rng.random() < config.reflect_rate:
            last = reflect_at = rng.choice([longest, longest, last, rng.randrange(1, last + 1)])
    turns: list[Turn] = []
    for step in range(1, last + 1):
        shown = [(step, told[step])] if step in told else []
        text = prompts.observation(step, observations[step - 1], shown)
        turns.append({"role": "user", "text": text, "trained": False})
        reply = prompts.format_action(actions[step - 1])
        turns.append({"role": "assistant", "text": reply, "trained": step not in slips})
    if reflect_at is not None:
        text = prompts.reflection(last + 1, observations[last])
        turns.append({"role": "user", "text": text, "trained": False})
        mistake = game.player.diagnose(task_id, actions[:last], told)
        reply = "no mistake."
        if mistake is not None:
            reply = prompts.format_reflection(mistake[0], game.player.advice(mistake[1], task_id))
        turns.append({"role": "assistant", "text": reply, "trained": True})
    return turns


def write_corpus(
    config: BootstrapConfig, games: list[Game], seed: int
) -> Iterator[tuple[Game, list[Turn]]]:
    """Yields `config.num_conversations` conversations, each seeded by its number.

    They are sorted by game and task, because some environments are slow to open a task.
    """
    drawn = []
    for number in range(config.num_conversations):
        rng = random.Random(stable_seed(seed, "bootstrap", number))
        (game,) = rng.choices(games, [g.config.weight for g in games])
        families = sorted(game.tasks)
        weights = [game.config.family_weights.get(family, 1.0) for family in families]
        (family,) = rng.choices(families, weights)
        task = game.tasks[family][rng.randrange(len(game.tasks[family]))]
        drawn.append((game.name, task.task_id, number, game, rng))
    for _, task_id, _, game, rng in sorted(drawn, key=lambda item: item[:3]):
        yield game, write_conversation(game, task_id, config, rng)
