"""Linear rollback, by hand: how far it goes back, what it is told, and when it stops asking."""

import math

import pytest
from scripted import ScriptedPolicy
from test_budgets import grow

from envs.household.environment import Household
from leafe_jax.agent.policy import Completion
from leafe_jax.errors import UserError
from leafe_jax.methods.search import SearchConfig

ENV = Household(horizon=20)


def one(reply, policy=None, **rules):
    config = SearchConfig(method="linear", **{"reflect_every": 1, **rules})
    more = {} if policy is None else {"policy": policy}
    (tree,) = grow(ENV, reply, config, tasks=ENV.list_tasks("train")[:1], **more)
    return tree


def advice():
    """Says that step 1 was wrong, each time in other words."""
    count = iter(range(100))
    return lambda turns, text, seed: f"[1] word {next(count)}." if "Reflect" in text else "look"


def test_it_waits_goes_back_a_few_steps_and_never_branches():
    tree = one(advice(), max_env_steps=40)
    chain = tree.nodes[:7]
    assert [n.parent for n in chain] == [None, 0, 1, 2, 3, 4, 5]
    # Six steps before the first question. Then tau = 1 is brought forward to four steps back, so each
    # trajectory is asked about when it has four new steps, or three after the clip.
    assert [n.branch_step for n in chain] == [None, 3, 3, 3, 3, 3, 3]
    assert [len(n.turns) for n in chain[:-1]] == [6, 4, 4, 4, 4, 4]
    assert all(n.stop == "branched" for n in chain[:-1])
    # After six rollbacks it plays to its end: 18 steps of its own would be the horizon, 14 are left.
    assert chain[-1].reflections == [] and (chain[-1].stop, len(chain[-1].turns)) == ("budget", 14)
    assert tree.budget.env_steps == 40 and len(tree.nodes) == 7
    assert all(r.tau == 1 for n in chain for r in n.reflections)  # as it was said


def test_the_newest_explanations_are_told_again():
    tree = one(advice(), max_env_steps=40)
    told = [n.turns[0].experiences for n in tree.nodes]
    assert told == [
        [], ["word 0."], ["word 0.", "word 1."], ["word 0.", "word 1.", "word 2."],
        ["word 1.", "word 2.", "word 3."], ["word 2.", "word 3.", "word 4."],
        ["word 3.", "word 4.", "word 5."],
    ]  # fmt: skip
    only = one(advice(), max_env_steps=40, shown_experiences=1)
    assert [n.turns[0].experiences for n in only.nodes][:3] == [[], ["word 0."], ["word 1."]]


def test_a_new_trajectory_begins_with_nothing_told():
    tree = one(advice(), max_env_steps=60, rollbacks=1)
    roots = [n for n in tree.nodes if n.kind == "root"]
    assert len(roots) > 1 and all(n.turns[0].experiences == [] for n in roots)
    second = next(n for n in tree.nodes if n.parent == roots[1].id)
    assert len(second.turns[0].experiences) == 1, "the memory is that of its own chain"
    assert tree.budget.env_steps == 60


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_an_improbable_reflection_is_not_followed(threshold):
    class Policy(ScriptedPolicy):
        """The two tokens of a reflection have probabilities 0.9 and 0.3: 0.6 on average."""

        def _reply(self, request):
            made = super()._reply(request)
            if "Reflect" not in request.text:
                return made
            return Completion(
                made.text, made.prompt_ids, None, made.ids * 2,
                (math.log(0.9), math.log(0.3)), "stop", 1, 0,
            )  # fmt: skip

    tree = one(advice(), Policy, max_env_steps=12, min_probability=threshold)
    statuses = {r.status for n in tree.nodes for r in n.reflections}
    assert statuses == ({"branched"} if threshold == 0.5 else {"unsure"})


def test_bad_rules_are_refused():
    with pytest.raises(UserError, match="search.min_probability = 2: must be 0 to 1"):
        SearchConfig(min_probability=2)
    with pytest.raises(
        UserError, match="search.rollback_steps = 0: must be an integer of at least 1"
    ):
        SearchConfig(rollback_steps=0)
