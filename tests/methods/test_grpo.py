"""GRPO's advantages, masses and checks: by hand, and against the same in torch as verl-agent writes it."""

import numpy as np
import pytest
import torch

from envs.household.environment import Household
from envs.prompts import Prompts
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.errors import UserError
from leafe_jax.methods import base
from leafe_jax.methods.groups import Group, Played
from leafe_jax.methods.grpo import GRPO, GRPOConfig
from leafe_jax.methods.on_policy import Scene
from leafe_jax.training.settings import TrainConfig
from leafe_jax.types import Budget, Sampling, Turn


def turn(step, tokens=2, valid=True, reward=0.0, observation="here") -> Turn:
    ids = [10 + step] * tokens
    return Turn(
        step, observation, [], [1, 2, step], None, ids, [-0.1 * step - 0.01 * i for i in range(tokens)],
        "", "", valid, reward,
    )  # fmt: skip


def episode(return_, steps=2, invalid=(), lengths=None, anchors=None) -> Played:
    lengths = lengths or [2] * steps
    turns = [turn(i + 1, lengths[i], i + 1 not in invalid) for i in range(steps)]
    if turns:
        turns[-1].reward = return_
    anchors = list(range(steps)) if anchors is None else anchors
    return Played(turns, return_, return_ > 0, "", "", Budget(), anchors)


def group(*episodes) -> Group:
    return Group("train/x/0", "x", list(episodes))


def scene(mode="dialogue", longest=1000) -> Scene:
    env = Household()
    rollout = RolloutConfig(mode, 2, "branch", Sampling(), 8, 0, "")
    return Scene(env, Prompts(env), rollout, lambda text: [3, len(text)], longest)


def grpo(**changes) -> GRPO:
    return GRPO(GRPOConfig(**changes))


def verl_agent(scores, uids):
    """core_algos.compute_grpo_outcome_advantage over step samples, in torch."""
    scores = torch.tensor(scores, dtype=torch.float64)
    found = torch.zeros_like(scores)
    for uid in set(uids):
        own = torch.tensor([u == uid for u in uids])
        found[own] = (scores[own] - scores[own].mean()) / (scores[own].std() + 1e-6)
    return found.numpy()


def test_advantages_are_those_of_verl_agent():
    """Long episodes weigh more; an invalid step loses 0.1 before the mean is taken."""
    one = group(
        episode(10.0, 2), episode(0.0, 5, invalid=(2, 3)), episode(0.0, 1), episode(10.0, 3)
    )
    expected = verl_agent([10, 10, 0, -0.1, -0.1, 0, 0, 0, 10, 10, 10], [0] * 11)
    found = np.concatenate(grpo().advantages(one))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_variants_of_the_advantage_by_hand():
    one = group(episode(1.0, 1), episode(0.0, 3), episode(0.0, 1), episode(1.0, 1))
    over_episodes = grpo(normalise_over="episodes").advantages(one)
    deviation = np.std([1, 0, 0, 1], ddof=1)
    np.testing.assert_allclose(over_episodes[0], [0.5 / deviation], rtol=1e-5)
    np.testing.assert_allclose(over_episodes[1], [-0.5 / deviation] * 3, rtol=1e-5)
    # Dr.GRPO: no division. Steps are 1, 0, 0, 0, 0, 1.
    np.testing.assert_allclose(grpo(advantage="mean").advantages(one)[1], [-1 / 3] * 3)
    # MaxRL: (r - mean) / mean, of episodes; an invalid step loses its penalty.
    hard = group(episode(1.0, 1), *[episode(0.0, 2, invalid=(2,)) for _ in range(3)])
    maxrl = grpo(advantage="maxrl", reward="success").advantages(hard)
    np.testing.assert_allclose(maxrl[0], [3.0])
    np.testing.assert_allclose(maxrl[1], [-1.0, -1.1])
    none = group(episode(0.0), episode(0.0))
    assert not np.concatenate(grpo(advantage="maxrl", reward="success").advantages(none)).any()


def test_equal_rewards_have_no_advantage_at_all():
    """A mean with a rounding error, divided by epsilon, would have one."""
    for change in ({}, {"advantage": "mean"}, {"normalise_over": "episodes"}):
        found = grpo(**change).advantages(group(*[episode(0.1, 3) for _ in range(7)]))
        assert not np.concatenate(found).any()


