"""LEAFE on CodeContests with Qwen2.5-72B-Instruct, the model of the paper's table for this benchmark.

    python -m leafe_jax.main --config=configs/codecontests_qwen2_5_72b.py \
        --config.model.path=Qwen2.5-72B-Instruct --workdir=runs/codecontests_72b \
        --config.env.options.problems="('train-00000-of-00039.parquet','test-00000-of-00001.parquet')"

Everything but the sizes is configs/codecontests_qwen2_5_7b.py. Weights in bfloat16 take 145 GB, training 16
bytes a parameter: a pod. A step has a row for each of 64 chips, some 1,000 examples where the paper has
128. No numbers have been measured with it yet.
"""

from leafe_jax.run.presets import load_config, set_training


def get_config(mode: str = "full"):
    c = load_config("codecontests_qwen2_5_7b", mode)
    c.model.path = "Qwen2.5-72B-Instruct"  # a directory, or a name for the plan tool
    if mode == "full":
        c.sampler.num_slots = 32
        c.sampler.tensor = 4  # the chips of a v5p host
        set_training(c, loss_chunk=1024, batch_size=64)  # a row for each chip of v5p:4x4x4
    return c
