"""LEAFE in JAX: learning agency from reflective experience.

    import leafe_jax

    config = leafe_jax.load_config("quickstart:smoke")
    base = leafe_jax.load_policy(config=config)  # the embedded model plays household tasks
    trees = leafe_jax.explore(base, base.tasks("train", 36))
    data = leafe_jax.make_examples("leafe", trees)
    model = leafe_jax.train(data, "leafe")  # writes the directory leafe/
    leafe = leafe_jax.load_policy(model, config)
    for name, policy in {"base": base, "leafe": leafe}.items():
        evaluation = leafe_jax.evaluate(policy, policy.tasks("test", 6))
        print(name, leafe_jax.pass_at_k(evaluation)["all"]["pass_at_k"]["1"])

docs/API.md describes every function. Names are imported when they are first used, so `import leafe_jax`
alone loads no jax.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Module -> the names that it gives to the package.
_EXPORTS = {
    "envs.base": ("Task",),
    "envs.prompts": ("PromptsConfig",),
    "leafe_jax.agent.evaluate": ("Evaluation", "TaskRecord"),
    "leafe_jax.api": (
        "Data", "LoadedPolicy", "evaluate", "explore", "load_config", "load_policy", "make_examples",
        "pass_at_k", "pass_at_k_difference", "play", "read_trees", "train",
    ),
    "leafe_jax.errors": ("UserError",),
    "leafe_jax.methods.search": ("SearchConfig",),
    "leafe_jax.run.config": (
        "CheckpointConfig", "ContextConfig", "EnvConfig", "EvaluateConfig", "RunConfig", "SamplerConfig",
    ),
    "leafe_jax.training.settings": ("TrainConfig",),
    "leafe_jax.types": ("Budget", "Example", "Node", "Tree", "Turn"),
}  # fmt: skip
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Imports an exported name.

    Raises:
      AttributeError: there is none of this name.
      UserError: this machine's limits are too low to run anything.
    """
    if name not in _MODULES:
        raise AttributeError(f"leafe_jax has no {name!r}; it has {', '.join(__all__)}")
    if _MODULES[name] == "leafe_jax.api":
        from leafe_jax.errors import UserError
        from leafe_jax.runtime import startup

        problem = startup.prepare()  # before jax is imported
        if problem is not None:
            raise UserError(problem)
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
