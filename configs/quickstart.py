"""LEAFE end to end on the embedded model: explore, distill, evaluate, report.

    python -m leafe_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

`--config=configs/quickstart.py:smoke` runs the same program on a handful of tasks.
"""

import runpy
from pathlib import Path

# Config files are executed as files, so a neighbour is not importable by name.
DEFAULT = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config(mode: str = "full"):
    c = DEFAULT["get_config"]()
    if mode == "smoke":
        c.explore.num_tasks = 12
        c.explore.block_size = 6
        c.explore.max_attempts = 4
        c.distill.train.num_epochs = 1
        c.evaluate.num_tasks = 6
        c.evaluate.block_size = 3
        c.evaluate.num_samples = 8
        c.sampler.compile_ahead = False  # so short a run is over before it pays
    elif mode != "full":
        raise ValueError(f"--config=configs/quickstart.py:{mode}: the modes are full and smoke")
    return c
