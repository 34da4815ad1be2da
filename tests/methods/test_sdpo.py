"""SDPO: what the teacher is told and sees, and that it is the running average of the student."""

import jax
import numpy as np
import pytest
from bandit import engine as make_engine
from bandit import run
from test_grpo import episode, group, scene
from trainer import equal

from leafe_jax.errors import UserError
from leafe_jax.methods.sdpo import SDPO, SDPOConfig


def sdpo(**changes) -> SDPO:
    return SDPO(SDPOConfig(**changes))


def pair():
    one = group(episode(0.0, 2, lengths=[1, 3]), episode(1.0, 2))
    for e in one.episodes:
        for t in e.turns:
            t.action = f"go {t.step}"
        e.final_observation = "a wall"
        e.shown_actions = [["look"]] * 2
    return one


def test_what_is_told():
    one = pair()
    failed, won = one.episodes
    assert sdpo().told(one, failed) == (
        "Another attempt reached the goal with these actions: go 1; go 2."
    )
    assert sdpo().told(one, won) == ""  # no other one has
    own = sdpo(feedback="outcome").told(one, failed)
    assert own == (
        "This attempt did not reach the goal in 2 steps. The last observation was: a wall"
    )
    both = sdpo(feedback="both")
    assert both.told(one, failed).endswith(own) and "reached the goal in" in both.told(one, won)


@pytest.mark.parametrize("mode", ["dialogue", "window"])
def test_the_teacher_sees_the_feedback_and_the_same_tokens(mode):
    lesson = sdpo().lesson([pair()], scene(mode))
    assert len(lesson.examples) == len(lesson.taught) == (1 if mode == "dialogue" else 2)
    assert sum(e.mass.sum() for e in lesson.examples) == pytest.approx(1)
    for own, other in zip(lesson.examples, lesson.taught, strict=True):
        np.testing.assert_array_equal(own.ids[own.mass > 0], other.ids[other.mass > 0])
        assert own.ids.tolist() != other.ids.tolist()
    # The prompt's length stands for its text: longer with the feedback.
    first = lesson.taught[0].ids
    assert first[0] == 3 and first[1] > len("go 1; go 2")
    assert not sdpo().lesson([pair()], scene(mode, longest=2)).examples, "no room for the feedback"


@pytest.fixture(scope="module")
def engine():
    return make_engine()


@pytest.mark.slow
def test_a_run_and_its_teacher(tmp_path, engine, monkeypatch):
    logged, again = {}, {}
    settings = dict(name="sdpo", feedback="both", iterations=3, probe_every=0)
    whole, loop = run(tmp_path / "whole", engine, logged, **settings)
    teacher = jax.tree.map(np.array, loop.trainer.averaged)
    assert not equal(teacher, whole) and logged[1, "teacher_kl"] != 0
    # Stopped after each iteration, it ends with the same student and the same teacher.
    for number in (1, 2):
        settings["iterations"] = number
        run(tmp_path / "cut", engine, again, **settings)
    settings["iterations"] = 3
    resumed, other = run(tmp_path / "cut", engine, again, **settings)
    assert equal(resumed, whole) and again == logged
    assert equal(jax.tree.map(np.array, other.trainer.averaged), teacher)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"feedback": "x"}, "sdpo.feedback = 'x': must be one of peer, outcome, both"),
        ({"alpha": 0.0}, "sdpo.alpha = 0.0: must be above 0 and at most 1"),
        ({"teacher_rate": 2.0}, "sdpo.teacher_rate = 2.0: must be above 0 and at most 1"),
        ({"ratio_clip": 0.5}, "sdpo.ratio_clip = 0.5: must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(UserError) as caught:
        sdpo(**changes)
    assert str(caught.value) == message
