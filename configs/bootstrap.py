"""Makes the embedded base model: scripted corpus -> tokenizer -> model -> habits.

    python -m leafe_jax.main --config=configs/bootstrap.py --workdir=runs/bootstrap

The result, `<workdir>/bootstrap/model`, is what leafe_jax/assets/base holds.
"""

import runpy
from pathlib import Path

import ml_collections

# Config files are executed as files, so a neighbour is not importable by name.
DEFAULT = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config(mode: str = "full"):
    c = DEFAULT["get_config"]()
    c.phases = ("bootstrap", "habits")
    c.bootstrap = b = ml_collections.ConfigDict()
    b.from_scratch = True  # False: train on from the model of model.path, with its tokenizer
    b.num_conversations = 48000
    # Share of each family in the corpus; the longer ones are harder to learn.
    b.family_weights = ml_collections.ConfigDict(
        dict(pick=1.0, look=1.2, clean=1.0, heat=1.0, cool=1.0, two=2.0)
    )
    b.min_count = 5  # occurrences of a phrase that make it a token
    b.levels = (0.35, 0.4, 0.25)  # share of conversations with 0, 1, 2 pieces of experience
    b.slip_rate = 0.02  # random wrong turns per step; they carry no loss
    b.reflect_rate = 0.6  # failed conversations that end with a reflection
    b.observation_mass = 0.2  # loss on tokens that are not replies
    # How often a player does unasked what it should: one rate per habit, graded.
    b.rate_scale = 1.0  # multiplies all of them (configs/unaided_sweep.py)
    b.unaided_rates = ml_collections.ConfigDict(
        dict(closed=0.04, target=0.04, clean=0.05, heat=0.03, cool=0.02, lamp=0.04, second=0.03)
    )
    b.model = ml_collections.ConfigDict(
        dict(hidden_size=128, intermediate_size=384, num_layers=4, num_heads=4, num_kv_heads=2,
             head_dim=32, rope_theta=10000.0)
    )  # fmt: skip
    b.train = DEFAULT["train_config"]()
    b.train.seq_len = 320
    b.train.batch_size = 12
    b.train.num_epochs = 1
    b.train.learning_rate = 2e-3
    b.train.schedule = "cosine"
    b.train.warmup_steps = 50
    b.train.weight_decay = 0.01
    b.train.checkpoint_every = 200
    # Least rates per family, measured on rollouts by the phase habits; a model below them fails.
    b.gate = ml_collections.ConfigDict(
        dict(told=0.6, followed=0.7, parsed=0.95, right_step=0.5, right_advice=0.7)
    )
    c.evaluate.split = "valid"
    c.evaluate.num_tasks = 48
    if mode == "smoke":
        b.gate = ml_collections.ConfigDict()  # so small a model learns nothing
        b.num_conversations = 400
        b.train.num_epochs = 1
        b.model.num_layers = 1
        c.evaluate.num_tasks = 6
        c.evaluate.num_samples = 4
    return c
