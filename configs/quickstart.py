"""LEAFE end to end on the embedded model: explore, fit, evaluate, report.

    python -m leafe_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

`--config=configs/quickstart.py:smoke` runs the same program on a handful of tasks.
"""

from leafe_jax.run.config import default_config
from leafe_jax.run.presets import set_training


def get_config(mode: str = "full"):
    c = default_config()
    if mode == "smoke":
        c.search.tree.num_tasks = 12
        c.search.tree.block_size = 6
        c.search.tree.max_env_steps = 30
        set_training(c, num_epochs=1)
        c.evaluate.num_tasks = 6
        c.evaluate.block_size = 3
        c.evaluate.num_samples = 8
        c.sampler.compile_ahead = False  # so short a run is over before it pays
    elif mode != "full":
        raise ValueError(f"--config=configs/quickstart.py:{mode}: the modes are full and smoke")
    return c
