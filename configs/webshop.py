"""WebShop's generated catalogue on a laptop, the whole method.

    python -m leafe_jax.main --config=configs/webshop.py --workdir=runs/webshop

The embedded base model has learnt this game (docs/BASE_MODEL.md). With an instruct checkpoint give

    --config.model.path=DIR --config.prompts.style=react --config.context.mode=window \
    --config.sampler.max_len=8192 --config.sampler.max_action_tokens=256 \
    --config.prompts.reasoning_tokens=192 --config.prompts.answer_tokens=64 \
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
    c.env.options.num_products = 250  # of the generated catalogue, the first ones; 0 takes all
    c.env.options.show_instruction = (
        False  # True shows it in every observation, as the original does
    )
    c.search.tree.reflect_every = 4
    c.gigpo.advantage = "mean"  # verl-agent: of WebShop and Sokoban
    c.search.tree.max_env_steps = 30 if mode == "full" else 12
    c.sampler.turn_chunk = 64
    c.sampler.max_action_tokens = 24
    c.prompts.answer_tokens = 24
    return c
