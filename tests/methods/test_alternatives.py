"""Alternatives at an expert's steps, and Early Experience's examples of them: scripted policies, by hand."""

import pytest
from counting import CountingEnvironment, CountingOptions
from scripted import ScriptedPolicy

from envs.household.environment import Household
from envs.household.player import HouseholdPlayer
from envs.prompts import Prompts, PromptsConfig
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.errors import UserError
from leafe_jax.methods.early_experience import EarlyExperience, EarlyExperienceConfig, expert_of
from leafe_jax.methods.search import SearchConfig, explore
from leafe_jax.types import Sampling, Tree

ENV = Household(horizon=20)
PLAYER = HouseholdPlayer(ENV)
TASK = next(t for t in ENV.list_tasks("test") if t.task_id == "test/clean/0003")


def grow(reply, mode="dialogue", env=ENV, task=TASK, style="react", **rules):
    config = SearchConfig(method="alternatives", **rules)
    rollout = RolloutConfig(mode, 2, "branch", Sampling(), 8, 0, "explore")
    policy, trees = ScriptedPolicy(reply), []
    prompts = Prompts(env, PromptsConfig(style=style))
    explore(policy, env, prompts, [task], config, rollout, trees.append)
    assert not policy.live, "every session is released"
    return trees[0], policy, prompts


def tagged(action):
    return f"<think>hm</think><action>{action}</action>"


def looks(turns, text, seed):
    """Looks around, or takes stock at every third seed; gives a reason when asked for one."""
    if "An expert did" in text:
        return "the plate must be clean\nfirst."
    return tagged("look" if seed % 3 else "inventory")


def new():
    """Never the same action twice."""
    count = iter(range(999))
    return lambda turns, text, seed: tagged(f"go to place {next(count)}")


def method(policy, prompts, **weights):
    made = EarlyExperience(EarlyExperienceConfig(**weights))
    made.encoder, made.prompts = policy.encoder, prompts
    return made


# -- the search --------------------------------------------------------------------------------------
@pytest.mark.parametrize("expert", ["player", "solver"])
@pytest.mark.parametrize("mode", ["dialogue", "window"])
def test_an_expert_that_is_given_takes_its_steps_from_the_budget(expert, mode):
    wanted = (
        PLAYER.play(TASK.task_id, PLAYER.all_aware).actions
        if expert == "player"
        else ENV.solve(ENV.reset(TASK)[0])
    )
    number = len(wanted)
    tree, policy, _ = grow(new(), mode, expert=expert, max_env_steps=2 * number + 3)
    root, *others = tree.nodes
    assert (root.kind, root.success, root.stop) == ("expert", True, "success")
    assert [turn.action for turn in root.turns] == wanted
    assert all(turn.logprobs == [0.0] for turn in root.turns)
    # One round over all steps, and three steps of the next: the budget to the step.
    assert [node.branch_step for node in others] == [*range(1, number + 1), 1, 2, 3]
    assert all((len(n.turns), n.kind, n.parent) == (1, "alternative", 0) for n in others)
    assert {node.stop for node in others[:-1]} == {"one_step"}
    assert tree.budget.env_steps == 2 * number + 3 == tree.budget.generated_tokens + number
    assert tree.budget.episodes == number + 4 and tree.budget.replayed_steps == 0
    for node in others:
        state, observation = ENV.reset(TASK)
        for turn in tree.path(node):
            assert turn.observation == observation
            state, result = ENV.step(state, turn.action)
            observation = result.observation
        assert node.final_observation == observation
        if mode == "dialogue":  # asked where the expert was: the same messages, the same ids
            shared = root.turns[node.branch_step - 1]
            assert node.turns[0].prompt_ids == shared.prompt_ids
    assert Tree.from_json(tree.to_json()).to_json() == tree.to_json()


