"""Makes the embedded base model: scripted corpus -> tokenizer -> model -> habits.

    python -m leafe_jax.main --config=configs/bootstrap.py --workdir=runs/bootstrap

The result, `<workdir>/bootstrap/model`, is what leafe_jax/assets/base holds (made at the commit that
docs/BASE_MODEL.md names). What the corpus is made of, without training:
`python -m leafe_jax.bootstrap.statistics --config=configs/bootstrap.py`. One game alone:
`--config=configs/bootstrap.py:household`.
"""

from envs.prompts import PromptsConfig
from leafe_jax.bootstrap.config import BootstrapConfig, GameConfig
from leafe_jax.run.config import default_config, to_config_dict
from leafe_jax.run.presets import load_config
from leafe_jax.training.settings import TrainConfig

HOUSE = dict(closed=0.04, target=0.04, clean=0.05, heat=0.03, cool=0.02, lamp=0.04, second=0.03)
SCIENCE = dict(kind=0.04, focus=0.5, box=0.05, span=0.04, measure=0.04, open=0.5, mix=0.05)
GAMES = dict(
    household=GameConfig(9000.0, 20, unaided_rates=HOUSE, family_weights=dict(look=1.2, two=2.0)),
    alfworld=GameConfig(8000.0, 40, unaided_rates=HOUSE, options=dict(max_receptacles=22)),
    sokoban=GameConfig(
        8000.0, 15, unaided_rates=dict(side=0.04, on=0.05, turn=0.03),
        options=dict(size=(6, 6), min_moves=4),
    ),
    science=GameConfig(
        7000.0, 20, unaided_rates=SCIENCE,
        options=dict(task_types=("find-living-thing", "find-non-living-thing", "use-thermometer",
                                 "mix-paint", "lifespan-longest-lived", "lifespan-shortest-lived")),
        family_weights={"use-thermometer": 2.0, "mix-paint": 2.0},
    ),
    webshop=GameConfig(
        8000.0, 8, unaided_rates=dict(attribute=0.05, price=0.4, option=0.05, second=0.5),
        options=dict(num_products=250, show_instruction=False),
    ),
    code=GameConfig(
        6000.0, 4, prompts=PromptsConfig(style="program"),
        unaided_rates=dict(int=0.03, floor=0.04, part=0.03, end=0.03, list=0.03, order=0.04),
        options=dict(layout="drills", num_tests=4, time_limit=2.0),
    ),
)  # fmt: skip


def get_config(mode: str = "full"):
    """`mode`: full, smoke, or the name of a game, which then is the only one."""
    c = default_config()
    c.phases = ("bootstrap", "habits")
    c.bootstrap = b = to_config_dict(BootstrapConfig(
        games=GAMES,
        num_conversations=int(sum(game.weight for game in GAMES.values())),
        train=TrainConfig(
            seq_len=1024, batch_size=5, num_epochs=2, learning_rate=2e-3, schedule="cosine",
            warmup_steps=50, weight_decay=0.01, checkpoint_every=200,
        ),
        gate=dict(told=0.5, followed=0.7, parsed=0.95, right_step=0.3, right_advice=0.6),
    ))  # fmt: skip
    c.sampler.max_len = 1024
    c.evaluate.split = "valid"
    c.evaluate.num_tasks = 48
    if mode in GAMES:
        for name, section in b.games.items():
            section.weight *= name == mode
        b.num_conversations = int(b.games[mode].weight)
        if mode != "household":  # habits are measured on the game as its laptop config plays it
            laptop = load_config(mode)
            c.env, c.sampler, c.prompts = laptop.env, laptop.sampler, laptop.prompts
            c.habits.reflect_every = laptop.search.tree.reflect_every
            c.evaluate.split = "valid_seen" if mode == "alfworld" else "valid"
            c.evaluate.num_tasks = 24
    elif mode == "smoke":
        b.gate = to_config_dict(BootstrapConfig()).gate  # so small a model learns nothing
        b.num_conversations = 400
        b.train.num_epochs = 1
        b.model.num_layers = 1
        c.evaluate.num_tasks = 6
        c.evaluate.num_samples = 4
        c.sampler.compile_ahead = False  # so short a run is over before it pays
    elif mode != "full":
        allowed = ", ".join(("full", "smoke", *GAMES))
        raise ValueError(f"--config=configs/bootstrap.py:{mode}: the modes are {allowed}")
    return c
