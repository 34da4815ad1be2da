"""Trees read back: what is damaged is refused by node, turn and field before anything uses it."""

import copy
import dataclasses
import json

import pytest

from leafe_jax.errors import UserError
from leafe_jax.methods.leafe import LeafeConfig, make_examples
from leafe_jax.training.records import survey
from leafe_jax.types import Budget, Example, Node, ReflectionRecord, Sampling, Tree, Turn


def tree() -> dict:
    """A root of three steps and a branch from its second, as JSON."""

    def turn(step):
        return Turn(step, "o", [], [1, 2], None, [3, 4], [-0.5, -1.0], "t", "a", True, 0.5)

    reflection = ReflectionRecord(4, [1], [2], [-0.1], "r", "branched", 2, "e", 1)
    root = Node(
        0, None, None, 0, "root", None, [turn(1), turn(2), turn(3)], reflections=[reflection]
    )
    branch = Node(1, 0, 2, 1, "branch", "e", [turn(2), turn(3)], return_=1)
    return json.loads(json.dumps(Tree("e", "t", "f", 0, "dialogue", [root, branch]).to_json()))


NAN, INFINITY = float("nan"), float("inf")
DAMAGE = [
    (("nodes", 0, "turns", 1, "action_ids", 0), True, "node 0, turn 1: action_ids = 'True'"),
    (("nodes", 0, "turns", 1, "action_ids", 0), -1, "must be a list of token ids"),
    (("nodes", 0, "turns", 1, "prompt_ids", 0), 2**31, "prompt_ids = '2147483648'"),
    (("nodes", 0, "turns", 1, "prompt_ids", 0), 1.0, "prompt_ids = '1.0'"),
    (("nodes", 0, "turns", 1, "plain_prompt_ids"), "x", "plain_prompt_ids = 'x'"),
    (("nodes", 0, "turns", 0, "logprobs", 1), NAN, "logprobs = 'nan': must be a list of finite"),
    (("nodes", 0, "turns", 0, "logprobs"), [-1.0], "turn 0: 1 logprobs for 2 ids"),
    (("nodes", 0, "turns", 0, "reward"), INFINITY, "turn 0: reward = 'inf': must be a finite"),
    (
        ("nodes", 0, "turns", 0, "experiences"),
        ["e", 1],
        "experiences = '1': must be a list of texts",
    ),
    (("nodes", 0, "turns", 0, "reward"), None, "reward = 'None'"),
    (("nodes", 0, "turns", 0, "step"), 2, "node 0, turn 0: step = 2: must be 1"),
    (("nodes", 1, "turns", 0, "step"), 3, "node 1, turn 0: step = 3: must be 2"),
    (("nodes", 1, "branch_step"), 9, "node 1: branch_step = 9: must be a step of node 0"),
    (("nodes", 1, "branch_step"), None, "branch_step = None"),
    (("nodes", 1, "parent"), 1, "node 1: parent = 1: must be an earlier node"),
    (("nodes", 1, "id"), 0, "node 1: id = 0: must be 1"),
    (("nodes", 0, "success"), 1, "node 0: success = '1': must be true or false"),
    (("nodes", 0, "return"), "1", "node 0: return = '1': must be a finite number"),
    (("nodes", 0, "turns"), {}, "node 0: turns = '{}': must be a list"),
    (("nodes", 0, "reflections", 0, "tau"), "2", "reflection 0: tau = '2'"),
    (("nodes", 0), [], "node 0: expected an object, found list"),
    (("budget", "episodes"), 0.5, "budget: episodes = '0.5'"),
    (("nodes", 0, "kind"), ..., "node 0: kind: missing"),
    (("extra",), 1, "tree: extra: unknown"),
]


@pytest.mark.parametrize(("path", "value", "message"), DAMAGE)
def test_damaged_trees_are_refused_by_field(path, value, message):
    data = tree()
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    with pytest.raises(ValueError) as error:
        Tree.from_json(data)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_whole_trees_come_back():
    data = tree()
    assert Tree.from_json(copy.deepcopy(data)).to_json() == data
    for other in ([], None, "x", 3):
        with pytest.raises(ValueError, match="expected an object"):
            Tree.from_json(other)


