"""LEAFE beside GRPO, GiGPO, SDPO, ERL and MaxRL (docs/PAPER.md).

    python -m leafe_jax.main --config=configs/paper/peers.py:mini --workdir=runs/paper

Without a mode: the paper's models and settings, which need accelerators. `:mini` is the embedded base
model; `:smoke` two tasks and one seed. Tables with the same workdir share searches, models and evaluations.
"""

from leafe_jax.paper import tables


def get_config(mode: str = "paper"):
    return tables.config("peers", mode)
