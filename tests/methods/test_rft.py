"""Rejection-sampling fine-tuning: all successful trajectories, on their sampled tokens, and nothing else."""

import numpy as np
import pytest
from test_search import grow

from leafe_jax.methods.rft import RejectionFineTuning, RFTConfig


def examples(trees, **changes):
    return RejectionFineTuning(RFTConfig(**changes)).examples(trees, seed=0).examples


def test_all_successes_and_only_sampled_tokens():
    (tree, policy) = grow("test/clean/0003")
    winners = [node for node in tree.nodes if node.success]
    assert winners and len(winners) < len(tree.nodes)
    made = examples([tree])
    assert len(made) == len(winners)
    for example, node in zip(made, winners, strict=True):
        expected, trained = [], []
        for turn in tree.path(node):
            prompt = turn.prompt_ids if turn.plain_prompt_ids is None else turn.plain_prompt_ids
            expected += prompt + turn.action_ids
            trained += [False] * len(prompt) + [True] * len(turn.action_ids)
        assert example.ids.tolist() == expected and example.source == 0
        assert (example.mass > 0).tolist() == trained
        # Each action has mass 1, however many tokens it takes.
        assert example.mass.sum() == pytest.approx(len(tree.path(node)))


def test_failures_leave_nothing():
    tree, _ = grow("test/pick/0003", reply=lambda turns, text, seed: "look")
    assert not any(node.success for node in tree.nodes) and examples([tree]) == []


def test_the_order_of_the_trees_does_not_matter():
    trees = [grow(name)[0] for name in ("test/clean/0003", "test/heat/0003")]
    ours, theirs = examples(trees), examples(trees[::-1])
    assert len(ours) == len(theirs) > 1
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(ours, theirs, strict=True))
