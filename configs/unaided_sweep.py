"""Where does LEAFE stop paying? One point of a sweep over how often the base does the right thing unasked.

    for scale in 0 1 2 4 8; do
        python -m leafe_jax.main --config=configs/unaided_sweep.py \
            --config.bootstrap.rate_scale=$scale --workdir=runs/unaided_sweep/$scale
    done
    python -m leafe_jax.tools.compare runs/unaided_sweep/*/ --out=runs/unaided_sweep

A base model is trained on from the embedded one, with its unaided rates multiplied by `rate_scale`. Then
LEAFE and rejection sampling (independent rollouts, all successes trained on) get the same number of
environment steps. About four minutes a value on 2 cores.
"""

from leafe_jax.methods.search import SearchConfig
from leafe_jax.run.config import to_config_dict
from leafe_jax.run.presets import load_config


def get_config(mode: str = "full"):
    if mode not in ("full", "smoke"):
        raise ValueError(f"--config=configs/unaided_sweep.py:{mode}: the modes are full and smoke")
    c = load_config("bootstrap", "household")
    c.phases = ("bootstrap", "explore", "fit", "evaluate", "report")
    c.methods = ("base", "leafe", "rft")
    c.sampler.max_len = 320  # a household episode is short
    c.bootstrap.from_scratch = False
    c.bootstrap.train.seq_len = 320
    c.bootstrap.train.batch_size = 12
    c.bootstrap.num_conversations = 6000
    c.bootstrap.train.learning_rate = 5e-4
    c.search.tree = to_config_dict(SearchConfig(max_env_steps=50))
    c.search.independent = to_config_dict(SearchConfig(method="independent", max_env_steps=50))
    c.rft.trees = "independent"
    c.evaluate.split = "test"
    c.evaluate.num_tasks = 36
    if mode == "smoke":
        c.bootstrap.num_conversations = 60
        c.search.tree.num_tasks = c.search.independent.num_tasks = 24
        c.evaluate.num_tasks = 6
        c.evaluate.num_samples = 4
        c.sampler.compile_ahead = False  # so short a run is over before it pays
    return c