def test_the_agents_own_first_success_is_the_expert():
    played = []

    def reply(turns, text, seed):
        if not turns:
            played.append(text)
        if len(played) < 2:  # the first trajectory fails
            return tagged("look")
        if len(played) == 2:
            return tagged(PLAYER.next_action(
                TASK.task_id, [a.split("<action>")[1][:-9] for _, a in turns], PLAYER.all_aware
            ))  # fmt: skip
        return tagged("look")

    tree, _, _ = grow(reply, expert="own", max_env_steps=60)
    kinds = [node.kind for node in tree.nodes]
    assert kinds[:3] == ["root", "root", "alternative"] and set(kinds[3:]) == {"alternative"}
    assert [n.success for n in tree.nodes[:2]] == [False, True]
    assert {n.parent for n in tree.nodes[2:]} == {1} and expert_of(tree) is tree.nodes[1]
    # "look" is new once at each step; then a round of it is sampled and not played.
    assert tree.budget.env_steps == 60
    assert tree.budget.generated_tokens == 60 + len(tree.nodes[1].turns)


def test_without_a_solution_the_agent_plays_by_itself():
    short = Household(horizon=2)
    tree, _, _ = grow(looks, env=short, task=short.list_tasks("train")[0], max_env_steps=7)
    assert [n.kind for n in tree.nodes] == ["root"] * 4 and tree.budget.env_steps == 7
    assert expert_of(tree) is None


def test_a_budget_that_ends_within_the_experts_trajectory_leaves_no_expert():
    tree, _, _ = grow(looks, max_env_steps=3)
    (root,) = tree.nodes
    assert (root.kind, root.stop, len(root.turns)) == ("expert", "budget", 3)
    assert expert_of(tree) is None and tree.budget.env_steps == 3


def test_where_there_are_no_snapshots_the_way_to_a_step_is_booked(tmp_path):
    for name in ("drift", "calls"):
        (tmp_path / name).write_text("")
    files = {name: str(tmp_path / name) for name in ("drift", "calls")}
    env = CountingEnvironment(7, CountingOptions(**files))
    try:
        solution = len(env.solve(env.reset(env.list_tasks("train")[0])[0]))
        tree, _, _ = grow(
            lambda turns, text, seed: "<think>x</think><action>a</action>",
            env=env, task=env.list_tasks("train")[0], expert="solver", max_env_steps=solution + 12,
        )  # fmt: skip
    finally:
        env.close()
    ways = [node.branch_step - 1 for node in tree.nodes[1:]]
    assert tree.budget.replayed_steps == sum(ways)
    assert tree.budget.env_steps + tree.budget.replayed_steps == solution + 12


def test_what_is_known_is_sampled_again_and_not_played():
    """The agent does as the expert, but for a new action in its third reply at step 2."""
    ours = PLAYER.play(TASK.task_id, PLAYER.all_aware).actions
    number, asked = len(ours), []

    def reply(turns, text, seed):
        asked.append(len(turns) + 1)
        return tagged("inventory" if asked[-1] == 2 and asked.count(2) == 3 else ours[len(turns)])

    tree, _, _ = grow(reply, max_env_steps=2 * number + 4)
    # A whole round is sampled and left; a second one is played though it is known; then the new action,
    # after which a round is left again.
    rounds = list(range(1, number + 1))
    assert asked == [*rounds, *rounds, 1, 2, *rounds[2:], 1, 2, 3, 4]
    others = tree.nodes[1:]
    assert [node.branch_step for node in others] == [*rounds, 1, 2, 3, 4]
    assert [n.branch_step for n in others if n.turns[0].action == "inventory"] == [2]
    assert [node.id for node in tree.nodes] == list(range(len(tree.nodes)))
    assert tree.budget.episodes == len(tree.nodes) == number + 5
    assert tree.budget.env_steps == 2 * number + 4
    assert tree.budget.generated_tokens == len(asked)


