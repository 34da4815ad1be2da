"""Sokoban on a laptop with the embedded base model: stage 1, evaluation and report on tiny levels.

    python -m leafe_jax.main --config=configs/sokoban.py --workdir=runs/sokoban

About a minute of CPU time for 96 trajectories and 96 episodes of evaluation. The embedded model speaks
the household's commands and no others, so it makes no move and solves nothing: this is the form to
try levels, options and prompts with, and to see the trees of report/index.html, not a result. The
benchmark is configs/sokoban_qwen2_5_7b.py.
"""

import runpy
from pathlib import Path

# Config files are executed as files, so a neighbour is not importable by name.
DEFAULT = runpy.run_path(str(Path(__file__).with_name("default.py")))


def set_options(options):
    """The environment's options, with verl-agent's values."""
    options.levels = ()  # Boxoban or XSB files to play instead of generated levels
    options.size = (6, 6)  # width and height of generated levels, walls included
    options.num_boxes = 1
    options.invalid_action = "reply"  # a reply without a move costs: "reply", "step" or "end"
    options.max_replies = 0  # moves included; 0: as many as env.horizon
    options.feedback = ()  # what is said beside the board: "invalid", "blocked", "deadlock"


def get_config(mode: str = "full"):
    c = DEFAULT["get_config"]()
    c.phases = ("explore", "evaluate", "report")
    c.env.name = "sokoban"
    set_options(c.env.options)
    c.env.options.size = (5, 5)  # the embedded model reads 1,024 tokens, four for each cell
    c.env.horizon = 4
    c.context.mode = "window"
    c.context.window = 1
    c.sampler.num_slots = 16
    c.sampler.max_len = 1024
    c.explore.num_tasks = 24
    c.explore.block_size = 12
    c.explore.max_attempts = 4
    c.explore.reflect_every = 2
    c.evaluate.methods = ("base",)
    c.evaluate.num_tasks = 12
    c.evaluate.num_samples = 8
    if mode == "smoke":
        c.explore.num_tasks = c.evaluate.num_tasks = 2
        c.explore.max_attempts = 2
        c.evaluate.num_samples = 2
    elif mode != "full":
        raise ValueError(f"--config=configs/sokoban.py:{mode}: the modes are full and smoke")
    return c
