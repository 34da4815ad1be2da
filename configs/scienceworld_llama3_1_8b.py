"""LEAFE on the real ScienceWorld with Llama-3.1-8B-Instruct; settings as for Qwen2.5-7B.

    python -m leafe_jax.main --config=configs/scienceworld_llama3_1_8b.py \
        --config.model.path=Llama-3.1-8B-Instruct --workdir=runs/scienceworld_llama

The paper's numbers to stand beside: base 7.17 / 48.67, LEAFE 22.70 / 59.33 (Pass@1 / Pass@128).
"""

from leafe_jax.run.presets import load_config


def get_config(mode: str = "full"):
    c = load_config("scienceworld_qwen2_5_7b", mode)
    c.model.path = "Llama-3.1-8B-Instruct"
    return c
