"""ALFWorld on a laptop: generated games in the smaller rooms, the whole method.

    python -m leafe_jax.main --config=configs/alfworld.py --workdir=runs/alfworld

The embedded base model has learnt this game (docs/BASE_MODEL.md). With the official games, whose
episodes are longer than the context of the embedded model:

    --config.env.options.data=$ALFWORLD_DATA --config.env.options.max_receptacles=0 \
    --config.context.mode=window
"""

from leafe_jax.run.presets import laptop, set_on_policy


def get_config(mode: str = "full"):
    c = laptop("alfworld", mode)
    c.env.options.max_receptacles = 22  # kitchens have at least 18
    c.env.horizon = 40
    c.search.tree.reflect_every = 10
    c.search.tree.max_env_steps = 80 if mode == "full" else 50
    c.evaluate.split = "valid_unseen"
    set_on_policy(c, probe_split="valid_seen")
    return c
