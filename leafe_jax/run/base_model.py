"""The phases `bootstrap`, which makes a base model, and `habits`, which measures one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from etils import epath

from envs.base import Environment
from leafe_jax.bootstrap import habits
from leafe_jax.bootstrap import make as bootstrap
from leafe_jax.errors import UserError
from leafe_jax.methods.base import Agent
from leafe_jax.run.config import RunConfig
from leafe_jax.run.phase import Phase
from leafe_jax.run.validate import first_tasks
from leafe_jax.run.weights import Weights, check_model, given_model
from leafe_jax.runtime import console, processes
from leafe_jax.runtime.files import write_json
from leafe_jax.runtime.metrics import Metrics
from leafe_jax.runtime.progress import Progress


def make(
    config: RunConfig, workdir: epath.Path, log: Callable[[int, dict[str, float]], None]
) -> bool:
    """Makes `workdir`/bootstrap/model, resumably; False if it is there.

    Args:
      config: all settings, with the section `bootstrap`.
      workdir: of the run.
      log: log(step, measurements) of the training.

    Raises:
      UserError: a field of the section is invalid.
    """
    phase = Phase(workdir, "bootstrap", config)
    if phase.intact({"model": check_model}):
        return False
    begin, settings, model = time.monotonic(), config.bootstrap, config.model
    assert settings is not None, "validate refuses the phase without its section"
    start = None
    if not settings.from_scratch:
        start = bootstrap.Checkpoint(given_model(model), model.chat_template, model.enable_thinking)
    with progress_bar(1, "step", "bootstrap") as bar:
        bootstrap.run(
            settings, config.seed, config.sampler.max_len, start, Path(phase.directory),
            phase.begin, log, bar.to,
        )  # fmt: skip
    phase.keep("model")
    phase.add_seconds(time.monotonic() - begin)
    phase.finish()
    return True


def measure(
    config: RunConfig,
    env: Environment,
    agent: Agent,
    weights: Weights,
    workdir: epath.Path,
    metrics: Metrics,
) -> bool:
    """Measures the habits of an agent, once; False if that was done before.

    Raises:
      UserError: the model misses the gate of `config.bootstrap`. It is refused at every start.
    """
    phase = Phase(workdir, "habits", config)
    did = not phase.intact({"habits.json": habits.read_table})
    if did:
        processes.together(
            "habits", decide=lambda _: _measure(config, env, agent, weights, phase, metrics)
        )
        phase.keep("habits.json")
        phase.finish()
    if config.bootstrap is not None:
        table = habits.read_table(phase.directory / "habits.json")
        misses = habits.gate_misses(table, config.bootstrap.gate)
        if misses:
            raise UserError(f"bootstrap.gate: the base model misses it: {'; '.join(misses)}")
    return did


def _measure(
    config: RunConfig,
    env: Environment,
    agent: Agent,
    weights: Weights,
    phase: Phase,
    metrics: Metrics,
) -> None:
    begin, settings = time.monotonic(), config.evaluate
    tasks = first_tasks(env, settings.split, settings.num_tasks, "evaluate.num_tasks")
    make_policy = weights.policies(agent, alone=True)  # the other processes wait
    phase.begin()
    table = habits.measure(
        make_policy, env, agent.prompts, tasks, settings.num_samples, config.habits.reflect_every,
        config.rollout("habits", config.evaluate_sampling(), config.habits.experience_span),
        progress_bar,
    )  # fmt: skip
    write_json(phase.directory / "habits.json", table)
    console.say(habits.console_table(table))
    measured = {k: v for k, v in table["all"].items() if v is not None}
    metrics.scalars(0, {f"habits/{k}": v for k, v in measured.items()})
    phase.add_seconds(time.monotonic() - begin)


def progress_bar(total: int, unit: str, label: str) -> Progress:
    """A bar that the first process shows."""
    return Progress(total, unit, label, shown=processes.first())
