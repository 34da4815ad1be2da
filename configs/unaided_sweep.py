"""Where does LEAFE stop paying? Sweep over how often the base model does the right thing unasked.

    python -m leafe_jax.main --config=configs/unaided_sweep.py --workdir=runs/unaided_sweep

For each factor on the unaided rates a base model is trained on from the embedded one; then LEAFE and
rejection sampling (independent rollouts, all successes rehearsed) get the same environment steps.
Writes sweep.json and sweep.png. About four minutes a value on 2 cores.
"""

import runpy
from pathlib import Path

import ml_collections

# Config files are executed as files, so a neighbour is not importable by name.
BOOTSTRAP = runpy.run_path(str(Path(__file__).with_name("bootstrap.py")))


def get_config(mode: str = "full"):
    if mode not in ("full", "smoke"):
        raise ValueError(f"--config=configs/unaided_sweep.py:{mode}: the modes are full and smoke")
    c = BOOTSTRAP["get_config"]("household")
    c.sampler.max_len = 320  # a household episode is short
    c.bootstrap.from_scratch = False
    c.bootstrap.train.seq_len = 320
    c.bootstrap.train.batch_size = 12
    c.bootstrap.num_conversations = 6000
    c.bootstrap.train.learning_rate = 5e-4
    c.explore.max_env_steps = 50  # per task, for both
    c.explore.max_attempts = 64
    c.evaluate.split = "test"
    c.evaluate.num_tasks = 36
    c.sweep = ml_collections.ConfigDict()
    c.sweep.field = "bootstrap.rate_scale"
    c.sweep.settings = (0.0, 1.0, 2.0, 4.0, 8.0)
    rejection = (
        ("explore.method", "independent"),
        ("distill.counterfactual_weight", 0.0),
        ("distill.rehearsal_share", 1.0),
    )
    c.sweep.variants = (("leafe", ()), ("rejection", rejection))
    if mode == "smoke":
        c.bootstrap.gate = ml_collections.ConfigDict()  # so little training changes nothing
        c.bootstrap.num_conversations = 60
        c.explore.num_tasks = 24
        c.evaluate.num_tasks = 6
        c.evaluate.num_samples = 4
        c.sampler.compile_ahead = False  # so short a run is over before it pays
        c.sweep.settings = (0.0, 8.0)
    return c
