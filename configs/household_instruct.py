"""LEAFE on the household with an instruct checkpoint from the Hugging Face hub (Qwen2.5, Llama).

    python -m leafe_jax.main --config=configs/household_instruct.py \
        --config.model.path=Qwen2.5-1.5B-Instruct --workdir=runs/household_qwen

Needs accelerators: on each device the sampler holds the whole model in bfloat16, and pages for as many
sessions of 8,192 tokens as its memory has room for (64 take 17 GiB with 1.5B; `--config.sampler.tensor=2`
has two devices share one copy). The training step is sharded over all of them. Optimizer settings are the
paper's; no numbers have been measured with it yet.
"""

from leafe_jax.run.config import default_config
from leafe_jax.run.presets import set_on_policy, set_training


def get_config(mode: str = "full"):
    c = default_config()
    c.model.dtype = "bfloat16"
    c.env.horizon = 50
    c.prompts.style = "react"
    c.sampler.max_len = 8192
    c.sampler.turn_chunk = 128
    c.sampler.prefill_chunk = 512
    c.sampler.max_action_tokens = 512
    c.prompts.reasoning_tokens = 192  # before the answer of a reflection
    c.prompts.answer_tokens = 64
    c.search.tree.reflect_every = 10
    c.search.tree.max_env_steps = 200  # four episodes
    set_training(
        c,
        seq_len=8192,
        batch_size=16,  # rows; of about eight examples, so that a step has the paper's 128
        num_epochs=2,
        learning_rate=1e-6,
        schedule="constant",
        compute_dtype="bfloat16",
        remat="full",
        scan_layers=True,
        mesh=dict(data=1, fsdp=-1),
    )
    # verl-agent's GRPO; its reward of 10 and penalty of 0.1 are 1 and 0.01 here.
    set_on_policy(
        c,
        iterations=150,
        episodes=128,
        probe_every=5,
        reward="success",
        invalid_penalty=0.01,
        train=dict(batch_size=64, batch_examples=256, weight_decay=0.01, b2=0.999, warmup_steps=0),
    )
    if mode == "smoke":
        c.model.dtype = "float32"
        set_training(c, compute_dtype="float32")
        c.env.horizon = 6
        c.search.tree.num_tasks = c.evaluate.num_tasks = 6
        c.search.tree.reflect_every = 3
        c.search.tree.max_env_steps = 24
        c.evaluate.num_samples = 2
        c.sampler.num_slots = 8
        c.sampler.compile_ahead = False  # so short a run is over before it pays
        c.sampler.max_len = 2048
        c.sampler.max_action_tokens = 24
        c.prompts.reasoning_tokens = c.prompts.answer_tokens = 12
        c.phases = ("explore", "evaluate")
        c.methods = ("base",)
    return c
