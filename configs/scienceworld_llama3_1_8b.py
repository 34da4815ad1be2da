"""LEAFE on the real ScienceWorld with Llama-3.1-8B-Instruct; settings as for Qwen2.5-7B.

    python -m leafe_jax.main --config=configs/scienceworld_llama3_1_8b.py \
        --config.model.path=Llama-3.1-8B-Instruct --workdir=runs/scienceworld_llama

The paper's numbers to stand beside: base 7.17 / 48.67, LEAFE 22.70 / 59.33 (Pass@1 / Pass@128).
"""

import runpy
from pathlib import Path

# Config files are executed as files, so a neighbour is not importable by name.
QWEN = runpy.run_path(str(Path(__file__).with_name("scienceworld_qwen2_5_7b.py")))


def get_config(mode: str = "full"):
    c = QWEN["get_config"](mode)
    c.model.path = "Llama-3.1-8B-Instruct"
    return c
