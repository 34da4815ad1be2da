"""Sokoban as verl-agent plays it, with Qwen2.5-7B-Instruct, at the paper's settings (Table 1).

    python -m leafe_jax.main --config=configs/sokoban_qwen2_5_7b.py --config.model.path=DIR \
        --workdir=runs/sokoban_qwen2_5_7b

The paper's figures, success % at Pass@1 / Pass@128: base 6.90 / 43.80, LEAFE 64.60 / 78.40 (from the GRPO
model). No numbers have been measured with this file. 6x6, one box, 15 replies, a prompt rebuilt every
step from the last two observations and actions (verl-agent); K and the search limits are ours, the
paper does not give them.

Boxoban or XSB files instead of generated levels (train and test files by their folders). They need
gym-sokoban's horizon: 15 moves solve about 3 % of the levels of unfiltered/test/000.txt and none of
medium/valid/000.txt. Boxoban has no medium/test.
    --config.env.options.levels="('boxoban/unfiltered/train/000.txt','boxoban/unfiltered/test/000.txt')"
    --config.env.horizon=120 --config.search.tree.max_env_steps=480
A reflection shows the whole episode, so sampler.max_len must grow with it: a 10x10 board has about 400
tokens.
"""

from leafe_jax.run.presets import load_config, set_environment


def get_config(mode: str = "full"):
    c = load_config("household_instruct", mode)
    c.model.path = "Qwen2.5-7B-Instruct"  # a directory; left out, the embedded model would play
    set_environment(c, "sokoban")
    c.env.horizon = 15  # verl-agent: env.max_steps
    c.context.mode = "window"
    c.context.window = 2  # verl-agent: env.history_length
    c.search.tree.num_tasks = 0  # all 512 of the training split
    c.search.tree.reflect_every = 5
    c.search.tree.max_env_steps = 60  # four episodes
    c.evaluate.num_tasks = 0  # all 128 of the test split, as many as verl-agent's validation has
    # A reflection is asked with the whole episode in view: 15 boards of about 150 tokens.
    c.sampler.max_len = 4096
    if mode == "smoke":
        c.env.horizon = 4
        c.search.tree.num_tasks = c.evaluate.num_tasks = 6
        c.search.tree.reflect_every = 2
        c.search.tree.max_env_steps = 16
        c.sampler.max_len = 2048
    return c
