"""Two rounds of LEAFE: the second explores with the first round's model and trains on from it.

    python -m leafe_jax.main --config=configs/rounds.py --workdir=runs/rounds

`--config=configs/rounds.py:3` makes three rounds, `--config=configs/rounds.py:smoke` two on a handful of
tasks. The report has one line per search, so it shows how reflections change from round to round.
"""

from leafe_jax.run.presets import add_rounds, load_config


def get_config(mode: str = "full"):
    if mode not in ("full", "smoke") and not mode.isdecimal():
        raise ValueError(f"--config=configs/rounds.py:{mode}: must be full, smoke or a number")
    c = load_config("quickstart", "smoke" if mode == "smoke" else "full")
    add_rounds(c, int(mode) if mode.isdecimal() else 2)
    return c
