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
leafe_grpo   on top of GRPO, where that method is registered

`--config=configs/variants.py:smoke` runs the same on a handful of tasks.
"""

from leafe_jax.methods import base
from leafe_jax.run.presets import (
    add_early_experience,
    add_leafe_on,
    add_rounds,
    add_search,
    add_variant,
    load_config,
)


def add_variants(c) -> None:
    """Adds everything but what stands on other methods."""
    add_search(c, "independent", method="independent")
    add_search(c, "refine", method="refine")
    add_search(c, "tree_without_e", show_experience=False)
    c.rft.trees = "independent"
    c.methods = ("base", "rft", "leafe")
    add_variant(c, "no_rollback", "leafe", trees="refine")
    add_variant(c, "no_e", "leafe", trees="tree_without_e")
    add_variant(c, "cf", "leafe", beta=0.0)
    add_variant(c, "reh_20", "leafe", counterfactual_weight=0.0)
    add_variant(c, "reh_100", "leafe", counterfactual_weight=0.0, rehearsal_share=1.0)
    add_variant(c, "leafe_100", "leafe", rehearsal_share=1.0)


def get_config(mode: str = "full"):
    c = load_config("quickstart", mode)
    add_variants(c)
    add_rounds(c, 3)
    add_early_experience(c)
    add_leafe_on(c, "early_experience", "leafe_early", "tree_early")
    if "grpo" in base.REGISTRY:
        c.methods = (*c.methods, "grpo")
        add_leafe_on(c, "grpo", "leafe_grpo", "tree_grpo")
    return c
