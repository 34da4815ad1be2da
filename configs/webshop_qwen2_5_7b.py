"""WebShop with Qwen2.5-7B-Instruct, as the paper's runs have it (verl-agent's environment).

    python -m leafe_jax.main --config=configs/webshop_qwen2_5_7b.py \
        --config.model.path=Qwen2.5-7B-Instruct --config.env.options.data=DIRECTORY \
        --workdir=runs/webshop_qwen

DIRECTORY has items_shuffle_1000.json, items_ins_v2_1000.json and items_human_ins.json (docs/WEBSHOP.md says
where from); without it the generated catalogue is played, which is not the benchmark. From verl-agent:
1,000 products, synthetic goals, 15 steps, the last 2 steps in the prompt, the task apart from the
observation, 512 tokens a reply, the first 500 goals held out. Needs accelerators; no numbers have been
measured with it yet.
"""

from leafe_jax.run.presets import load_config, set_environment


def get_config(mode: str = "full"):
    c = load_config("household_instruct", mode)
    c.model.path = "Qwen2.5-7B-Instruct"  # a directory; left out, the embedded model would play
    set_environment(
        c,
        "webshop",
        goals="synthetic",
        show_instruction=False,  # True shows it in every observation, as the original does
    )
    c.env.horizon = 15 if mode == "full" else 4
    c.context.mode = "window"
    c.context.window = 2
    c.search.tree.reflect_every = 5 if mode == "full" else 2
    c.search.tree.max_env_steps = 60 if mode == "full" else 16  # four episodes
    # verl-agent: 4,096 tokens of prompt and 512 of reply; reflections see the whole episode.
    c.sampler.max_len = 8192
    if mode == "smoke":
        c.env.options.num_products = 100
        c.search.tree.num_tasks = c.evaluate.num_tasks = 2
    else:
        c.search.tree.num_tasks = c.evaluate.num_tasks = 0  # all training goals, all 500 held out
    return c
