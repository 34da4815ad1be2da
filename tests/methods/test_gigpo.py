"""GiGPO's advantages: by hand, against verl-agent's in torch, and anchors that are states."""

import collections

import numpy as np
import pytest
import torch
from bandit import Bandit, BanditState
from test_grpo import episode, group

from envs.household.environment import Household
from leafe_jax.errors import UserError
from leafe_jax.methods.gigpo import GiGPO, GiGPOConfig
from leafe_jax.methods.groups import Group, anchor_of


def gigpo(**changes) -> GiGPO:
    return GiGPO(GiGPOConfig(**changes))


def groups() -> Group:
    """Three episodes that meet at the anchors 0 and 2."""
    return group(
        episode(10.0, 3, anchors=[0, 1, 2]),
        episode(0.0, 4, invalid=(2,), anchors=[0, 2, 2, 3]),
        episode(10.0, 2, anchors=[0, 4]),
    )


def verl_agent(one: Group, divide: bool, discount=0.95, weight=1.0):
    """core_gigpo.compute_gigpo_outcome_advantage, in torch: scores of step samples, one by one."""
    scores, steps, anchors = [], [], []
    for e in one.episodes:
        rewards = [t.reward for t in e.turns]
        running, returns = 0.0, []
        for reward in reversed(rewards):
            running = reward + discount * running
            returns.insert(0, running)
        for t, later, anchor in zip(e.turns, returns, e.anchors):
            penalty = 0.0 if t.valid else 0.1
            scores.append(sum(rewards) - penalty)
            steps.append(later - penalty)
            anchors.append(anchor)

    def norm(values, index):
        values = torch.tensor(values, dtype=torch.float64)
        by = collections.defaultdict(list)
        for i, value in zip(index, values):
            by[i].append(value)
        found = []
        for i, value in zip(index, values):
            own = torch.stack(by[i])
            deviation = own.std() + 1e-6 if len(own) > 1 else torch.tensor(1.0 + 1e-6)
            found.append((value - own.mean()) / (deviation if divide else 1.0))
        return torch.stack(found).numpy()

    return norm(scores, [0] * len(scores)) + weight * norm(steps, anchors)


@pytest.mark.parametrize("advantage", ["std", "mean"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_advantages_are_those_of_verl_agent(advantage, weight):
    found = np.concatenate(gigpo(advantage=advantage, step_weight=weight).advantages(groups()))
    expected = verl_agent(groups(), advantage == "std", weight=weight)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected).max() > 0.5


def test_step_advantages_by_hand():
    """At anchor 0 the returns are 9.025, 0 and 9.5; at 2 they are 10, -0.1 (invalid) and 0."""
    found = gigpo(advantage="mean").step_advantages(groups())
    mean, other = (9.025 + 0 + 9.5) / 3, (10 - 0.1 + 0) / 3
    np.testing.assert_allclose(found[0], [9.025 - mean, 0, 10 - other])
    np.testing.assert_allclose(found[1], [-mean, -0.1 - other, -other, 0])
    np.testing.assert_allclose(found[2], [9.5 - mean, 0])
    success = gigpo(advantage="mean", reward="success", invalid_penalty=0.0)
    np.testing.assert_allclose(success.returns(groups().episodes[0]), [0.9025, 0.95, 1.0])


def test_texts_can_be_anchors():
    one = groups()
    for e in one.episodes:
        for t in e.turns:
            t.observation = f"{t.step}"  # all first steps look alike, whatever the state
    found = gigpo(advantage="mean", anchors="text").step_advantages(one)
    second = np.array([found[0][1], found[1][1], found[2][1]])
    assert second.sum() == pytest.approx(0) and np.abs(second).min() > 0
    assert gigpo(advantage="mean").step_advantages(one)[0][1] == 0


def test_anchors_are_equal_states_at_any_time():
    env = Household()
    start, _ = env.reset(env.list_tasks("train")[0])
    there, _ = env.step(start, "look")
    assert there != start and anchor_of(there) == anchor_of(start)
    moved, _ = env.step(start, next(a for a in env.actions(start) if a.startswith("go to")))
    assert anchor_of(moved) != anchor_of(start)
    bandit = Bandit()
    one, _ = bandit.reset("train/door/0001")
    assert isinstance(one, BanditState)
    assert anchor_of(bandit.step(one, "w30")[0]) != anchor_of(bandit.step(one, "w31")[0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"anchors": "x"}, "gigpo.anchors = 'x': must be one of state, text"),
        ({"discount": 1.5}, "gigpo.discount = 1.5: must be 0 to 1"),
        ({"step_weight": -1.0}, "gigpo.step_weight = -1.0: must be at least 0"),
        ({"advantage": "maxrl", "reward": "success"}, "gigpo.advantage = 'maxrl': must be std or mean"),
        ({"group_size": 1}, "gigpo.group_size = 1: must be at least 2"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(UserError) as caught:
        gigpo(**changes)
    assert str(caught.value).startswith(message)
