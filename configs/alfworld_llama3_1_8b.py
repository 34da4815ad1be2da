"""ALFWorld as verl-agent plays it, with Llama-3.1-8B-Instruct, at the paper's settings (Table 1).

    python -m leafe_jax.main --config=configs/alfworld_llama3_1_8b.py --config.model.path=DIR \
        --config.env.options.data=$ALFWORLD_DATA --workdir=runs/alfworld_llama3_1_8b

The paper's figures, success % at Pass@1 / Pass@128: base 29.82 / 74.29, LEAFE 71.79 / 96.43 (from the GRPO
model). No numbers have been measured with this file. Everything but the model is as in
configs/alfworld_qwen2_5_7b.py.
"""

import runpy
from pathlib import Path

# Config files are executed as files, so a neighbour is not importable by name.
QWEN = runpy.run_path(str(Path(__file__).with_name("alfworld_qwen2_5_7b.py")))


def get_config(mode: str = "full"):
    c = QWEN["get_config"](mode)
    c.model.path = "Llama-3.1-8B-Instruct"
    return c
