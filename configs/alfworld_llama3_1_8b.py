"""ALFWorld as verl-agent plays it, with Llama-3.1-8B-Instruct, at the paper's settings (Table 1).

    python -m leafe_jax.main --config=configs/alfworld_llama3_1_8b.py --config.model.path=DIR \
        --config.env.options.data=$ALFWORLD_DATA --workdir=runs/alfworld_llama3_1_8b

The paper's figures, success % at Pass@1 / Pass@128: base 29.82 / 74.29, LEAFE 71.79 / 96.43 (from the GRPO
model). No numbers have been measured with this file. Everything but the model is as in
configs/alfworld_qwen2_5_7b.py.
"""

from leafe_jax.run.presets import load_config


def get_config(mode: str = "full"):
    c = load_config("alfworld_qwen2_5_7b", mode)
    c.model.path = "Llama-3.1-8B-Instruct"
    return c
