"""Six task types of the `science` laboratory on a laptop, the whole method.

    python -m leafe_jax.main --config=configs/science.py --workdir=runs/science

The embedded base model has learnt this game (docs/BASE_MODEL.md). The laboratory is not ScienceWorld
(envs/science/environment.py says what it is). All fifteen task types, with an instruct checkpoint:

    --config.model.path=DIR --config.prompts.style=react --config.context.mode=window \
    --config.env.options.task_types="()" --config.env.horizon=30 \
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
    c = laptop("science", mode)
    c.env.horizon = 20
    c.env.options.task_types = (
        "find-living-thing",
        "find-non-living-thing",
        "use-thermometer",
        "mix-paint",
        "lifespan-longest-lived",
        "lifespan-shortest-lived",
    )
    c.sampler.max_action_tokens = 16
    c.prompts.answer_tokens = 24
    return c
