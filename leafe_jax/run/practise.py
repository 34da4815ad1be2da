"""Methods that train on their own rollouts, in a workdir: what the loop is given, and what it leaves."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from etils import epath

from envs.base import Environment, Task
from leafe_jax.agent.evaluate import Evaluation
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.errors import UserError
from leafe_jax.methods.base import Run
from leafe_jax.methods.loop import Loop, Stage
from leafe_jax.methods.on_policy import OnPolicy
from leafe_jax.models import hf
from leafe_jax.run import passk
from leafe_jax.run.base_model import progress_bar
from leafe_jax.run.config import RunConfig
from leafe_jax.run.intervals import mean_interval
from leafe_jax.run.phase import Phase
from leafe_jax.run.validate import first_tasks
from leafe_jax.run.weights import Weights, check_model, export, note_agent
from leafe_jax.runtime import processes
from leafe_jax.runtime.files import fingerprint, put_directory_in_place, remove, write_json
from leafe_jax.runtime.progress import Progress
from leafe_jax.training.start import Start

_LOG = logging.getLogger("leafe_jax")


class Running(Run, Protocol):
    """What is used of leafe_jax/run/experiment.py."""

    config: RunConfig
    env: Environment
    weights: Weights

    def logger(self, prefix: str) -> Callable[[int, dict[str, float]], None]:
        """log(step, measurements), whose names get the prefix."""

    def is_evaluated(self, method: str) -> bool:
        """Whether this run plays the agent of a method after fitting it."""


def outputs(
    method: OnPolicy, trained: bool, summary: Callable[[epath.Path], Any]
) -> Mapping[str, Any]:
    """What a method leaves for others -> a check of it (see Phase.intact)."""
    found: dict[str, Callable[[epath.Path], Any]] = {"summary.json": summary}
    if trained:
        found["model"] = check_model
        if method.config.train.lora.rank and method.config.keep == "last":
            found["adapter"] = fingerprint
    return found


def practise(run: Running, method: OnPolicy, phase: Phase, left: Mapping[str, Any]) -> bool:
    """Runs the loop of a method, resumably; False if that was done before.

    Args:
      run: the run.
      method: whose loop it is.
      phase: of the method.
      left: what it leaves, from `outputs`.

    Raises:
      UserError: see Loop.
    """
    config = run.config
    agent = config.find(method.config.start).agent(run)
    note_agent(config.model, phase, agent)
    if phase.intact(left):
        return False
    own, template = method.config, config.model.chat_template
    tasks = first_tasks(run.env, own.split, own.num_tasks, f"{method.name}.num_tasks")
    probe = _probe_tasks(run.env, method)
    phase.made_of("tasks", _digest([*tasks, *probe]), "the environment's list of tasks")
    begin = time.monotonic()
    make_policy = run.weights.policies(agent)
    phase.begin()
    directory = Path(phase.directory)
    model_config = hf.read_config(str(agent.model))
    train = own.train
    with progress_bar(own.iterations, "iteration", method.name) as bar:
        stage = Stage(
            seed=run.seed,
            directory=directory,
            start=Start(model_config, functools.partial(hf.load_params, agent.model, model_config)),
            policy=make_policy(),
            env=run.env,
            prompts=agent.prompts,
            tasks=tasks,
            probe=probe,
            rollout=functools.partial(_rollout, config),
            probing=_rollout(config, "probe"),
            log=run.logger(method.name),
            interval=mean_interval,
            pass_at_k=probe_values,
            export=lambda params, name: _export_to(
                directory / name, agent.model, train, params, template
            ),
            progress=functools.partial(_show, bar),
        )  # fmt: skip
        loop = Loop(method, stage)
        params = loop.run()
    trained = loop.state.target_tokens > 0
    if trained:
        exported = export(directory, agent.model, train, params, template)
        kept = own.keep == "last" or loop.state.best["iteration"] == loop.state.iteration
        if kept and not train.lora.rank and run.is_evaluated(method.name):
            run.weights.keep(directory / "model", exported)
        if not kept and processes.first():
            _take_best(directory)
    else:
        _LOG.warning(
            "%s: no rollout had anything to learn from: its model stays that of %r",
            method.name, method.config.start,
        )  # fmt: skip
    if processes.first():
        write_json(directory / "summary.json", _summary(loop))
    processes.together(f"{method.name}: written")
    for output in outputs(method, trained, lambda _: None):
        phase.keep(output)
    phase.add_seconds(time.monotonic() - begin)
    phase.finish()
    return True


def _probe_tasks(env: Environment, method: OnPolicy) -> list[Task]:
    own = method.config
    if not own.probe_every:
        return []
    return first_tasks(env, own.probe_split, own.probe_tasks, f"{method.name}.probe_tasks")


def _digest(tasks: Sequence[Task]) -> str:
    ids = "\n".join(task.task_id for task in tasks)
    return hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()


def _rollout(config: RunConfig, purpose: str) -> RolloutConfig:
    return config.rollout(purpose, config.sampler.sampling(), "branch")


def _show(bar: Progress, done: int, total: int, shown: Mapping[str, str]) -> None:
    bar.to(done, total, **shown)


def probe_values(found: Evaluation) -> dict[str, float]:
    """Pass@k of a probe with its intervals: pass_at_1, pass_at_1_low, pass_at_1_high, and so on."""
    summary = passk.summarise(
        {r["task_id"]: r["successes"] for r in found.tasks},
        {r["task_id"]: r["family"] for r in found.tasks},
    )
    values: dict[str, float] = {}
    for k, estimate in summary["all"]["pass_at_k"].items():
        values[f"pass_at_{k}"] = estimate["value"]
        values[f"pass_at_{k}_low"], values[f"pass_at_{k}_high"] = estimate["low"], estimate["high"]
    return values


def _export_to(directory: Path, *arguments: Any) -> None:
    if processes.first():
        directory.mkdir(parents=True, exist_ok=True)
    processes.together("directory of a model")
    export(directory, *arguments)


def _take_best(directory: Path) -> None:
    """The best model in the place of the last, whose weights the last checkpoint still has."""
    best, partial = directory / "best" / "model", directory / "model.partial"
    if not best.is_dir():
        raise UserError(f"{best}: missing; move {directory} away to train again")
    shutil.rmtree(partial, ignore_errors=True)
    if partial.exists():
        remove(partial)
    shutil.copytree(best, partial)
    put_directory_in_place(partial, directory / "model")


def _summary(loop: Loop) -> dict[str, Any]:
    state = loop.state
    return {
        "examples": {"episodes": state.episodes, "groups": state.groups},
        "duplicates": 0,
        "target_tokens": state.target_tokens,
        "iterations": state.iteration,
        "dropped_groups": state.dropped,
        "best": state.best,
        "budget": dataclasses.asdict(state.budget),
        "probe_budget": dataclasses.asdict(state.probe_budget),
    }