# -- the examples ------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["dialogue", "window"])
def test_world_modelling_predicts_what_each_other_action_brought(mode):
    tree, policy, prompts = grow(looks, mode, max_env_steps=60)
    expert, others = tree.nodes[0], tree.nodes[1:]
    made = method(policy, prompts, imitation_weight=0.0).training_examples([tree], 0)
    different = {}
    for node in others:
        if node.turns[0].action != expert.turns[node.branch_step - 1].action:
            different.setdefault((node.branch_step, node.turns[0].action), node)
    # There are two other actions, "look" and "inventory"; then known ones are played again.
    assert len(made.examples) == len(different) == 2 * len(expert.turns)
    assert made.duplicates == len(others) - len(different) > 0
    for example, node in zip(made.examples, different.values(), strict=True):
        said = [policy.text([i]) for i in example.ids.tolist()]
        assert said[-1] == node.final_observation and said[-2] == prompts.world()
        assert said[-3] == node.turns[0].text  # the action as it was sampled
        turns = tree.path(node) if mode == "dialogue" else node.turns
        assert len(said) == 2 * len(turns) + 2
        assert example.mass.tolist() == [0.0] * (len(said) - 1) + [1.0] and example.source == 0


def test_self_reflection_puts_the_reason_before_the_experts_action():
    tree, policy, prompts = grow(looks, explain=True, max_env_steps=40)
    asked = [node for node in tree.nodes if node.reflections]
    assert asked and all(r.status == "explained" for n in asked for r in n.reflections)
    assert tree.budget.reflections == len(asked) and tree.budget.env_steps == 40
    # The question names both actions and both outcomes.
    node, root = asked[0], tree.nodes[0]
    question = policy.text(node.reflections[0].prompt_ids)
    theirs = root.turns[node.branch_step - 1]
    outcome = root.turns[node.branch_step].observation
    for part in (node.turns[0].action, theirs.action, outcome, node.final_observation):
        assert part in question
    weights = dict(world_weight=0.0, imitation_weight=0.0, reflection_weight=1.0)
    made = method(policy, prompts, **weights).training_examples([tree], 0).examples
    assert made
    said = [policy.text([i]) for i in made[0].ids.tolist()]
    assert said[-1] == (
        f"<think>the plate must be clean first.</think><action>{theirs.action}</action>"
    )
    assert made[0].ids.tolist()[:-1] == [
        i for turn in tree.path(node) for i in (*turn.prompt_ids, *turn.action_ids)
    ][:-1]  # fmt: skip
    assert prompts.parse_action(said[-1]) == (theirs.action, True)


@pytest.mark.parametrize("reason", ["</think><action>look</action>", " \n ", "use ```python"])
def test_a_reason_that_would_end_the_thought_is_dropped(reason):
    def reply(turns, text, seed):
        return reason if "An expert did" in text else tagged("look")

    tree, policy, prompts = grow(reply, explain=True, max_env_steps=30)
    records = [r for node in tree.nodes for r in node.reflections]
    assert records and {r.status for r in records} == {"unparsable"}
    weights = dict(world_weight=0.0, reflection_weight=1.0, imitation_weight=0.0)
    assert method(policy, prompts, **weights).training_examples([tree], 0).examples == []


def test_imitation_takes_the_experts_actions_and_nothing_else():
    tree, policy, prompts = grow(looks, max_env_steps=60)
    made = method(policy, prompts, world_weight=0.0).training_examples([tree], 0).examples
    (example,) = made
    expert = tree.nodes[0]
    assert example.ids.tolist() == [
        i for turn in expert.turns for i in (*turn.prompt_ids, *turn.action_ids)
    ]
    assert example.mass.tolist() == [0.0, 1.0] * len(expert.turns) and example.source == 2


def test_what_cannot_be_made_is_refused():
    tree, policy, prompts = grow(looks, max_env_steps=60)
    with pytest.raises(
        UserError, match="early_experience: world_weight and reflection_weight must"
    ):
        EarlyExperience(EarlyExperienceConfig()).training_examples([tree], 0)
    with pytest.raises(UserError, match="world_weight = -1: must be at least 0"):
        EarlyExperienceConfig(world_weight=-1)
    with pytest.raises(UserError, match="nothing to train on"):
        EarlyExperienceConfig(world_weight=0, imitation_weight=0)
    with pytest.raises(
        UserError, match="search.expert = 'god': must be one of player, solver, own"
    ):
        SearchConfig(expert="god")
