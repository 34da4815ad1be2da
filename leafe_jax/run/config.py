"""What a config means: which fields a phase depends on, the values that the parts take, and a check of
every field that can be checked before any work."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import envs
from envs.base import Environment, Task
from envs.prompts import STYLES, PromptsConfig
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.errors import UserError
from leafe_jax.methods import leafe as distill
from leafe_jax.methods.search import ExploreConfig
from leafe_jax.types import Sampling

PHASES = ("bootstrap", "habits", "explore", "distill", "evaluate", "report")
METHODS = ("base", "leafe")

# The config sections that a phase's result depends on.
_SAMPLING = ("seed", "model", "env", "context", "sampler")
DEPENDS = {
    "bootstrap": ("seed", "model", "sampler.max_len", "bootstrap"),
    "habits": (
        *_SAMPLING,
        "bootstrap",
        "explore.reflect_every",
        "explore.experience_span",
        "evaluate",
    ),  # fmt: skip
    "explore": (*_SAMPLING, "explore"),
    "distill": (*_SAMPLING, "explore", "distill"),
    "evaluate/base": (*_SAMPLING, "evaluate"),
    "evaluate/leafe": (*_SAMPLING, "explore", "distill", "evaluate"),
}

# Fields that leave the result alone, but for rounding: where it is computed, and in what portions.
_CHANGEABLE = {
    "train": (
        "mesh", "remat", "scan_layers", "accumulation", "loss_chunk", "attention", "max_nonfinite",
        "checkpoint_every", "log_every", "notice_url",
    ),
    "sampler": (
        "tensor", "copies", "num_slots", "num_pages", "page_size", "turn_chunk", "prefill_chunk",
        "attention", "compile_ahead",
    ),
}  # fmt: skip
_CHANGEABLE_FIELD = re.compile(
    "|".join(rf"\b{section}\.({'|'.join(names)})(\.|$)" for section, names in _CHANGEABLE.items())
)


def flatten(config, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in sorted(config.items()):
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def relevant(config, phase: str) -> dict[str, Any]:
    """The fields a phase depends on. Which methods are evaluated is not one of them, nor is the gate
    (what is measured is the same), nor what may change between two starts, such as the mesh."""
    sections = DEPENDS[phase]
    return {
        name: value
        for name, value in flatten(config).items()
        if any(name == s or name.startswith(s + ".") for s in sections)
        and name != "evaluate.methods"
        and not name.startswith("bootstrap.gate.")
        and not _CHANGEABLE_FIELD.search(name)
    }


def make_environment(config) -> Environment:
    """The environment of `config.env`."""
    return envs.make(config.env.name, horizon=config.env.horizon, **config.env.options.to_dict())


def explore_config(config) -> ExploreConfig:
    names = [f.name for f in dataclasses.fields(ExploreConfig)]
    return ExploreConfig(**{name: config.explore[name] for name in names})


def distill_config(config) -> distill.DistillConfig:
    names = [f.name for f in dataclasses.fields(distill.DistillConfig)]
    return distill.DistillConfig(**{name: config.distill[name] for name in names})


def sampling(config, temperature: float) -> Sampling:
    s = config.sampler
    return Sampling(
        temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty, tuple(s.logit_bias),
        tuple(s.stop_ids), tuple(s.stop_strings),
    )  # fmt: skip


def rollout_config(config, purpose: str, temperature: float) -> RolloutConfig:
    return RolloutConfig(
        mode=config.context.mode,
        window=config.context.window,
        experience_span=config.explore.experience_span,
        sampling=sampling(config, temperature),
        max_action_tokens=config.sampler.max_action_tokens,
        seed=config.seed,
        purpose=purpose,
    )


def prompts_config(config) -> PromptsConfig:
    return PromptsConfig(
        style=config.env.prompt_style, answer_tokens=config.sampler.max_reflection_tokens
    )


def first_tasks(env: Environment, split: str, number: int, field: str) -> list[Task]:
    """The first `number` tasks of a split, the families by turns; 0 takes all.

    Some benchmarks list their tasks family by family, and the first ones would be of one family alone.

    Raises:
      UserError: the split has fewer; `field` is the number's name in the config.
    """
    tasks = list(env.list_tasks(split))
    if number > len(tasks):
        raise UserError(f"{field} = {number}: split {split!r} has {len(tasks)} tasks")
    if not number:
        return tasks
    families: dict[str, list[Task]] = {}
    for task in tasks:
        families.setdefault(task.family, []).append(task)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*families.values()))
    return [task for task in turns if task is not None][:number]


def validate(config) -> Environment:
    """Checks every field that can be checked without work; UserError names the first bad one.

    Returns:
      The environment of `config.env`; whoever calls closes it.
    """
    choices = [
        ("env.prompt_style", config.env.prompt_style, STYLES),
        ("context.mode", config.context.mode, ("dialogue", "window")),
        ("explore.experience_span", config.explore.experience_span, ("branch", "step")),
        ("distill.normalisation", config.distill.normalisation, ("example", "token")),
        ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
    ]
    choices += [("phases", phase, PHASES) for phase in config.phases]
    choices += [("evaluate.methods", method, METHODS) for method in config.evaluate.methods]
    for name, value, allowed in choices:
        if value not in allowed:
            raise UserError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")
    if "bootstrap" in config.phases and "bootstrap" not in config:
        raise UserError(
            "phases = 'bootstrap': must have a section bootstrap; see configs/bootstrap.py"
        )
    at_least = [
        ("explore.block_size", config.explore.block_size, 1),
        ("explore.num_tasks", config.explore.num_tasks, 0),
        ("evaluate.block_size", config.evaluate.block_size, 1),
        ("evaluate.num_tasks", config.evaluate.num_tasks, 0),
        ("evaluate.num_samples", config.evaluate.num_samples, 1),
        ("evaluate.num_resamples", config.evaluate.num_resamples, 1),
        ("evaluate.temperature", config.evaluate.temperature, 0),
        ("sampler.max_action_tokens", config.sampler.max_action_tokens, 1),
        ("sampler.max_reflection_tokens", config.sampler.max_reflection_tokens, 1),
        ("context.window", config.context.window, 0),
        ("distill.counterfactual_weight", config.distill.counterfactual_weight, 0),
        ("distill.beta", config.distill.beta, 0),
    ]
    for name, value, least in at_least:
        if not value >= least:
            raise UserError(f"{name} = {value!r}: must be at least {least}")
    if config.distill.counterfactual_weight == 0 and config.distill.beta == 0:
        raise UserError(
            "distill.beta = 0 and distill.counterfactual_weight = 0: nothing to train on"
        )
    sampling(config, config.sampler.temperature)
    explore_config(config)
    distill_config(config)
    env = make_environment(config)
    exploring = "explore" in config.phases
    if exploring and config.explore.split == config.evaluate.split:
        raise UserError(
            f"explore.split = {config.explore.split!r}: must not be the split that is evaluated"
        )
    for phase, section in (("explore",) * 2, ("evaluate",) * 2, ("habits", "evaluate")):
        if phase in config.phases:
            split, number = config[section].split, config[section].num_tasks
            if not first_tasks(env, split, number, f"{section}.num_tasks"):
                raise UserError(f"{section}.split = {split!r}: this split has no task")
    return env
