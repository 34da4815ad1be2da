"""ERL: a second attempt after a reflection, and what each of the three is trained with."""

import dataclasses

import numpy as np
import pytest
from bandit import engine as make_engine
from bandit import method, run, stage
from test_grpo import episode, group, scene, turn
from trainer import equal

from leafe_jax.errors import UserError
from leafe_jax.methods.erl import ERL, ERLConfig
from leafe_jax.methods.groups import Group
from leafe_jax.methods.loop import Loop


def erl(**changes) -> ERL:
    return ERL(ERLConfig(**changes))


def attempts() -> Group:
    """One success; two failures with a second attempt each, the first of which succeeds; and a failure with a
    reflection that could not be parsed."""
    one = group(episode(1.0, 1), episode(0.0, 2), episode(0.0, 2), episode(0.0, 2))
    for number, second in ((1, episode(1.0, 1)), (2, episode(0.0, 2)), (3, None)):
        failed = one.episodes[number]
        failed.reflection = turn(3, tokens=4, valid=second is not None)
        failed.again = second
        if second is not None:
            second.turns[0].prompt_ids, second.turns[0].plain_prompt_ids = [1, 7, 7, 1], [1, 2, 1]
    return one


def test_a_reflection_has_the_advantage_of_what_followed():
    parts = erl(invalid_penalty=0.0, advantage="mean").parts(attempts())
    assert [len(turns) for turns, _ in parts] == [1, 3, 1, 3, 2, 3]
    # First attempts: steps are 1 and six times 0.
    assert parts[0][1].tolist() == pytest.approx([6 / 7])
    # Second ones, with their reflections: 1, 1; 0, 0, 0; 0.
    assert parts[1][1].tolist() == pytest.approx([-1 / 7, -1 / 7, 1 - 1 / 3])
    assert parts[2][1].tolist() == pytest.approx([1 - 1 / 3])
    assert parts[5][1].tolist() == pytest.approx([-1 / 7, -1 / 7, -1 / 3])


def test_only_second_attempts_that_succeed_are_learned_without_the_advice():
    lesson = erl().lesson([attempts()], scene())
    policy = [e for e in lesson.examples if e.source == 0]
    (learned,) = [e for e in lesson.examples if e.source == 1]
    assert len(policy) == 6
    assert sum(e.mass.sum() for e in policy) == pytest.approx(1)
    assert learned.mass.sum() == pytest.approx(1)
    assert learned.ids.tolist() == [1, 2, 1, 11, 11]  # the plain prompt
    assert policy[2].ids.tolist() == [1, 7, 7, 1, 11, 11]  # the one with the advice
    without = erl(internalise_weight=0.0).lesson([attempts()], scene())
    assert all(e.source == 0 for e in without.examples)


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def test_attempts_are_played(tmp_path, engine):
    """On the sampler: who succeeds is not asked, who fails is, and parsable advice is followed."""
    loop = Loop(method("erl"), stage(tmp_path, engine))
    groups = loop.sample().groups
    again = Group.from_json(groups[0].to_json())
    assert again == groups[0]
    counts = np.zeros(3, int)
    for e in (e for g in groups for e in g.episodes):
        assert (e.reflection is None) == e.success
        if e.reflection is not None:
            assert e.reflection.step == len(e.turns) + 1 and e.reflection.action_ids
            assert e.reflection.valid == (e.again is not None)
        counts += [e.success, e.reflection is not None, e.again is not None]
        attempts_made = 1 + (e.again is not None)
        steps = len(e.turns) + (len(e.again.turns) if e.again else 0)
        assert (e.budget.episodes, e.budget.env_steps) == (attempts_made, steps)
        if e.again is not None:
            first = e.again.turns[0]
            assert first.experiences and first.plain_prompt_ids != first.prompt_ids
    assert (counts > 0).all() and counts[2] < counts[1]


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, engine):
    logged, again = {}, {}
    settings = dict(name="erl", iterations=2, probe_every=0)
    whole, loop = run(tmp_path / "whole", engine, logged, **settings)
    assert "loss_internalised" in {name for _, name in logged}
    # The first step of an iteration has the sampler's weights, the second attempts' prompts included.
    assert logged[0, "sampler_gap"] < 1e-5 and logged[0, "second_success"] >= 0
    run(tmp_path / "cut", engine, again, **{**settings, "iterations": 1})
    resumed, other = run(tmp_path / "cut", engine, again, **settings)
    assert equal(resumed, whole) and again == logged
    assert dataclasses.asdict(other.state) == dataclasses.asdict(loop.state)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError) as caught:
        erl(internalise_weight=-1.0)
    assert str(caught.value) == "erl.internalise_weight = -1.0: must be at least 0"
