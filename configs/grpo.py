"""GRPO on the embedded model: on the household, or on one of the five games, beside the base model.

    python -m leafe_jax.main --config=configs/grpo.py:sokoban --workdir=runs/grpo_sokoban

The modes are full (the household), smoke, alfworld, webshop, sokoban, science and code. Its relatives:
--config.methods="('base','grpo','gigpo')". LEAFE from GRPO's weights: --config.leafe.start=grpo with
--config.methods="('base','grpo','leafe')" and --config.phases="('fit','explore','evaluate','report')".
"""

from leafe_jax.run.presets import load_config, set_on_policy

GAMES = ("alfworld", "webshop", "sokoban", "science", "code")


def get_config(mode: str = "full"):
    if mode not in ("full", "smoke", *GAMES):
        raise ValueError(
            f"--config=configs/grpo.py:{mode}: must be full, smoke, {', '.join(GAMES)}"
        )
    c = load_config(mode) if mode in GAMES else load_config("quickstart", mode)
    c.methods = ("base", "grpo")
    c.phases = ("fit", "evaluate", "report")
    if mode == "smoke":
        set_on_policy(
            c, iterations=2, episodes=16, group_size=4, num_tasks=12, probe_every=1, probe_tasks=2,
            probe_samples=2,
        )  # fmt: skip
    return c
