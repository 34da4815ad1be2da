"""Sokoban as verl-agent plays it: 6x6, one box, 15 steps, a prompt rebuilt every step.

    python -m leafe_jax.main --config=configs/sokoban.py --config.model.path=DIR --workdir=runs/sokoban

Boxoban or XSB files instead of generated levels (train and test files by their names):
    --config.env.options.levels="('boxoban/medium/train/000.txt','boxoban/medium/test/000.txt')"

The embedded base model does not play Sokoban; take an instruct checkpoint.
"""

import runpy
from pathlib import Path

# Config files are executed as files, so a neighbour is not importable by name.
HOUSEHOLD_INSTRUCT = runpy.run_path(str(Path(__file__).with_name("household_instruct.py")))


def get_config(mode: str = "full"):
    c = HOUSEHOLD_INSTRUCT["get_config"](mode)
    c.env.name = "sokoban"
    c.env.options.levels = ()  # Boxoban or XSB files to play instead of generated levels
    c.env.options.size = (6, 6)  # width and height of generated levels, walls included
    c.env.options.num_boxes = 1
    c.env.horizon = 15 if mode == "full" else 4
    c.context.mode = "window"
    c.explore.reflect_every = 5 if mode == "full" else 2
    c.sampler.max_len = 2048
    return c
