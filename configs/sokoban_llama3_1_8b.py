"""Sokoban as verl-agent plays it, with Llama-3.1-8B-Instruct, at the paper's settings (Table 1).

    python -m leafe_jax.main --config=configs/sokoban_llama3_1_8b.py --config.model.path=DIR \
        --workdir=runs/sokoban_llama3_1_8b

The paper's figures, success % at Pass@1 / Pass@128: base 17.70 / 61.40, LEAFE 62.00 / 77.20 (from the GRPO
model). No numbers have been measured with this file. Everything but the model is as in
configs/sokoban_qwen2_5_7b.py.
"""

from leafe_jax.run.presets import load_config


def get_config(mode: str = "full"):
    c = load_config("sokoban_qwen2_5_7b", mode)
    c.model.path = "Llama-3.1-8B-Instruct"
    return c
