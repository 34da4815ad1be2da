"""results.json of runs that nobody has run."""

import json

from leafe_jax.run.config import RunConfig
from leafe_jax.run.depends import flatten
from leafe_jax.run.report.table import RESULTS_SCHEMA

SAMPLES = 4
CODE = {"version": "0.1.0", "commit": "a" * 40, "dirty": False, "sources": "1" * 12}


def spent(env_steps=0, generated_tokens=0, reflections=0, replayed_steps=0):
    return {
        "env_steps": env_steps, "generated_tokens": generated_tokens, "reflections": reflections,
        "replayed_steps": replayed_steps, "prefilled_tokens": 0, "cached_tokens": 0, "episodes": 1,
    }  # fmt: skip


def results(config, methods, searches=None, fits=None):
    """Of a run's ConfigDict: {method: successes of each task}, {search: (solved of each task, budget)}."""
    flat = json.loads(json.dumps(flatten(RunConfig.read(config))))
    listed = {
        name: {"method": search["method"], "split": "train", "num_tasks": 3, "max_env_steps": 60,
               **({"expert": search["expert"]} if search["method"] == "alternatives" else {})}
        for name, search in config.search.items()
    }  # fmt: skip
    return {
        "schema": RESULTS_SCHEMA, "differences": [], "versions": {}, "config": flat, "config_hash": "x",
        "device": "cpu", "made_by": {"report": [CODE]},
        "protocol": {
            "environment": config.env.name, "versions": {}, "options": {}, "horizon": 20, "split": "test",
            "split_hash": "h", "tasks": 3, "samples": SAMPLES, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
            "window": None, "prompts": {"base": "12"}, "max_action_tokens": 8, "seed": config.seed,
            "searches": listed,
        },
        "methods": {
            name: {"tasks": {f"t{i}": {"family": "x", "successes": c} for i, c in enumerate(counts)}}
            for name, counts in methods.items()
        },
        "searches": {
            name: {"solved": {f"t{i}": s for i, s in enumerate(solved)}, "budget": budget, "seconds": 1.0}
            for name, (solved, budget) in (searches or {}).items()
        },
        "fits": fits or {},
    }  # fmt: skip
