"""ALFWorld as verl-agent plays it, with Qwen2.5-7B-Instruct, at the paper's settings (Table 1).

    python -m leafe_jax.main --config=configs/alfworld_qwen2_5_7b.py --config.model.path=DIR \
        --config.env.options.data=$ALFWORLD_DATA --workdir=runs/alfworld_qwen2_5_7b

The paper's figures, success % at Pass@1 / Pass@128: base 26.07 / 78.57, LEAFE 67.50 / 94.29 (from the GRPO
model). No numbers have been measured with this file. 50 steps, a prompt rebuilt every step from the
last two observations and actions (verl-agent). The paper's Pass@128 are 110 and 132 of 140 games, so
valid_seen (140 games) is evaluated; --config.evaluate.split=valid_unseen for the other 134. K and the
search limits are ours, the paper does not give them.

Without env.options.data generated games are played: not the benchmark.
"""

from leafe_jax.run.presets import load_config, set_environment, set_on_policy


def get_config(mode: str = "full"):
    c = load_config("household_instruct", mode)
    c.model.path = "Qwen2.5-7B-Instruct"  # a directory; left out, the embedded model would play
    set_environment(c, "alfworld")
    c.env.horizon = 50  # verl-agent: env.max_steps
    c.context.mode = "window"
    c.context.window = 2  # verl-agent: env.history_length
    c.search.tree.num_tasks = 0  # all 3,553 official training games
    c.evaluate.split = "valid_seen"
    set_on_policy(c, probe_split="valid_unseen")
    c.evaluate.num_tasks = 0
    if mode == "smoke":
        c.env.horizon = 6
        c.search.tree.num_tasks = c.evaluate.num_tasks = 6
    return c
