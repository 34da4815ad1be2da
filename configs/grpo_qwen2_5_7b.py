"""GRPO with Qwen2.5-7B-Instruct at verl-agent's settings, from which the paper's "LEAFE + RL" starts.

    python -m leafe_jax.main --config=configs/grpo_qwen2_5_7b.py:alfworld --workdir=runs/grpo_qwen \
        --config.model.path=Qwen2.5-7B-Instruct --config.env.options.data=$ALFWORLD_DATA

The modes are alfworld (also called full), webshop, sokoban, scienceworld, codecontests and smoke. Groups of
8, 16 of them an iteration (Sokoban: 32), 150 iterations, 256 step samples an optimizer step (WebShop and
Sokoban: 64), learning rate 1e-6, KL 0.01, entropy 0.001, temperature 1. CodeContests: learning rate 1e-5,
KL 0.001 (CTRL). GiGPO: --config.methods="('base','gigpo')". For LEAFE from these weights see
configs/grpo.py. Needs accelerators; no numbers have been measured with it yet.
"""

from leafe_jax.run.presets import load_config, set_on_policy

GAMES = ("alfworld", "webshop", "sokoban", "scienceworld", "codecontests")


def get_config(mode: str = "full"):
    if mode not in ("full", "smoke", *GAMES):
        raise ValueError(
            f"--config=configs/grpo_qwen2_5_7b.py:{mode}: must be full, smoke, {', '.join(GAMES)}"
        )
    game = mode if mode in GAMES else "alfworld"
    c = load_config(f"{game}_qwen2_5_7b", "smoke" if mode == "smoke" else "full")
    c.methods = ("base", "grpo")
    c.phases = ("fit", "evaluate", "report")
    if game in ("webshop", "sokoban"):
        set_on_policy(c, train=dict(batch_size=32, batch_examples=64))
        c.gigpo.advantage = "mean"
    if game == "sokoban":
        # gym-sokoban's own rewards, of which verl-agent's penalty is 0.1.
        set_on_policy(c, episodes=256, reward="return", invalid_penalty=0.1)
    if game == "codecontests":
        c.sampler.temperature = c.sampler.top_p = c.sampler.repetition_penalty = 1.0
        c.evaluate.temperature, c.evaluate.top_p = 0.7, 0.8
        set_on_policy(c, kl_coefficient=0.001, train=dict(learning_rate=1e-5, batch_size=16))
    if mode == "smoke":
        set_on_policy(
            c, iterations=1, episodes=4, group_size=2, num_tasks=4, probe_every=0,
            train=dict(batch_size=4, batch_examples=0),
        )  # fmt: skip
    return c
