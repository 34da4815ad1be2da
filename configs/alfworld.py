"""ALFWorld on a laptop: generated games in the smaller rooms, the whole method.

    python -m leafe_jax.main --config=configs/alfworld.py --workdir=runs/alfworld

The embedded base model has learnt this game (docs/BASE_MODEL.md). With the official games, whose
episodes are longer than the context of the embedded model:

    --config.env.options.data=$ALFWORLD_DATA --config.env.options.max_receptacles=0 \
    --config.context.mode=window
"""

from leafe_jax.run.presets import laptop


def set_options(options):
    """The environment's own options."""
    options.data = ""  # ALFWORLD_DATA directory; "" plays generated games
    options.games = ()  # single game.tw-pddl files or their folders, instead of either
    options.max_receptacles = 0  # leaves out generated games in larger rooms


def get_config(mode: str = "full"):
    c = laptop("alfworld", mode)
    set_options(c.env.options)
    c.env.options.max_receptacles = 22  # kitchens have at least 18
    c.env.horizon = 40
    c.search.tree.reflect_every = 10
    c.evaluate.split = "valid_unseen"
    return c