@pytest.mark.parametrize("mode", ["dialogue", "window"])
@pytest.mark.parametrize("kind", ["token", "sequence", "constant"])
def test_masses_make_the_mean_that_is_named(mode, kind):
    one = group(episode(1.0, 2, lengths=[1, 3]), episode(0.0, 2, lengths=[4, 2]))
    made = grpo(loss_mean=kind).lesson([one], scene(mode)).examples
    assert len(made) == (2 if mode == "dialogue" else 4)
    mass = np.concatenate([e.mass for e in made])
    each = {"token": [0.1] * 10, "sequence": [1 / (4 * n) for n in (1, 3, 4, 2) for _ in range(n)],
            "constant": [1 / 32] * 10}[kind]  # fmt: skip
    np.testing.assert_allclose(mass[mass > 0], each, rtol=1e-6)
    for example in made:
        trained = example.mass > 0
        assert not example.columns["advantage"][~trained].any()
        assert not example.columns["behaviour_logprob"][~trained].any()
    values = np.concatenate([e.columns["behaviour_logprob"][e.mass > 0] for e in made])
    sampled = [x for e in one.episodes for t in e.turns for x in t.logprobs]
    np.testing.assert_allclose(values, sampled, rtol=1e-6)


def test_what_has_no_gradient_is_left_out_and_still_counted():
    flat, other = group(episode(0.0), episode(0.0)), group(episode(1.0), episode(0.0))
    bare = dict(kl_coefficient=0.0, entropy_coefficient=0.0)
    made = grpo(**bare).lesson([flat, other], scene()).examples
    assert len(made) == 2 and sum(e.mass.sum() for e in made) == pytest.approx(0.5)
    assert len(grpo().lesson([flat, other], scene()).examples) == 4


def test_flat_groups_are_dropped_if_asked():
    flat, other = group(episode(0.0), episode(0.0)), group(episode(1.0), episode(0.0))
    assert grpo().wanted(flat) and grpo().max_rounds == 1
    method = grpo(drop_flat_groups=True)
    assert not method.wanted(flat) and method.wanted(other) and method.max_rounds == 4


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"group_size": 1}, "grpo.group_size = 1: must be at least 2"),
        ({"episodes": 100}, "grpo.episodes = 100: must be a multiple of group_size = 8"),
        ({"reference": "none"}, "grpo.kl_coefficient = 0.01: must be 0 where grpo.reference = 'none'"),
        ({"advantage": "maxrl"}, "grpo.advantage = 'maxrl': needs grpo.reward = 'success'"),
        ({"advantage": "z"}, "grpo.advantage = 'z': must be one of std, mean, maxrl"),
        ({"clip_low": 1.0}, "grpo.clip_low = 1.0: must be at least 0 and below 1"),
        ({"dual_clip": 1.0}, "grpo.dual_clip = 1.0: must be above 1"),
        ({"sampler_weight_cap": 0.5}, "grpo.sampler_weight_cap = 0.5: must be at least 1, or 0"),
        ({"keep": "best", "probe_every": 0}, "grpo.keep = 'best': needs a probe"),
        ({"iterations": 0}, "grpo.iterations = 0: must be at least 1"),
        ({"train": TrainConfig(schedule="linear")}, "grpo.train.schedule = 'linear': must be constant"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError) as caught:
        grpo(**changes)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_settings_that_do_not_go_with_the_run():
    method = grpo()
    method.refuse(8, Sampling(), 385, several=False)
    with pytest.raises(UserError, match="grpo.episodes = 64: must be at most 7 tasks times"):
        method.refuse(7, Sampling(), 385, several=False)
    with pytest.raises(UserError, match="sampler.temperature must be 1"):
        method.refuse(8, Sampling(temperature=0.7), 385, several=False)
    with pytest.raises(UserError, match="grpo.train.seq_len = 384: must be at least 385"):
        method.refuse(8, Sampling(), 386, several=False)
    with pytest.raises(UserError, match="grpo.overlap = True: must be False"):
        grpo(overlap=True).refuse(8, Sampling(), 385, several=True)


def test_it_is_registered_and_reads_its_start():
    made = base.find("grpo")(GRPOConfig(start="rft"))
    assert made.reads == ("rft",) and isinstance(made, GRPO)
