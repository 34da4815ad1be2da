"""WebShop's generated catalogue on a laptop, with the embedded base model.

    python -m leafe_jax.main --config=configs/webshop.py --workdir=runs/webshop

Takes the whole program through the shop: rollouts, reflections, trees to read in the report. The embedded
model cannot shop: it was made for the household, spells a page letter by letter, and a page of results
is longer than its 1,024 positions, where an episode then ends (stop "context"). So there is nothing to
distill. With a small instruct checkpoint give

    --config.model.path=DIR --config.env.prompt_style=react --config.sampler.max_len=8192 \
    --config.sampler.max_action_tokens=256 --config.sampler.max_reflection_tokens=256 \
    --config.phases="('explore','distill','evaluate','report')" \
    --config.evaluate.methods="('base','leafe')"
"""

import runpy
from pathlib import Path

# Config files are executed as files, so a neighbour is not importable by name.
DEFAULT = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config(mode: str = "full"):
    c = DEFAULT["get_config"]()
    c.phases = ("explore", "evaluate", "report")
    c.evaluate.methods = ("base",)
    c.env.name = "webshop"
    c.env.horizon = 6
    c.env.options.data = ""  # directory of the official files; "" is the generated catalogue
    c.env.options.num_products = 400  # the first so many; 0 takes all
    c.env.options.goals = "human"  # human or synthetic
    c.env.options.show_instruction = False  # in every observation, as the original has it
    c.context.mode = "window"
    c.explore.num_tasks = 12
    c.explore.block_size = 6
    c.explore.max_attempts = 4
    c.explore.reflect_every = 3
    c.sampler.num_slots = 16
    c.sampler.max_len = 1024  # all that the embedded model has
    c.sampler.max_action_tokens = 48
    c.sampler.max_reflection_tokens = 48
    c.evaluate.num_tasks = 12
    c.evaluate.num_samples = 4
    if mode == "smoke":
        c.explore.num_tasks = c.evaluate.num_tasks = 2
        c.explore.block_size = 2
        c.explore.num_roots = 1
        c.explore.max_attempts = 2
        c.evaluate.num_samples = 1
        c.env.horizon = 2
        c.sampler.num_slots = 4
    return c
