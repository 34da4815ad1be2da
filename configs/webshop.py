"""WebShop's generated catalogue on a laptop, the whole method.

    python -m leafe_jax.main --config=configs/webshop.py --workdir=runs/webshop

The embedded base model has learnt this game (docs/BASE_MODEL.md). With an instruct checkpoint give

    --config.model.path=DIR --config.env.prompt_style=react --config.context.mode=window \
    --config.sampler.max_len=8192 --config.sampler.max_action_tokens=256 \
    --config.sampler.max_reflection_tokens=256 \
    --config.leafe.train.seq_len=8192 --config.leafe.train.learning_rate=1e-6 \
    --config.leafe.train.num_epochs=2 --config.leafe.train.schedule=constant \
    --config.leafe.train.compute_dtype=bfloat16 --config.leafe.train.remat=full \
    --config.leafe.train.scan_layers=True --config.leafe.train.mesh.data=1 \
    --config.leafe.train.mesh.fsdp=-1 --config.model.dtype=bfloat16
"""

from leafe_jax.run.presets import laptop


def get_config(mode: str = "full"):
    c = laptop("webshop", mode)
    c.env.horizon = 8
    c.env.options.data = ""  # directory of the official files; "" is the generated catalogue
    c.env.options.products = ""  # name of the product file there; "" for the only one
    c.env.options.num_products = 250  # the first so many; 0 takes all
    c.env.options.goals = "human"  # human or synthetic
    c.env.options.nouns = "auto"  # of the reward: spacy, guess, or auto (spacy if installed)
    c.env.options.show_instruction = False  # in every observation, as the original has it
    c.search.tree.reflect_every = 4
    c.sampler.turn_chunk = 64
    c.sampler.max_action_tokens = 24
    c.sampler.max_reflection_tokens = 24
    return c
