"""Prints statistics of a config's corpus: sizes in tokens, and success rates of the players.

python -m leafe_jax.bootstrap.statistics --config=configs/bootstrap.py
"""

from __future__ import annotations

import collections
import random
import sys

from envs.base import EnvDataError, stable_seed
from leafe_jax.bootstrap.config import BootstrapConfig
from leafe_jax.bootstrap.corpus import Game, Turn, draw_awareness, open_games, write_corpus
from leafe_jax.errors import UserError
from leafe_jax.runtime.settings import build


def token_statistics(corpus: list[tuple[str, list[Turn]]], chat) -> dict[str, dict[str, float]]:
    """Sizes of each game's conversations, in tokens.

    Args:
      corpus: (game, conversation) pairs.
      chat: ChatFormat of the corpus's tokenizer.

    Returns:
      {game: {"conversations": their number, "median", "p95", "max": tokens of a conversation, "tokens":
      of all conversations, "spelt": share of tokens that are bytes of a word without an entry, 0 to 1,
      "cut": number of conversations longer than the model's context}}
    """
    from leafe_jax.bootstrap.examples import MAX_POSITIONS, to_example
    from leafe_jax.bootstrap.vocabulary import spelt_share

    lengths = collections.defaultdict(list)
    texts = collections.defaultdict(list)
    for game, turns in corpus:
        lengths[game].append(len(to_example(turns, chat, 0.0, sys.maxsize).ids))
        texts[game] += [turn["text"] for turn in turns]
    table = {}
    for game, found in sorted(lengths.items()):
        found.sort()
        table[game] = {
            "conversations": len(found),
            "median": found[len(found) // 2],
            "p95": found[len(found) * 95 // 100],
            "max": found[-1],
            "tokens": sum(found),
            "cut": sum(length > MAX_POSITIONS for length in found),
            "spelt": spelt_share(chat.tokenizer, texts[game]),
        }
    return table


def player_statistics(game: Game, scale: float, num_tasks: int, seed: int) -> dict[str, float]:
    """Success rates of a game's player on tasks of the split "bootstrap".

    Args:
      game: the game to play.
      scale: `bootstrap.rate_scale`.
      num_tasks: number of tasks to draw.
      seed: for the draw.

    Returns:
      "aware": rate of the player without bad habits. "unaided": rate of the player that avoids habits at
      random and is told nothing. For each habit: rate of the player with only this habit, on the tasks
      where the habit changes its actions; NaN if there are none.
    """
    rng = random.Random(stable_seed(seed, "players", game.name))
    tasks = [task for family in game.tasks.values() for task in family]
    tasks = rng.sample(tasks, min(num_tasks, len(tasks)))
    player = game.player
    tallies: dict[str, list[bool]] = {"aware": [], "unaided": [], **{h: [] for h in player.habits}}
    for task in sorted(tasks, key=lambda task: task.task_id):
        ideal = player.play(task.task_id, player.all_aware)
        tallies["aware"].append(ideal.success)
        graded = player.play(task.task_id, draw_awareness(game, scale, rng))
        tallies["unaided"].append(graded.success)
        for habit in dict.fromkeys(h for h in ideal.habits if h):
            other = player.play(task.task_id, player.all_aware - {habit})
            if other.actions != ideal.actions:
                tallies[habit].append(other.success)
    return {k: sum(v) / len(v) if v else float("nan") for k, v in tallies.items()}


def main(argv: list[str]) -> int:
    """Prints both statistics. Returns 0, or 2 after one line on stderr about an error the user can fix."""
    from absl import flags
    from ml_collections import config_flags

    from leafe_jax.agent.chat import ChatFormat
    from leafe_jax.bootstrap.vocabulary import build_tokenizer

    values = flags.FlagValues()
    config_flag = config_flags.DEFINE_config_file(
        "config", "configs/bootstrap.py", "Config file with a bootstrap section.",
        lock_config=True, flag_values=values,
    )  # fmt: skip
    num_tasks = flags.DEFINE_integer("tasks", 200, "Tasks per game.", flag_values=values)
    try:
        values(argv)
        whole = values[config_flag.name].value
        config, seed = build(BootstrapConfig, whole.bootstrap.to_dict(), "bootstrap"), whole.seed
        with open_games(config) as games:
            corpus = [(g.name, turns) for g, turns in write_corpus(config, games, seed)]
            tokenizer = build_tokenizer([turns for _, turns in corpus], config.min_count, games)
            print(f"vocabulary: {len(tokenizer)} tokens")
            table = token_statistics(corpus, ChatFormat(tokenizer))
            print("game      conversations  tokens  median  95%  max  cut  spelt")
            for name, row in table.items():
                print(
                    f"{name:10s}{row['conversations']:13d}{row['tokens']:8d}{row['median']:8d}"
                    f"{row['p95']:5d}{row['max']:5d}{row['cut']:5d}{100 * row['spelt']:6.1f}%"
                )
            for game in games:
                rates = player_statistics(game, config.rate_scale, num_tasks.value, seed)
                cells = "  ".join(f"{name} {100 * rate:.1f}%" for name, rate in rates.items())
                print(f"{game.name}: {cells}")
    except (UserError, EnvDataError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
