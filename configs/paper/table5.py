"""Table 5, trained in one environment and tested in another (docs/PAPER.md).

    python -m leafe_jax.main --config=configs/paper/table5.py:mini --workdir=runs/paper

Without a mode: the paper's models and settings, which need accelerators. `:mini` is the embedded base
model; `:smoke` two tasks and one seed. Tables with the same workdir share searches, models and evaluations.
"""

from leafe_jax.paper import tables


def get_config(mode: str = "paper"):
    return tables.config("table5", mode)
