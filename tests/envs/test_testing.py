"""envs.testing finds what is wrong with an environment: one defect each, named by one check."""

import dataclasses
import itertools

import pytest

from envs import testing
from envs.base import EnvDataError, Environment, Options, State, StepResult, Task

CLOCK = itertools.count()


@dataclasses.dataclass(frozen=True)
class CountOptions(Options):
    start: int = 0
    loud: bool = False


class Count(Environment):
    """Says a number; "more" adds one, and three is the goal. Nothing is wrong with it."""

    name = "count"
    description = 'Say "more" until it is three.'
    horizon = 5
    Options = CountOptions

    def _list_tasks(self, split):
        return [Task(f"{split}/count/{n}", "count", split) for n in range(2)]

    def _reset(self, task_id):
        if task_id not in {task.task_id for task in self.tasks}:
            raise EnvDataError(f"count task {task_id!r}: unknown")
        return State(task_id), f"{task_id}: {self.options.start}"

    def _step(self, state, action):
        if action != "more":
            return state, StepResult("What?", 0.0, False, False, {"valid": False})
        number = state.num_steps + 1
        return state, StepResult(str(number), 0.0, number == 3, number == 3, {"valid": True})

    def actions(self, state):
        return ("more",)

    def solve(self, state):
        return ["more"] * (3 - state.num_steps) if state.num_steps < 3 else None


@dataclasses.dataclass(frozen=True)
class Salted(State):
    salt: int = 0


class Thawed(State):
    __setattr__ = object.__setattr__


class Restless(Count):
    def _step(self, state, action):
        state, result = super()._step(state, action)
        return state, dataclasses.replace(result, observation=f"{next(CLOCK)}")


class Raises(Count):
    def _step(self, state, action):
        return super()._step(state, action.encode().decode())


class Different(Count):
    def _reset(self, task_id):
        state, text = super()._reset(task_id)
        return Salted(task_id, salt=next(CLOCK)), text


class Melts(Count):
    def _reset(self, task_id):
        return Thawed(task_id), super()._reset(task_id)[1]


class Endless(Count):
    def _finish(self, state, new_state, result):
        new, result = super()._finish(state, new_state, result)
        return dataclasses.replace(new, done=False, success=False), dataclasses.replace(
            result, done=False, success=False
        )


class Mute(Count):
    def _step(self, state, action):
        return state, StepResult("", 0.0, False, False)


class Strange(Count):
    def _step(self, state, action):
        return state, StepResult("x", 0.0, False, False, {"seen": {1, 2}})


class Overlaps(Count):
    def _reset(self, task_id):
        return super()._reset(task_id)[0], "the same words"


class Shuffles(Count):
    def _list_tasks(self, split):
        return [Task(f"{split}/count/{next(CLOCK)}", "count", split)]


class Twice(Count):
    def _list_tasks(self, split):
        return super()._list_tasks(split) * 2


class Elsewhere(Count):
    def _list_tasks(self, split):
        return [Task(f"x/count/{split}", "count", split)]


class TakesAll(Count):
    def _reset(self, task_id):
        return State(task_id), f"{task_id}: 0"


class BadList(Count):
    def actions(self, state):
        return ("more", "less")


class Repeats(Count):
    def actions(self, state):
        return ("more", "more")


class Lost(Count):
    def solve(self, state):
        return ["more"]


class Hopeless(Count):
    def solve(self, state):
        return None


class Hashed(Count):
    """Python's salted hash decides."""

    def _reset(self, task_id):
        state, text = super()._reset(task_id)
        return state, f"{text} {hash(task_id)}"


class Nameless(Count):
    description = ""


class Styled(Count):
    prompt_styles = ("prose",)


class Programs(Count):
    programs = True


@dataclasses.dataclass(frozen=True)
class LaxOptions(CountOptions):
    def __post_init__(self):
        int(self.start or 0) if not isinstance(self.start, list | dict | float | str) else None


class Lax(Count):
    Options = LaxOptions


WRONG = {
    Restless: "states are values", Different: "states are values",
    Melts: "states are values", Raises: "any string is an action, done is final", Endless: "any string is an action, done is final",
    Mute: "any string is an action, done is final", Strange: "any string is an action, done is final",
    Overlaps: "task lists are stable, splits disjoint", Shuffles: "task lists are stable, splits disjoint",
    Twice: "task lists are stable, splits disjoint", Elsewhere: "task lists are stable, splits disjoint",
    TakesAll: "unknown tasks and splits are refused", BadList: "listed actions are understood",
    Repeats: "listed actions are understood", Lost: "plans reach the goal", Hopeless: "plans reach the goal",
    Hashed: "another process plays the same", Nameless: "the class says what it must",
    Styled: "the class says what it must", Programs: "the class says what it must",
    Lax: "an option is taken or named",
}  # fmt: skip


@pytest.mark.parametrize("title", testing.CHECKS)
def test_nothing_is_said_of_a_sound_environment(title):
    testing.CHECKS[title](testing.Subject("test_testing:Count", {"start": 1}, num_tasks=2))


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_what_is_wrong_is_found(kind):
    subject = testing.Subject(f"{kind.__module__}:{kind.__name__}", num_tasks=2)
    with pytest.raises((AssertionError, EnvDataError)):
        testing.CHECKS[WRONG[kind]](subject)


def test_every_check_can_fail():
    assert set(WRONG.values()) == set(testing.CHECKS)


def test_the_program(capsys):
    assert testing.main(["test_testing:Count", "--tasks=1", '--options={"start": 2}']) == 0
    assert capsys.readouterr().out.count("ok ") == len(testing.CHECKS)
    assert testing.main(["test_testing:Mute", "--tasks=1"]) == 1
    assert "FAILED  any string is an action, done is final: " in capsys.readouterr().out
    assert testing.main(["test_testing:Count", '--options={"stop": 2}']) == 2
    assert capsys.readouterr().err == (
        "error: test_testing:Count has no option 'stop'; it has horizon, start, loud\n"
    )
