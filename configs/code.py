"""Programming on a laptop: our own problem set, the embedded model, nothing to download.

    python -m leafe_jax.main --config=configs/code.py --workdir=runs/code

The embedded model was made for the household and has never seen a program: its numbers here are a
check that everything runs, not a result. A checkpoint that knows Python goes into --config.model.path;
`--config.explore.num_tasks=33` keeps to the first tasks of the train split, which are the easy ones.
"""

import runpy
from pathlib import Path

# Config files are executed as files, so a neighbour is not importable by name.
DEFAULT = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config(mode: str = "full"):
    c = DEFAULT["get_config"]()
    c.env.name = "code"
    c.env.horizon = 4  # submissions
    c.env.prompt_style = "program"
    c.env.options.problems = ()  # files to play instead of the set that comes along
    c.env.options.layout = "own"  # of these files: own, codecontests, mbpp or humaneval
    c.env.options.num_tests = 10  # the first ones decide; 0 takes all
    c.env.options.time_limit = 2.0  # processor seconds per test
    c.env.options.memory_mb = 512
    c.env.options.workers = 0  # programs run at the same time; 0 is one per core
    c.env.options.allow_weak = False  # True: resource limits alone where no sandbox works
    c.context.mode = "window"
    c.context.window = 1  # the last submission: the embedded model has 1,024 positions
    c.sampler.max_len = 1024
    c.sampler.max_action_tokens = 96
    c.explore.reflect_every = 4
    c.explore.num_tasks = 0
    c.evaluate.num_tasks = 0
    c.evaluate.num_samples = 16
    c.distill.train.seq_len = 1024
    if mode == "smoke":
        c.env.horizon = 2
        c.explore.reflect_every = 2
        c.explore.num_tasks = c.evaluate.num_tasks = 4
        c.explore.max_attempts = 2
        c.evaluate.num_samples = 2
        c.sampler.num_slots = 8
        c.sampler.max_action_tokens = 24
        c.phases = ("explore", "evaluate")
        c.evaluate.methods = ("base",)
    elif mode != "full":
        raise ValueError(f"--config=configs/code.py:{mode}: the modes are full and smoke")
    return c
