"""Sokoban as verl-agent plays it: 6x6, one box, 15 steps, a prompt rebuilt every step.

    python -m leafe_jax.main --config=configs/sokoban.py --config.model.path=DIR --workdir=runs/sokoban

Boxoban or XSB files instead of generated levels (train and test files by their names):
    --config.env.levels="('boxoban/medium/train/000.txt','boxoban/medium/test/000.txt')"

The embedded base model does not play Sokoban; take an instruct checkpoint.
"""

import importlib.util
from pathlib import Path


def _instruct():
    # Config files are executed as files, so their neighbours are not importable by name.
    path = Path(__file__).parent / "household_instruct.py"
    spec = importlib.util.spec_from_file_location("household_instruct", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_config(mode: str = "full"):
    c = _instruct().get_config(mode)
    c.env.name = "sokoban"
    c.env.horizon = 15 if mode == "full" else 4
    c.context.mode = "window"
    c.explore.reflect_every = 5 if mode == "full" else 2
    c.sampler.max_len = 2048
    return c
