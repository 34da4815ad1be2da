"""Property tests that any environment can be put through.

    python -m envs.testing guess:Guess --options='{"largest": 50}'

runs all of them and prints a line for each. From pytest:

    from envs import testing

    @pytest.mark.parametrize("name", testing.CHECKS)
    def test_guess(name):
        testing.CHECKS[name](testing.Subject("guess:Guess", {"largest": 50}))

A check raises AssertionError with one line on what is wrong. Actions are random walks over
`actions(state)` with odd strings in between. The functions on one episode (`check_states_are_values`,
`check_episode`, `check_listed_actions`, `check_plan`) take any actions, such as Hypothesis draws.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import envs
from envs.base import EnvDataError, Environment, StepResult, Task
from envs.player import make_player
from envs.prompts import STYLES
from envs.terminal import one_line

ODD_ACTIONS = (
    "", " ", "\n", "0", "-1", "1e400", "look", "no such action", "<action>", "x" * 5000, "\x00",
    "\x1b[2J", "\ud800", "été ☃", "a\nb\nc", "[SEP]", "search[x]", "{}", "'", "../..",
)  # fmt: skip
ODD_VALUES = (None, True, 5, -1, 2.5, "", "x", [], [5], [[]], {}, {"x": 1}, float("nan"))
_BAD_HORIZONS = (0, -1, 2.5, True, None, [5], "5", float("nan"))
_SHOWN_ACTIONS = 40  # listed actions tried in one state


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is tested.

    Attributes:
      name: as envs.make takes it.
      options: as envs.make takes them.
      num_tasks: tasks of each split that are played, the first ones.
      seed: of the random walks.
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    num_tasks: int = 5
    seed: int = 0

    @functools.cached_property
    def env(self) -> Environment:
        return envs.make(self.name, **self.options)

    def tasks(self) -> list[Task]:
        """The first `num_tasks` tasks of each split."""
        return [t for s in self.env.splits for t in self.env.list_tasks(s)[: self.num_tasks]]

    def walks(self) -> list[tuple[Task, list[str]]]:
        """A task and the actions of a random walk in it, for each of `tasks`."""
        return [(task, random_actions(self.env, task, self.seed)) for task in self.tasks()]


def random_actions(env: Environment, task: Task | str, seed: int) -> list[str]:
    """The actions of a random walk that ends with its episode; one in five is an odd string."""
    state, _ = env.reset(task)
    rng = random.Random(f"{seed}/{state.task_id}")
    actions: list[str] = []
    while not state.done and len(actions) < env.max_replies:
        listed = env.actions(state)
        among = ODD_ACTIONS if not listed or rng.random() < 0.2 else listed
        actions.append(among[rng.randrange(len(among))])
        state, _ = env.step(state, actions[-1])
    return actions


# -- one episode -----------------------------------------------------------------------------------
def play(env: Environment, state: Any, actions: Sequence[str]) -> list[tuple[Any, StepResult]]:
    """(state, result) after each of `actions`, from `state`."""
    trace = []
    for action in actions:
        state, result = env.step(state, action)
        trace.append((state, result))
    return trace


def check_states_are_values(env: Environment, task: Task, actions: Sequence[str], cut: int) -> None:
    """A task begins the same every time; a kept state is frozen, pickles and plays on the same.

    `cut` is the number of actions before the state that is gone back to.
    """
    state, observation = env.reset(task)
    _equal(env.reset(task.task_id), (state, observation), "a second reset")
    _check(hash(state) == hash(env.reset(task)[0]), "equal states have different hashes")
    trace = play(env, state, actions)
    cut = min(cut, len(trace))
    kept = ([state] + [new for new, _ in trace])[cut]
    play(env, kept, ["look", "up", "left", *reversed(actions[:cut])])  # somewhere else
    _equal(play(env, kept, actions[cut:]), trace[cut:], f"playing on from step {cut} again")
    for new in (state, *(new for new, _ in trace)):
        copy = pickle.loads(pickle.dumps(new))
        _check(copy == new and hash(copy) == hash(new), f"{new!r:.200} does not pickle")
    for field in dataclasses.fields(state):
        with contextlib.suppress(dataclasses.FrozenInstanceError):
            setattr(state, field.name, getattr(state, field.name))
            raise AssertionError(f"{type(state).__name__}.{field.name} is not frozen")
    if trace and not trace[0][0].done:
        # Their results in one call are those of single steps, in the order of the moves.
        moves = [(state, actions[0]), (trace[0][0], actions[-1]), (state, actions[0])]
        alone = [env.step(*move) for move in moves]
        _equal(env.step_many(moves), alone, "step_many")


def check_episode(env: Environment, task: Task, actions: Sequence[str]) -> list[tuple[Any, Any]]:
    """Plays `actions` and more until the bounds: any string is an action, and done is final.

    Returns (state, result) after each action.
    """
    state, first = env.reset(task)
    _check_text(first, "the first observation")
    _check(not state.done and state.num_steps == 0, "an episode begins before its first step")
    trace = []
    for number, action in enumerate([*actions, *["look"] * env.max_replies], start=1):
        state, result = check_reply(env, state, action)
        over = state.num_steps >= env.horizon or number >= env.max_replies
        _check(state.done or not over, f"not done after {number} actions, the last {action!r:.80}")
        trace.append((state, result))
    return trace


def check_reply(env: Environment, before: Any, action: str) -> tuple[Any, StepResult]:
    """What `step` returns, which is well-formed and, after the end, changes nothing."""
    try:
        state, result = env.step(before, action)
    except Exception as error:
        raise AssertionError(f"action {action!r:.80} raised {error!r}") from error
    where = f"the reply to {action!r:.80}"
    _check_text(result.observation, where)
    _check(math.isfinite(result.reward), f"{where} has the reward {result.reward}")
    _check_json(dict(result.info), where)
    _check(state.done is result.done, f"{where}: state and result disagree on done")
    _check(state.success is result.success, f"{where}: state and result disagree on success")
    _check(state.done or not state.success, f"{where}: success, but not done")
    _check(state.num_steps - before.num_steps in (0, 1), f"{where} counts no step or one")
    if before.done:
        _equal(state, before, f"{where}, after the end")
        _check(result.reward == 0.0, f"{where}, after the end, has a reward")
    return state, result


def check_listed_actions(env: Environment, state: Any) -> None:
    """The actions listed in `state` are different texts and are understood there."""
    listed = env.actions(state)
    _check(len(set(listed)) == len(listed), f"actions are listed twice: {listed!r:.200}")
    env.shown_actions(state)
    for action in listed[:: max(1, len(listed) // _SHOWN_ACTIONS)]:
        valid = env.step(state, action)[1].info.get("valid", True)
        _check(valid is True, f"the listed action {action!r} is not understood")


def check_plan(env: Environment, task: Task) -> list[tuple[Any, StepResult]] | None:
    """What `solve`'s plan from the start gives, step by step: the goal, in time. None without one."""
    state, _ = env.reset(task)
    plan = env.solve(state)
    if plan is None:
        return None
    _check(len(plan) <= env.horizon, f"{task.task_id}: a plan of {len(plan)} actions")
    trace = play(env, state, plan)
    early = any(new.done for new, _ in trace[:-1])
    _check(not early, f"{task.task_id}: over before the plan's last action")
    won = bool(trace) and trace[-1][0].success
    _check(won, f"{task.task_id}: the plan misses the goal: {plan!r:.200}")
    return trace


