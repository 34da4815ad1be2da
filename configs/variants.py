"""LEAFE's own variants beside its controls, all at the same exploration budget, on one base model.

    python -m leafe_jax.main --config=configs/variants.py --workdir=runs/variants

rft          SFT on all successes of independent sampling
leafe        as in the paper, from the base model
no_rollback  after a failure it starts over with e instead of going back to tau (iterative refinement)
no_e         it goes back to tau and samples again, without e
cf           without L_reh
reh_20       without L_cf: L_reh alone, on a random 20% of the successes of LEAFE's search
reh_100      the same on all of them
leafe_100    L_cf, and L_reh on all successes
leafe_2, _3  a second and a third round of both stages
leafe_early  on top of Early Experience, whose expert is the environment's scripted player
leafe_grpo   on top of GRPO

`--config=configs/variants.py:smoke` runs the same on a handful of tasks. configs/paper/variants.py makes a
page over several seeds.
"""

from leafe_jax.paper.tables import add_variants
from leafe_jax.run.presets import load_config


def get_config(mode: str = "full"):
    c = load_config("quickstart", mode)
    add_variants(c)
    return c
