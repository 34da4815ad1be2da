"""Methods that grow a playbook (methods/ace.py), in a workdir: batch by batch, a file for each."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from etils import epath

from envs.base import Environment, Task
from leafe_jax.errors import UserError
from leafe_jax.methods.ace import COUNTS, Ace, State, adapt
from leafe_jax.methods.base import Agent, Run
from leafe_jax.methods.playbook import Playbook
from leafe_jax.run.base_model import progress_bar
from leafe_jax.run.config import RunConfig
from leafe_jax.run.phase import Phase
from leafe_jax.run.results import read_summary
from leafe_jax.run.validate import first_tasks
from leafe_jax.run.weights import note_agent
from leafe_jax.runtime import processes
from leafe_jax.runtime.files import read_json, to_json, whole, write_json
from leafe_jax.sampling.lm_policy import LMPolicy
from leafe_jax.types import Tree

_LOG = logging.getLogger("leafe_jax")
_BOOK = "playbook.json"


class Running(Run, Protocol):
    """What is used of leafe_jax/run/experiment.py."""

    config: RunConfig
    env: Environment

    def policies(self, agent: Agent) -> Callable[[], LMPolicy]:
        """Loads an agent's model; the function gives a policy with an empty cache."""


def read_playbook(phase: Phase) -> Playbook:
    """The playbook that the method of `phase` has left.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = phase.directory / _BOOK
    if not phase.done:
        raise UserError(f"methods: {phase.name!r} needs {path}; run the phase 'fit' first")
    problem = phase.problem(_BOOK, _read_state)
    if problem is not None:
        raise UserError(f"{problem}; put 'fit' into --config.phases to make it again")
    return _read_state(path).playbook


def _read_state(path: epath.Path) -> State:
    data = read_json(path)
    try:
        return State.from_json(data["state"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no playbook: {type(error).__name__}: {error}") from error


def grow_playbook(run: Running, method: Ace, phase: Phase) -> bool:
    """Grows the playbook of a method, resumably; False if that was done before.

    Batches follow each other, each with the playbook of the one before. So of several processes the first
    one plays, and the others wait.

    Args:
      run: the run.
      method: whose playbook it is.
      phase: of the method. Its directory gets one file `batch-0000.json` a batch (the state it leaves and
        what it was made of), the attempts in `batch-0000.jsonl`, `playbook.json` and `summary.json`.

    Raises:
      UserError: a file cannot be written, or the model cannot serve a request.
    """
    settings, config = method.config, run.config
    start = run.agent_of(settings.start)
    agent = Agent(start.model, run.prompts)
    note_agent(config.model, phase, agent)
    tasks = first_tasks(run.env, settings.split, settings.num_tasks, f"{method.name}.num_tasks")
    ids = "\n".join(task.task_id for task in tasks)
    digest = hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()
    phase.made_of("tasks", digest, "the environment's list of tasks")
    outputs = {_BOOK: _read_state, "summary.json": read_summary}
    if phase.intact(outputs):
        return False
    make_policy = run.policies(agent)
    phase.begin()
    size = settings.batch_size
    batches = [tasks[i : i + size] for i in range(0, len(tasks), size)]
    rollout = config.rollout("adapt", config.sampler.sampling(), "branch")

    def play(batch: Sequence[Task], state: State) -> tuple[State, list[Tree]]:
        return adapt(make_policy(), run.env, run.prompts, batch, settings, rollout, state)

    def work(_: Any) -> None:
        with progress_bar(len(tasks), "task", method.name) as bar:
            state = _all_batches(phase, batches, play, bar.update)
        write_json(phase.directory / _BOOK, {"state": state.to_json()})
        write_json(phase.directory / "summary.json", _summary(state, settings.token_budget))

    processes.together(f"{method.name}: playbook", decide=work, seconds=None)
    for output in outputs:
        phase.keep(output)
    phase.finish()
    return True


def _all_batches(
    phase: Phase,
    batches: Sequence[Sequence[Task]],
    play: Callable[[Sequence[Task], State], tuple[State, list[Tree]]],
    progress: Callable[[int], None],
) -> State:
    """Plays the batches that are missing, and those that were made from something else: other tasks,
    another config, or another playbook."""
    state = State()
    config = _digest(phase.record["config"])
    for number, batch in enumerate(batches):
        begin, path = time.monotonic(), phase.directory / f"batch-{number:04d}.json"
        made_of = {
            "before": _digest(state.to_json()),
            "config": config,
            "tasks": [task.task_id for task in batch],
        }
        found = _found(phase, path, made_of)
        if found is None:
            state, trees = play(batch, state)
            with whole(path.with_suffix(".jsonl")) as file:
                for tree in trees:
                    file.write(to_json(tree.to_json(), f"{path}, {tree.task_id!r}") + "\n")
            left = {"made_of": made_of, "state": state.to_json()}
            write_json(path, {**left, "digest": _digest(left)})
            phase.add_seconds(time.monotonic() - begin)
        else:
            state = found
        progress(len(batch))
    return state


def _found(phase: Phase, path: epath.Path, made_of: dict[str, Any]) -> State | None:
    """What a batch has left; None if it is to be played."""
    if not path.exists():
        return None
    try:
        data = dict(read_json(path))
        digest = data.pop("digest", None)
        if digest != _digest(data):
            raise UserError(f"{path} is not as it was written")
        if data.get("made_of") == made_of:
            return _read_state(path)
        reason = f"{path} was made from something else"
    except (UserError, TypeError, ValueError) as error:
        reason = str(error)
    _LOG.warning("%s: %s; it is made again", phase.name, reason)
    return None


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _summary(state: State, token_budget: int) -> dict[str, Any]:
    """summary.json, in the form that all methods have; nothing is trained."""
    counts = collections.Counter(state.counts)
    return {
        "examples": {"bullets": len(state.playbook.bullets)},
        "duplicates": counts["duplicate"],
        "target_tokens": 0,
        "playbook": {
            "token_budget": token_budget,
            "reviews": counts["reviews"],
            **{name: counts[name] for name in COUNTS},
        },
        "budget": dataclasses.asdict(state.budget),
    }
