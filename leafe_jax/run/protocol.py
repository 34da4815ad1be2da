"""The protocol of a run's numbers: what a reader has to know to compare them with others."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import leafe_jax
from envs.base import Environment
from leafe_jax.run.config import RunConfig
from leafe_jax.run.depends import flatten


def card(config: RunConfig, env: Environment, prompts: Mapping[str, str]) -> dict[str, Any]:
    """The protocol of the evaluation and the searches, in the format of results.json (docs/FORMATS.md).

    Args:
      config: all settings.
      env: the environment of `config.env`.
      prompts: method -> digest of the prompt templates that it was evaluated with.
    """
    settings, rollout = config.evaluate, config.evaluating()
    drawn = rollout.sampling
    available = len(env.list_tasks(settings.split))
    return {
        "environment": config.env.name,
        "versions": versions(env),
        "options": {f"env.options.{k}": v for k, v in flatten(env.options).items()},
        "horizon": env.horizon,
        "split": settings.split,
        "split_hash": env.split_hash(settings.split),
        "tasks": min(settings.num_tasks or available, available),
        "samples": settings.num_samples,
        "temperature": drawn.temperature,
        "top_p": drawn.top_p,
        "top_k": drawn.top_k,
        "min_p": drawn.min_p,
        "repetition_penalty": drawn.repetition_penalty,
        "context_mode": rollout.mode,
        "window": rollout.window if rollout.mode == "window" else None,
        "max_action_tokens": rollout.max_action_tokens,
        "max_len": config.sampler.max_len,
        "prompts": {method: digest[:12] for method, digest in prompts.items()},
        "seed": config.seed,
        "searches": {name: flatten(search) for name, search in config.search.items()},
    }


def versions(env: Environment) -> dict[str, str]:
    """Package -> version of what decides how the environment plays."""
    found = {}
    module = type(env).__module__.partition(".")[0]
    if module == "envs":
        found["leafe_jax"] = leafe_jax.__version__
    else:  # an environment of another package
        for package in importlib.metadata.packages_distributions().get(module, ()):
            found[package] = importlib.metadata.version(package)
    for package in env.packages:
        found[package] = importlib.metadata.version(package)
    return found


def sentence(protocol: Mapping[str, Any]) -> str:
    """The short form for the console: one line on the evaluation, and one for each search."""
    p = protocol
    made = ", ".join(f"{name} {version}" for name, version in p["versions"].items())
    options = ", ".join(f"{k.removeprefix('env.options.')}={v}" for k, v in p["options"].items())
    prompts = " ".join(dict.fromkeys(p["prompts"].values()))
    context = "dialogue" if p["window"] is None else f"window of {p['window']}"
    evaluated = (
        f"split {p['split']} ({p['split_hash']}), {p['tasks']} tasks, {p['samples']} samples a task;"
        f" temperature {p['temperature']:g}, top_p {p['top_p']:g}, top_k {p['top_k']}; prompts {prompts}"
    )
    lines = [
        f"Protocol: {p['environment']} ({made or 'of no package'}; {options or 'no options'}), horizon"
        f" {p['horizon']}; {evaluated if prompts else 'nothing evaluated'}; context {context}; at most"
        f" {p['max_action_tokens']} tokens an action; seed {p['seed']}."
    ]
    for name, search in p["searches"].items():
        budget = ", ".join(f"{k} {v}" for k, v in search.items() if k.startswith("max_"))
        expert = f", expert: {search['expert']}" if search["method"] == "alternatives" else ""
        lines.append(
            f"Search {name}: {search['method']} on {search['split']}, {search['num_tasks'] or 'all'}"
            f" tasks{expert}; {budget}."
        )
    return "\n".join(lines)


def rows(protocol: Mapping[str, Any]) -> list[list[str]]:
    """[name, value] of every entry, for the page's table."""
    found = []
    for name, value in protocol.items():
        if isinstance(value, Mapping):
            for part, inner in value.items():
                if isinstance(inner, Mapping):
                    found += [[f"{name}.{part}.{k}", _shown(v)] for k, v in inner.items()]
                else:
                    label = part if part.startswith("env.") else f"{name}.{part}"
                    found.append([label, _shown(inner)])
        elif value is not None:
            found.append([name.replace("_", " "), _shown(value)])
    return found


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
