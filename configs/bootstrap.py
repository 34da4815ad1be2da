"""Makes the embedded base model: scripted corpus -> tokenizer -> model -> habits.

    python -m leafe_jax.main --config=configs/bootstrap.py --workdir=runs/bootstrap

The result, `<workdir>/bootstrap/model`, is what leafe_jax/assets/base holds (made at the commit that
docs/BASE_MODEL.md names). What the corpus is made of, without training:
`python -m leafe_jax.bootstrap.corpus --config=configs/bootstrap.py`. One game alone:
`--config=configs/bootstrap.py:household`.
"""

import runpy
from pathlib import Path

import ml_collections

# Config files are executed as files, so a neighbour is not importable by name.
DEFAULT = runpy.run_path(str(Path(__file__).with_name("default.py")))


def game(conversations: int, horizon: int, rates: dict, **changes) -> ml_collections.ConfigDict:
    """The section of one game; environment and horizon as in the game's laptop config."""
    g = ml_collections.ConfigDict()
    g.weight = float(conversations)  # of the game among all conversations
    g.horizon = horizon
    g.prompt_style = "plain"
    g.slip_rate = 0.02  # random wrong turns per step; they carry no loss
    # How often a player does unasked what it should: one rate per habit, graded.
    g.unaided_rates = ml_collections.ConfigDict(rates)
    g.family_weights = ml_collections.ConfigDict()  # of task families that do not have weight 1
    g.options = ml_collections.ConfigDict()  # the environment's
    g.update(changes)
    return g


HOUSE = dict(closed=0.04, target=0.04, clean=0.05, heat=0.03, cool=0.02, lamp=0.04, second=0.03)


def games() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            household=game(9000, 20, HOUSE, family_weights=dict(look=1.2, two=2.0)),
            alfworld=game(8000, 40, HOUSE, options=dict(max_receptacles=22)),
            sokoban=game(8000, 15, dict(side=0.04, on=0.05, turn=0.03),
                         options=dict(size=(6, 6), min_moves=4)),
            science=game(
                7000, 20,
                dict(kind=0.04, focus=0.5, box=0.05, span=0.04, measure=0.04, open=0.5, mix=0.05),
                options=dict(
                    task_types=("find-living-thing", "find-non-living-thing", "use-thermometer",
                                "mix-paint", "lifespan-longest-lived", "lifespan-shortest-lived")),
                family_weights={"use-thermometer": 2.0, "mix-paint": 2.0}),
            webshop=game(8000, 8, dict(attribute=0.05, price=0.4, option=0.05, second=0.5),
                         options=dict(num_products=250, show_instruction=False)),
            code=game(6000, 4,
                      dict(int=0.03, floor=0.04, part=0.03, end=0.03, list=0.03, order=0.04),
                      prompt_style="program",
                      options=dict(layout="drills", num_tests=4, time_limit=2.0)),
        )
    )  # fmt: skip


def get_config(mode: str = "full"):
    """`mode`: full, smoke, or the name of a game, which then is the only one."""
    c = DEFAULT["get_config"]()
    c.phases = ("bootstrap", "habits")
    c.bootstrap = b = ml_collections.ConfigDict()
    b.from_scratch = True  # False: train on from the model of model.path, with its tokenizer
    b.games = games()
    b.num_conversations = int(sum(g.weight for g in b.games.values()))
    b.min_count = 5  # occurrences of a phrase that make it a token
    b.levels = (
        0.3,
        0.28,
        0.22,
        0.12,
        0.08,
    )  # share of conversations with 0, 1, .. pieces of experience
    b.reflect_rate = 0.6  # failed conversations that end with a reflection
    b.tail = 6  # steps of a failed episode that may follow its first repeated action
    b.observation_mass = 0.2  # loss on tokens that are not replies
    b.rate_scale = 1.0  # multiplies all unaided rates (configs/unaided_sweep.py)
    b.model = ml_collections.ConfigDict(
        dict(hidden_size=192, intermediate_size=512, num_layers=4, num_heads=6, num_kv_heads=2,
             head_dim=32, rope_theta=10000.0)
    )  # fmt: skip
    b.train = DEFAULT["train_config"]()
    b.train.seq_len = 1024
    b.train.batch_size = 5
    b.train.num_epochs = 2
    b.train.learning_rate = 2e-3
    b.train.schedule = "cosine"
    b.train.warmup_steps = 50
    b.train.weight_decay = 0.01
    b.train.checkpoint_every = 200
    # Least rates per family, measured on rollouts by the phase habits; a model below them fails.
    b.gate = ml_collections.ConfigDict(
        dict(told=0.5, followed=0.7, parsed=0.95, right_step=0.3, right_advice=0.6)
    )
    c.sampler.max_len = 1024
    c.evaluate.split = "valid"
    c.evaluate.num_tasks = 48
    if mode in b.games:
        for name, section in b.games.items():
            section.weight *= name == mode
        b.num_conversations = int(b.games[mode].weight)
        if mode != "household":  # habits are measured on the game as its laptop config plays it
            laptop = runpy.run_path(str(Path(__file__).with_name(f"{mode}.py")))["get_config"]()
            c.env, c.sampler = laptop.env, laptop.sampler
            c.explore.reflect_every = laptop.explore.reflect_every
            c.evaluate.split = "valid_seen" if mode == "alfworld" else "valid"
            c.evaluate.num_tasks = 24
    elif mode == "smoke":
        b.gate = ml_collections.ConfigDict()  # so small a model learns nothing
        b.num_conversations = 400
        b.train.num_epochs = 1
        b.model.num_layers = 1
        c.evaluate.num_tasks = 6
        c.evaluate.num_samples = 4
        c.sampler.compile_ahead = False  # so short a run is over before it pays
    elif mode != "full":
        allowed = ", ".join(("full", "smoke", *b.games))
        raise ValueError(f"--config=configs/bootstrap.py:{mode}: the modes are {allowed}")
    return c
