"""LEAFE beside its controls, all on one base model and at the same exploration budget.

    python -m leafe_jax.main --config=configs/controls.py --workdir=runs/controls

rft       SFT on all successes of independent sampling at the budget of LEAFE's search
reh_20    L_reh alone: a random 20% of the successes of LEAFE's own search
reh_100   L_reh alone: all of them
cf        L_cf alone
leafe     both, as in the paper

`--config=configs/controls.py:smoke` runs the same on a handful of tasks. For intervals over seeds, run
it with --config.seed=0, 1 and 2 and compare the runs (docs/METHODS.md).
"""

from leafe_jax.run.presets import add_search, add_variant, load_config


def get_config(mode: str = "full"):
    c = load_config("quickstart", mode)
    add_search(c, "independent", method="independent")
    c.methods = ("base", "rft")
    c.rft.trees = "independent"
    add_variant(c, "reh_20", "leafe", counterfactual_weight=0.0)
    add_variant(c, "reh_100", "leafe", counterfactual_weight=0.0, rehearsal_share=1.0)
    add_variant(c, "cf", "leafe", beta=0.0)
    c.methods = (*c.methods, "leafe")
    return c
