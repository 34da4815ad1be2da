"""What is checked before any work and is no dataclass's own business; which tasks are played."""

from __future__ import annotations

import itertools

import envs
from envs.base import Environment, Task
from leafe_jax.errors import UserError
from leafe_jax.methods.on_policy import OnPolicy
from leafe_jax.run.config import PHASES, RunConfig
from leafe_jax.run.depends import closure, fitted, on_policy, searches
from leafe_jax.runtime import processes


def make_environment(config: RunConfig) -> Environment:
    """The environment of `config.env`."""
    return envs.make(config.env.name, horizon=config.env.horizon, **config.env.options)


def first_tasks(env: Environment, split: str, number: int, field: str) -> list[Task]:
    """The first `number` tasks of a split, taking families in turn; 0 takes all.

    Some benchmarks list their tasks family by family: the first ones would be of one family alone.

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


def validate(config: RunConfig) -> Environment:
    """Checks what can be checked without work and is no dataclass's own business.

    Returns:
      The environment of `config.env`; the caller closes it.

    Raises:
      UserError: names the first bad field.
    """
    choices: list[tuple[str, str, tuple[str, ...]]] = [
        ("context.mode", config.context.mode, ("dialogue", "window")),
        ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
    ]
    choices += [("phases", phase, PHASES) for phase in config.phases]
    for name, value, allowed in choices:
        if value not in allowed:
            raise UserError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")
    if "bootstrap" in config.phases and config.bootstrap is None:
        raise UserError(
            "phases = 'bootstrap': must have a section bootstrap; see configs/bootstrap.py"
        )
    at_least: list[tuple[str, float, int]] = [
        ("evaluate.block_size", config.evaluate.block_size, 1),
        ("evaluate.num_tasks", config.evaluate.num_tasks, 0),
        ("evaluate.num_samples", config.evaluate.num_samples, 1),
        ("sampler.max_action_tokens", config.sampler.max_action_tokens, 1),
        ("context.window", config.context.window, 0),
        ("habits.reflect_every", config.habits.reflect_every, 1),
    ]
    for name, number, least in at_least:
        if not number >= least:
            raise UserError(f"{name} = {number!r}: must be at least {least}")
    config.sampler.sampling()
    config.evaluate_sampling()
    wanted = searches(config)
    for method in config.methods:
        closure(config, method)
    env = make_environment(config)
    if config.prompts.style not in env.prompt_styles:
        raise UserError(
            f"prompts.style = {config.prompts.style!r}: must be one of"
            f" {', '.join(env.prompt_styles)} for {config.env.name}"
        )
    for name in wanted:
        search = config.search[name]
        if search.split == config.evaluate.split:
            raise UserError(
                f"search.{name}.split = {search.split!r}: must not be the split that is evaluated"
            )
        _refuse_empty(env, search.split, search.num_tasks, f"search.{name}")
    for name in fitted(config):
        one = config.find(name)
        one.check(config.prompts)
        played = one.played
        if played is not None:
            split, number = played
            if split == config.evaluate.split:
                raise UserError(
                    f"{name}.split = {split!r}: must not be the split that is evaluated"
                )
            _refuse_empty(env, split, number, name)
    for trained in on_policy(config):
        _check_on_policy(config, env, trained)
    if {"evaluate", "habits"} & set(config.phases):
        _refuse_empty(env, config.evaluate.split, config.evaluate.num_tasks, "evaluate")
    return env


def _check_on_policy(config: RunConfig, env: Environment, method: OnPolicy) -> None:
    settings, name = method.config, method.name
    splits = [("split", "num_tasks")]
    if settings.probe_every:
        splits.append(("probe_split", "probe_tasks"))
    for field, number in splits:
        split = getattr(settings, field)
        if split == config.evaluate.split:
            raise UserError(f"{name}.{field} = {split!r}: must not be the split that is evaluated")
        if not first_tasks(env, split, getattr(settings, number), f"{name}.{number}"):
            raise UserError(f"{name}.{field} = {split!r}: this split has no task")
    if settings.probe_every and settings.probe_split == settings.split:
        raise UserError(
            f"{name}.probe_split = {settings.split!r}: must not be the split it trains on"
        )
    tasks = first_tasks(env, settings.split, settings.num_tasks, f"{name}.num_tasks")
    method.refuse(
        len(tasks), config.sampler.sampling(), config.sampler.max_len, processes.several()
    )


def _refuse_empty(env: Environment, split: str, num_tasks: int, section: str) -> None:
    if not first_tasks(env, split, num_tasks, f"{section}.num_tasks"):
        raise UserError(f"{section}.split = {split!r}: this split has no task")
