"""Sokoban on a laptop: 6x6 levels with one box that take at least four moves, the whole method.

    python -m leafe_jax.main --config=configs/sokoban.py --workdir=runs/sokoban

The embedded base model has learnt this game (docs/BASE_MODEL.md). The benchmark is
configs/sokoban_qwen2_5_7b.py.
"""

from leafe_jax.run.presets import laptop


def set_options(options):
    """The environment's options, with verl-agent's values."""
    options.levels = ()  # Boxoban or XSB files to play instead of generated levels
    options.size = (6, 6)  # width and height of generated levels, walls included
    options.num_boxes = 1
    options.min_moves = 0  # leaves out generated levels that fewer moves solve
    options.invalid_action = "reply"  # a reply without a move costs: "reply", "step" or "end"
    options.max_replies = 0  # moves included; 0: as many as env.horizon
    options.feedback = ()  # what is said beside the board: "invalid", "blocked", "deadlock"


def get_config(mode: str = "full"):
    c = laptop("sokoban", mode)
    set_options(c.env.options)
    c.env.options.min_moves = 4  # shorter ones are solved by chance
    c.env.horizon = 15
    c.sampler.turn_chunk = 48  # a board is 45 tokens
    return c
