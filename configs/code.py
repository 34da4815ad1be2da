"""Programming on a laptop: drills, each with one thing that is easily got wrong, the whole method.

    python -m leafe_jax.main --config=configs/code.py --workdir=runs/code

The embedded base model has learnt this game (docs/BASE_MODEL.md). A checkpoint that knows Python goes into
--config.model.path; our problem set for it:

    --config.env.options.layout=own --config.env.options.num_tests=10 --config.context.mode=window \
    --config.sampler.max_len=8192 --config.sampler.max_action_tokens=512 \
    --config.prompts.reasoning_tokens=192 --config.prompts.answer_tokens=64 --config.evaluate.num_tasks=0 \
    --config.leafe.train.seq_len=8192 --config.leafe.train.learning_rate=1e-6 \
    --config.leafe.train.num_epochs=2 --config.leafe.train.schedule=constant \
    --config.leafe.train.compute_dtype=bfloat16 --config.leafe.train.remat=full \
    --config.leafe.train.scan_layers=True --config.leafe.train.mesh.data=1 \
    --config.leafe.train.mesh.fsdp=-1 --config.model.dtype=bfloat16
"""

from leafe_jax.run.presets import laptop


def get_config(mode: str = "full"):
    c = laptop("code", mode)
    c.env.horizon = 4  # submissions
    c.prompts.style = "program"
    c.env.options.layout = "drills"  # own, codecontests, mbpp or humaneval instead
    c.env.options.num_tests = 4  # the first ones decide; 0 takes all
    c.env.options.time_limit = 2.0  # processor seconds per test
    c.env.options.memory_mb = 512
    c.search.tree.reflect_every = 2
    c.search.tree.max_env_steps = 16 if mode == "full" else 6  # submissions
    if mode == "full":
        c.search.tree.num_tasks = 0
    c.sampler.max_action_tokens = 64
    c.prompts.answer_tokens = 24
    return c
