"""The sweep over how often the base model does the right thing unasked (docs/PAPER.md).

    python -m leafe_jax.main --config=configs/paper/sweep.py:mini --workdir=runs/paper

Each cell makes a base model of its own first, as configs/unaided_sweep.py does. `:smoke` is one of them
on a handful of conversations and two tasks.
"""

from leafe_jax.paper import tables


def get_config(mode: str = "mini"):
    return tables.config("sweep", mode)
