"""The method on the embedded model at full size: every field has its default.

    python -m leafe_jax.main --config=configs/default.py --workdir=runs/default

The fields, their defaults and one comment each are in leafe_jax/run/config.py (with the sections of the
methods in leafe_jax/methods/, and of training in leafe_jax/training/settings.py).
"""

from leafe_jax.run.config import default_config


def get_config(mode: str = "full"):
    if mode != "full":
        raise ValueError(f"--config=configs/default.py:{mode}: the only mode is full")
    return default_config()
