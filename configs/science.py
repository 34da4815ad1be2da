"""The laptop form: the `science` laboratory, pure Python, with the embedded base model.

    python -m leafe_jax.main --config=configs/science.py --workdir=runs/science

The laboratory is not ScienceWorld (envs/science.py says what it is), and the embedded model has learnt
the household only: here it shows that every phase runs, and solves next to nothing. Give an instruct
checkpoint for more:
    --config.model.path=DIR --config.env.prompt_style=react --config.sampler.max_action_tokens=256
"""

import runpy
from pathlib import Path

# Config files are executed as files, so a neighbour is not importable by name.
DEFAULT = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config(mode: str = "full"):
    c = DEFAULT["get_config"]()
    c.env.name = "science"
    c.env.horizon = 30
    c.context.mode = "window"
    # The embedded tokenizer spells what is not of the household byte by byte, and the model has 1024
    # positions: the first and the current observation have to do; episodes that do not fit end.
    c.context.window = 0
    c.sampler.max_len = 1024
    c.sampler.num_slots = 16
    c.sampler.max_action_tokens = 24
    c.sampler.max_reflection_tokens = 48
    c.sampler.prefill_chunk = 256
    c.distill.train.seq_len = 1024
    c.explore.num_tasks = 60
    c.explore.block_size = 15
    c.evaluate.num_tasks = 30
    c.evaluate.num_samples = 16
    if mode == "smoke":
        c.env.horizon = 4
        c.explore.num_tasks = c.evaluate.num_tasks = 3
        c.explore.reflect_every = 2
        c.explore.max_attempts = 4
        c.evaluate.num_samples = 2
        c.phases = ("explore", "evaluate", "report")
        c.evaluate.methods = ("base",)
    elif mode != "full":
        raise ValueError(f"--config=configs/science.py:{mode}: the modes are full and smoke")
    return c
