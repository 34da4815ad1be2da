"""WebShop with Llama-3.1-8B-Instruct, as the paper's runs have it (verl-agent's environment).

    python -m leafe_jax.main --config=configs/webshop_llama3_1_8b.py \
        --config.model.path=Llama-3.1-8B-Instruct --config.env.options.data=DIRECTORY \
        --workdir=runs/webshop_llama

Everything but the checkpoint is configs/webshop_qwen2_5_7b.py, as in the paper.
"""

from leafe_jax.run.presets import load_config


def get_config(mode: str = "full"):
    c = load_config("webshop_qwen2_5_7b", mode)
    c.model.path = "Llama-3.1-8B-Instruct"
    return c