# -- all of them -----------------------------------------------------------------------------------
def _class(subject: Subject) -> None:
    kind, env = type(subject.env), subject.env
    for attribute in ("name", "description"):
        _check_text(getattr(kind, attribute), f"{kind.__name__}.{attribute}")
    for horizon in _BAD_HORIZONS:
        _refused(lambda h=horizon: envs.make(subject.name, horizon=h), "env.horizon = ")
    _check(len(set(env.splits)) == len(env.splits) > 0, f"splits = {env.splits!r}")
    styles = env.prompt_styles
    _check(set(styles) <= set(STYLES) and len(styles) > 0, f"prompt_styles = {styles!r}")
    _check(env.programs == ("program" in styles), f"prompt_styles = {styles!r}: but programs")
    if env.player:
        make_player(env)


def _options(subject: Subject) -> None:
    kind = envs.find(subject.name).Options
    _refused(lambda: envs.make(subject.name, no_such_option=1), "no_such_option")
    for field in dataclasses.fields(kind):
        for value in ODD_VALUES:
            try:
                options = kind(**{field.name: value})
            except EnvDataError as error:
                wrong = f"env.options.{field.name} = " not in str(error)
                _check(not wrong, f"{field.name} = {value!r} is refused without a name: {error}")
                continue
            flag = isinstance(field.default, bool)
            _check(value is not True or flag, f"{field.name} takes True for {options!r}")
            with contextlib.suppress(EnvDataError):  # a file that is not there, a missing package
                envs.make(subject.name, **{field.name: value}).close()


def _tasks(subject: Subject) -> None:
    env, seen, first = subject.env, set(), {}
    again = envs.make(subject.name, **subject.options)
    with contextlib.closing(again):
        for split in env.splits:
            tasks = env.list_tasks(split)
            _check(bool(tasks), f"split {split!r} has no tasks")
            _equal(again.list_tasks(split), tasks, f"the tasks of {split!r}, listed again")
            for task in tasks:
                right = task.split == split and task.task_id.startswith(f"{split}/") and task.family
                _check(bool(right), f"{task}: must have its split, an id split/..., and a family")
                _check(task.task_id not in seen, f"{task.task_id} is listed twice")
                seen.add(task.task_id)
            for task in tasks[: 4 * subject.num_tasks]:
                other = first.setdefault(env.reset(task)[1], task)
                _check(
                    other.split == split,
                    f"{task.task_id} and {other.task_id} begin with the same words",
                )


