"""What an environment replies: taken where it is right, named in one line where it is not."""

import math

import numpy as np
import pytest

from envs.base import EnvDataError, Environment, State, StepResult, Task


class Says(Environment):
    """Replies what it is given: `first` after a reset, `result` after a step."""

    name = "says"
    splits = ("only",)

    def __init__(self, first="start", result=None, listed=(), horizon=3):
        super().__init__(horizon)
        self.first, self.result, self.listed = first, result, listed

    def _list_tasks(self, split):
        return [Task("only/x/\udc80", "x", "only")]

    def _reset(self, task_id):
        return self.first if isinstance(self.first, tuple) else (State(task_id), self.first)

    def _step(self, state, action):
        return (state, self.result) if isinstance(self.result, StepResult) else self.result

    def actions(self, state):
        return self.listed

    def solve(self, state):
        return None


def step(observation="seen", reward=0.0, done=False, success=False, info=None):
    env = Says(result=StepResult(observation, reward, done, success, {} if info is None else info))
    return env.step(State("only/x/0"), "go")


def named(message, call, *arguments, **fields):
    with pytest.raises(EnvDataError) as error:
        call(*arguments, **fields)
    assert str(error.value).isprintable() and str(error.value).startswith(message), error.value


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        *[("observation", v, "must be a text (str)") for v in (None, b"x", 5, ["x"], float("nan"))],
        *[("reward", v, "must be a finite number") for v in (
            None, True, "1", float("nan"), float("inf"), -math.inf, 10**400, 2**70 + 1, 1e300, 1j,
            np.float64("nan"), np.float32("inf"), np.bool_(True), np.array([1.0]), [1.0])],
        *[("done", v, "must be True or False") for v in (None, 0, 1, "no", 1.0, np.int64(1))],
        *[("success", v, "must be True or False") for v in (None, 1, "", np.array([True]))],
        ("info", [1], "must be a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_place(field, value, said):
    shown = repr(value)
    place = f"says task 'only/x/0', step 1: {field} = {shown[:80]}"
    named(place, step, **{field: value})
    try:
        step(**{field: value})
    except EnvDataError as error:
        assert said in str(error)


def test_other_wrong_replies_are_named():
    named("says task 'only/x/0', step 1: info['valid'] = 'no': must be", step, info={"valid": "no"})
    for reply in (None, 5, (State("x"),), [State("x"), None]):
        named("says task 'a', step 1: returned", Says(result=reply).step, State("a"), "go")
    named("says task 'a', step 1: result = 'x': must be a StepResult",
          Says(result=(State("a"), "x")).step, State("a"), "go")  # fmt: skip
    named("says task 'a', step 1: state = None: must be a State",
          Says(result=(None, StepResult("x", 0.0, False, False))).step, State("a"), "go")  # fmt: skip
    named("says task 'a', reset: observation = None: must be a text", Says(None).reset, "a")
    named("says task 'a', reset: observation = b'x'", Says(b"x").reset, "a")
    named("says task 'a', reset: state = 5", Says((5, "x")).reset, "a")
    named("says task 'a', reset: returned ('x',)", Says(("x",)).reset, "a")
    for listed in (None, 5, (1,), ("a", None)):
        named(
            "says task 'a', step 1: prompt_actions = ",
            Says(listed=listed).shown_actions,
            State("a"),
        )


def test_numpy_scalars_are_the_values_they_are():
    state, result = step(np.str_("x"), np.float32(0.5), np.bool_(False), np.bool_(True),
                         {"valid": np.bool_(False)})  # fmt: skip
    assert [type(v) for v in (result.observation, result.reward, result.done, result.success)] == [
        str, float, bool, bool,
    ]  # fmt: skip
    assert result.reward == 0.5 and result.done and state.done  # success ends the episode
    assert result.info["valid"] is False
    for reward in (1, -3, np.int64(1), np.array(2.0), 0.1, 2**60):
        assert step(reward=reward)[1].reward == reward


def test_lone_surrogates_are_replaced_and_nothing_else():
    text = "a \udc80 b \ud83d c \U0001f600 \x00 \x1b[2J"
    clean = "a \ufffd b \ufffd c \U0001f600 \x00 \x1b[2J"
    assert step(text)[1].observation == clean
    assert Says(text).reset("a")[1] == clean
    assert Says(listed=(text, "b")).shown_actions(State("a")) == (clean, "b")
    assert Says(listed=text).shown_actions(State("a")) == clean
    assert len(Says(text).split_hash("only")) == 16
