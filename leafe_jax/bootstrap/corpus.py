"""Conversations of scripted players with known bad habits, which the base model learns from.

Each player is aware of a habit with a small, graded probability unless an experience in its context
tells it. Only tasks of the split "bootstrap" are played; no evaluation and no stage 1 uses them.
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
from envs.prompts import Prompts, PromptsConfig
from leafe_jax.errors import UserError

SPLIT = "bootstrap"
Turn = dict[str, Any]  # {"role", "text", "trained"}


@dataclasses.dataclass(frozen=True)
class Game:
    """One of `config.bootstrap.games`.

    Attributes:
      name: the environment's.
      config: its section (weight, horizon, prompt_style, options, family_weights, slip_rate,
        unaided_rates).
      player: plays it.
      prompts: of the environment.
      tasks: of the split "bootstrap", by family.
    """

    name: str
    config: Any
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
def open_games(config) -> Iterator[list[Game]]:
    """The games of `config.bootstrap` with a weight above 0; their environments are closed after use.

    Raises:
      UserError: a field of a game's section is wrong.
      EnvDataError: an option of an environment is wrong.
    """
    with contextlib.ExitStack() as stack:
        games = []
        for name, section in sorted(config.bootstrap.games.items()):
            if section.weight > 0:
                env = envs.make(name, horizon=section.horizon, **section.options.to_dict())
                stack.enter_context(contextlib.closing(env))
                games.append(_open_game(name, section, env))
        if not games:
            raise UserError("bootstrap.games: no game has a weight above 0")
        yield games


def _open_game(name: str, section, env: Environment) -> Game:
    player = make_player(env)
    if SPLIT not in env.splits:
        raise UserError(f"bootstrap.games.{name}.options: such tasks have no split {SPLIT!r}")
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
    prompts = Prompts(env, PromptsConfig(style=section.prompt_style))
    return Game(name, section, player, prompts, tasks)


# -- one conversation ------------------------------------------------------------------------------
def _first_repeat(actions: list[str]) -> int:
    """Index of the first action equal to its predecessor, or the length."""
    for index in range(1, len(actions)):
        if actions[index] == actions[index - 1]:
            return index
    return len(actions)


def draw_awareness(game: Game, scale: float, rng: random.Random) -> frozenset[str]:
    """The habits that a player is free of unasked."""
    rates = game.config.unaided_rates
    return frozenset(h for h in game.player.habits if rng.random() < scale * rates[h])


def write_conversation(game: Game, task_id: str, config, rng: random.Random) -> list[Turn]:
    """One scripted episode, as a conversation.

    A flawed player plays; if a level is drawn, its first mistake is diagnosed, the episode goes back
    to that step and goes on with the advice in the context (once or twice); finally the outcome may
    be reflected on. The mistakes themselves stay in the conversations of level 0.

    Args:
      game: what is played.
      task_id: a task of the split "bootstrap".
      config: `config.bootstrap` (rate_scale, levels, reflect_rate, tail).
      rng: the conversation's own random.Random.
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


def _render(game: Game, task_id: str, played: Played, told, slips, config, rng) -> list[Turn]:
    """The turns of an episode, up to where the conversation ends, and a reflection if one is due."""
    prompts, actions, observations = game.prompts, played.actions, played.observations
    last, reflect_at = len(actions), None
    if not played.success:
        # A failed tail repeats itself: most conversations stop soon after it starts.
        repeat = _first_repeat(actions)
        longest = min(len(actions), repeat + config.tail)
        last = min(len(actions), repeat + rng.randrange(1, 4)) if rng.random() < 0.8 else longest
        if rng.random() < config.reflect_rate:
            last = reflect_at = rng.choice([longest, longest, last, rng.randrange(1, last + 1)])
    turns: list[Turn] = []
    for step in range(1, last + 1):
        text = prompts.observation(step, observations[step - 1], told.get(step))
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


def write_corpus(config, games: list[Game], seed: int) -> Iterator[tuple[Game, list[Turn]]]:
    """`config.bootstrap.num_conversations` conversations, each seeded by its number.

    They come sorted by game and task, since some environments take their time to open a task.
    """
    drawn = []
    for number in range(config.bootstrap.num_conversations):
        rng = random.Random(stable_seed(seed, "bootstrap", number))
        (game,) = rng.choices(games, [g.config.weight for g in games])
        families = sorted(game.tasks)
        weights = [game.config.family_weights.get(family, 1.0) for family in families]
        (family,) = rng.choices(families, weights)
        task = game.tasks[family][rng.randrange(len(game.tasks[family]))]
        drawn.append((game.name, task.task_id, number, game, rng))
    for _, task_id, _, game, rng in sorted(drawn, key=lambda item: item[:3]):
        yield game, write_conversation(game, task_id, config.bootstrap, rng)


# -- statistics ------------------------------------------------------------------------------------
