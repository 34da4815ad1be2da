"""Sokoban on a laptop: 6x6 levels with one box that take at least four moves, the whole method.

    python -m leafe_jax.main --config=configs/sokoban.py --workdir=runs/sokoban

The embedded base model has learnt this game (docs/BASE_MODEL.md). The benchmark is
configs/sokoban_qwen2_5_7b.py.
"""

from leafe_jax.run.presets import laptop


def get_config(mode: str = "full"):
    c = laptop("sokoban", mode)
    c.env.options.min_moves = 4  # shorter ones are solved by chance
    c.env.horizon = 15
    c.gigpo.advantage = "mean"  # verl-agent: of WebShop and Sokoban
    c.sampler.turn_chunk = 48  # a board is 45 tokens
    return c
