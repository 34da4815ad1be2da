"""ALFWorld on a laptop: generated games, the embedded base model, the whole method at a small size.

    python -m leafe_jax.main --config=configs/alfworld.py --workdir=runs/alfworld

The embedded model was made for the household and has never seen these rooms: expect it to solve
little or nothing. The file shows the machinery on the benchmark's own text. With the official games:
    --config.env.options.data=$ALFWORLD_DATA --config.evaluate.split=valid_unseen
"""

import runpy
from pathlib import Path

# Config files are executed as files, so a neighbour is not importable by name.
DEFAULT = runpy.run_path(str(Path(__file__).with_name("default.py")))


def set_options(options):
    """The environment's own options."""
    options.data = ""  # ALFWORLD_DATA directory; "" plays generated games
    options.games = ()  # single game.tw-pddl files or their folders, instead of either


def get_config(mode: str = "full"):
    c = DEFAULT["get_config"]()
    c.env.name = "alfworld"
    set_options(c.env.options)
    c.env.horizon = 16  # the official 50 does not fit the embedded model's 1,024 tokens
    c.context.mode = "window"
    c.context.window = 2
    c.sampler.num_slots = 32
    c.sampler.max_len = 1024
    c.sampler.max_action_tokens = 16
    c.sampler.prefill_chunk = 128
    c.explore.num_tasks = 48
    c.explore.max_attempts = 4
    c.distill.train.seq_len = 1024
    c.evaluate.split = "valid_seen"
    c.evaluate.num_tasks = 24
    c.evaluate.num_samples = 8
    if mode == "smoke":
        c.env.horizon = 4
        c.explore.num_tasks = c.evaluate.num_tasks = 6
        c.explore.reflect_every = 2
        c.evaluate.num_samples = 2
        c.phases = ("explore", "evaluate")
        c.evaluate.methods = ("base",)
    elif mode != "full":
        raise ValueError(f"--config=configs/alfworld.py:{mode}: the modes are full and smoke")
    return c