def test_settings_of_the_sampler_that_are_no_ids_or_not_finite():
    for bad in (
        dict(stop_ids=(True,)), dict(stop_ids=(-1,)), dict(stop_ids=(1.0,)),
        dict(logit_bias=((True, 1.0),)), dict(logit_bias=((1, NAN),)),
        dict(logit_bias=((1, INFINITY),)), dict(temperature=INFINITY), dict(temperature=NAN),
        dict(repetition_penalty=INFINITY),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"sampler.{next(iter(bad))}"):
            Sampling(**bad)


def test_examples_with_ids_outside_the_vocabulary_or_masses_that_are_no_numbers():
    import numpy as np

    def example(ids, mass=(0, 1)):
        return Example(np.asarray(ids, np.int32), np.asarray(mass, np.float32), 0)

    assert survey([example([0, 39])], 1, 40).lengths == (1,)
    for ids, found in (([1, 40], 40), ([10**6, 1], 10**6), ([-1, 1], -1)):
        with pytest.raises(UserError, match=f"example 1 has token id {found}: must be 0 to 39"):
            survey([example([1, 2]), example(ids)], 1, 40)
    for mass in ((0, NAN), (0, INFINITY), (0, -1)):
        with pytest.raises(ValueError, match="masses must be finite"):
            example([1, 2], mass)


def test_a_tree_of_thousands_of_branches_in_a_row_is_read_and_distilled():
    turn = Turn(1, "o", [], [1], None, [2], [-0.1], "t", "a", True, 0.5)
    nodes = [Node(0, None, None, 0, "root", None, [turn], return_=0.5)]
    nodes += [Node(i, i - 1, 1, i, "branch", "e", [turn], return_=0.5) for i in range(1, 1100)]
    nodes[-1].success = True
    found = Tree.from_json(Tree("e", "t", "f", 0, "dialogue", nodes).to_json())
    assert found.path(found.nodes[-1]) == [turn]
    config = LeafeConfig(counterfactual_per_task=3, qualify="improve", changed_only=False)
    assert len(make_examples([found], config, 0)) == 4  # three pairs and one that is rehearsed


def test_log_probabilities_of_another_distribution():
    """Absent where both are the same, so that such trees have the bytes of before."""
    data = tree()
    assert "sampled_logprobs" not in json.dumps(data)
    read = Tree.from_json(data)
    assert all(t.sampled_logprobs is None for node in read.nodes for t in node.turns)
    assert read.to_json() == data
    read.nodes[0].turns[1].sampled_logprobs = [-0.25, -0.75]
    read.nodes[0].reflections[0].sampled_logprobs = [-0.2]
    written = json.loads(json.dumps(read.to_json()))
    assert written["nodes"][0]["turns"][1]["sampled_logprobs"] == [-0.25, -0.75]
    assert Tree.from_json(written) == read
    for where, value, message in (
        (("turns", 1), [-1.0], "node 0, turn 1: 1 sampled_logprobs for 2 ids"),
        (("turns", 1), [-1.0, NAN], "turn 1: sampled_logprobs = 'nan': must be a list of finite"),
        (("reflections", 0), [], "node 0, reflection 0: 0 sampled_logprobs for 1 ids"),
    ):
        bad = copy.deepcopy(written)
        bad["nodes"][0][where[0]][where[1]]["sampled_logprobs"] = value
        with pytest.raises(ValueError, match=message):
            Tree.from_json(bad)


def test_budget():
    budget = Budget.within(max_env_steps=3)
    budget.env_steps, budget.generated_tokens = 2, 10**9
    assert not budget.spent
    budget.add(Budget(env_steps=1))
    assert budget.spent and budget.env_steps == 3
    replayed = Budget.within(max_env_steps=3)
    replayed.env_steps, replayed.replayed_steps = 1, 1
    assert replayed.has_room(1) and not replayed.has_room(2) and not replayed.spent
    replayed.replayed_steps = 2
    assert replayed.spent and Budget().has_room(10**9)
    tokens = Budget.within(max_generated_tokens=5)
    tokens.generated_tokens = 5
    assert tokens.spent and not Budget(10**9, 10**9).spent
    # Limits are not what was spent: JSON has the fields of before, and sums leave the limits alone.
    assert set(dataclasses.asdict(budget)) == {
        "env_steps", "generated_tokens", "prefilled_tokens", "cached_tokens", "episodes",
        "reflections", "replayed_steps",
    }  # fmt: skip
    assert budget == Budget(3, 10**9) and budget.max_env_steps == 3
    with pytest.raises(ValueError, match="max_env_steps = -1"):
        Budget.within(max_env_steps=-1)