def _refusals(subject: Subject) -> None:
    env = subject.env
    known = subject.tasks()[0].task_id
    for task_id in ("", known + "/x", known[:-1] + "☃", "nowhere/x/0000", f"{env.splits[0]}/x/-1"):
        _refused(lambda t=task_id: env.reset(t), "task")
    for split in ("", "nowhere"):
        _refused(lambda s=split: env.list_tasks(s), "split")


def _states(subject: Subject) -> None:
    for task, actions in subject.walks():
        check_states_are_values(subject.env, task, actions, len(actions) // 2)


def _episodes(subject: Subject) -> None:
    for task, actions in subject.walks():
        check_episode(subject.env, task, actions)
    state, _ = subject.env.reset(subject.tasks()[0])
    for action in ODD_ACTIONS:
        check_reply(subject.env, state, action)


def _listed(subject: Subject) -> None:
    for task, actions in subject.walks():
        state, _ = subject.env.reset(task)
        for action in actions:
            if not state.done:
                check_listed_actions(subject.env, state)
                state, _ = subject.env.step(state, action)


def _plans(subject: Subject) -> None:
    found = [check_plan(subject.env, task) for task in subject.tasks()]
    _check(any(found), f"solve knows no plan for any of {len(found)} tasks")


def digest(subject: Subject) -> str:
    """A hash of all task ids, and of a random walk in each of `subject.tasks()`."""
    env, found = subject.env, hashlib.sha256()
    ids = [task.task_id for split in env.splits for task in env.list_tasks(split)]
    found.update(repr(ids).encode())
    for task, actions in subject.walks():
        state, observation = env.reset(task)
        replies = [(result.observation, result.reward) for _, result in play(env, state, actions)]
        found.update(repr((observation, replies)).encode())
    return found.hexdigest()


def _processes(subject: Subject) -> None:
    code = (
        "import sys, json; from envs import testing;"
        " print(testing.digest(testing.Subject(**json.loads(sys.argv[1]))))"
    )
    fields = {**dataclasses.asdict(subject), "options": dict(subject.options)}
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    here = digest(subject)
    for seed in ("1", "2"):  # of Python's own hash, which must decide nothing
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(fields)], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        _check(done.returncode == 0, f"another process failed: {done.stderr[-500:]}")
        _equal(done.stdout.split()[-1], here, "tasks and random walks in another process")


CHECKS: dict[str, Callable[[Subject], None]] = {
    "the class says what it must": _class,
    "an option is taken or named": _options,
    "task lists are stable, splits disjoint": _tasks,
    "unknown tasks and splits are refused": _refusals,
    "states are values": _states,
    "any string is an action, done is final": _episodes,
    "listed actions are understood": _listed,
    "plans reach the goal": _plans,
    "another process plays the same": _processes,
}


# -- helpers ---------------------------------------------------------------------------------------
def _check(right: bool, message: str) -> None:
    if not right:
        raise AssertionError(message)


def _equal(found: Any, expected: Any, what: str) -> None:
    _check(found == expected, f"{what} gives {found!r:.300}, not {expected!r:.300}")


def _check_text(text: Any, what: str) -> None:
    _check(isinstance(text, str) and bool(text), f"{what} is {text!r:.80}, not a text")
    surrogate = any("\ud800" <= character <= "\udfff" for character in text)
    _check(not surrogate, f"{what} has a lone surrogate")


def _check_json(info: dict, where: str) -> None:
    try:
        json.dumps(info)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{where} has an info that is not JSON: {error}") from error


def _refused(call: Callable[[], Any], named: str) -> None:
    """`call` raises an EnvDataError that says `named`."""
    try:
        call()
    except EnvDataError as error:
        _check(named in str(error), f"the error does not say {named!r}: {error}")
    except Exception as error:
        raise AssertionError(f"{error!r} is not an EnvDataError") from error
    else:
        raise AssertionError(f"what should be refused with {named!r} is taken")


def main(arguments: Sequence[str]) -> int:
    """Runs all checks; 0, 1 if one fails, 2 and one line for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m envs.testing", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("env", help=f"one of {', '.join(envs.names())}, or package.module:Class")
    parser.add_argument("--options", type=json.loads, default={}, help="options, as JSON")
    parser.add_argument("--tasks", type=int, default=5, help="tasks of each split that are played")
    parser.add_argument("--seed", type=int, default=0, help="of the random walks")
    flags = parser.parse_args(arguments)
    subject = Subject(flags.env, flags.options, flags.tasks, flags.seed)
    try:
        env = subject.env
    except (EnvDataError, TypeError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    failed = 0
    with contextlib.closing(env):
        for title, check in CHECKS.items():
            try:
                check(subject)
            except Exception as error:
                failed += 1
                kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
                print(f"FAILED  {title}: {kind}{one_line(str(error))}", flush=True)
            else:
                print(f"ok      {title}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
