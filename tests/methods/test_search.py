"""Stage 1 with a scripted policy on the household: rollback, branching, budgets, bookkeeping."""

import json
import re

import pytest
from scripted import ScriptedPolicy

from envs.household.environment import Household
from envs.household.player import HouseholdPlayer
from envs.prompts import Prompts, PromptsConfig
from leafe_jax.agent.policy import Completion
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.errors import UserError
from leafe_jax.methods import leafe
from leafe_jax.methods.leafe import counterfactual_nodes, make_examples
from leafe_jax.methods.search import SearchConfig, explore
from leafe_jax.types import Node, Sampling, Tree, Turn

ENV = Household(horizon=20)
PROMPTS = Prompts(ENV)
PLAYER = HouseholdPlayer(ENV)


def search(**changes) -> SearchConfig:
    return SearchConfig(
        **{**dict(num_roots=1, max_attempts=6, max_depth=4, max_env_steps=0), **changes}
    )


def rollout_config(**changes) -> RolloutConfig:
    fields = dict(
        mode="dialogue", window=3, experience_span="branch", sampling=Sampling(), max_action_tokens=8,
        seed=0, purpose="explore",
    )  # fmt: skip
    return RolloutConfig(**{**fields, **changes})


def player_reply(task_id):
    """A household player with every bad habit, which follows what it is told and reflects rightly.

    It reads nothing but the conversation, as a model would.
    """

    def reply(turns, text, seed):
        actions = [action for _, action in turns]
        told = {
            step: said.split("\nExperience: ")[1].split("\n")[0]
            for step, said in enumerate([*(said for said, _ in turns), text], start=1)
            if "\nExperience: " in said
        }
        if "Reflect:" in text:
            mistake = PLAYER.diagnose(task_id, actions, told)
            if mistake is None:
                return "no mistake."
            return f"[{mistake[0]}] {PLAYER.advice(mistake[1], task_id)}"
        aware = frozenset(h for h in PLAYER.habits if PLAYER.advice(h, task_id) in told.values())
        return PLAYER.next_action(task_id, actions, aware)

    return reply


def grow(
    task_id, config=None, rollout=None, reply=None, max_active=4
) -> tuple[Tree, ScriptedPolicy]:
    policy = ScriptedPolicy(reply or player_reply(task_id), num_slots=max_active)
    task = next(t for t in ENV.list_tasks(task_id.split("/")[0]) if t.task_id == task_id)
    trees = []
    explore(
        policy, ENV, PROMPTS, [task], config or search(), rollout or rollout_config(), trees.append
    )
    return trees[0], policy


@pytest.mark.parametrize("family", ["pick", "look", "clean", "heat", "cool", "two"])
@pytest.mark.parametrize("span", ["branch", "step"])
def test_reflection_and_rollback_solve_what_the_habits_spoil(family, span):
    task_id = f"test/{family}/0003"
    tree, policy = grow(task_id, rollout=rollout_config(experience_span=span))
    root = tree.nodes[0]
    assert not root.success and len(tree.nodes) > 1
    if span == "branch":  # what is told for one step only may be forgotten again
        assert any(n.success for n in tree.nodes)
    for node in tree.nodes[1:]:
        parent = tree.nodes[node.parent]
        # The branch begins at h_tau: same prefix, and the environment replays to what was recorded.
        prefix = [t for t in tree.path(parent) if t.step < node.branch_step]
        assert tree.path(node)[: len(prefix)] == prefix
        assert [t.step for t in tree.path(node)] == list(range(1, len(tree.path(node)) + 1))
        assert node.turns[0].experiences == [node.experience]
        assert not any(t.experiences for t in node.turns[1:])
    for node in tree.nodes:
        state, observation = ENV.reset(task_id)
        for turn in tree.path(node):
            assert turn.observation == observation
            state, result = ENV.step(state, turn.action)
            observation = result.observation
        assert (state.success, observation) == (node.success, node.final_observation)
    assert not policy.live, "every session is released"


def test_only_the_experience_is_missing_from_the_plain_prompt():
    tree, policy = grow("test/clean/0003")
    told = [t for n in tree.nodes for t in n.turns if t.experiences]
    assert told
    for turn in told:
        shown, plain = policy.text(turn.prompt_ids), policy.text(turn.plain_prompt_ids)
        assert shown == plain + "".join(f"\nExperience: {e}" for e in turn.experiences)


def test_step_span_forgets_the_experience_after_one_action():
    seen = []

    def reply(turns, text, seed):
        seen.append((turns, text))
        return player_reply("test/clean/0003")(turns, text, seed)

    grow("test/clean/0003", rollout=rollout_config(experience_span="step"), reply=reply)
    assert any("Experience" in text for _, text in seen)
    assert not any("Experience" in text for turns, _ in seen for text, _ in turns)


def test_window_mode_rebuilds_the_prompt_every_step():
    tree, policy = grow(
        "test/pick/0003",
        rollout=rollout_config(mode="window", window=2),
        reply=lambda turns, text, seed: "[1] look.\n" if "Reflect" in text else "inventory",
        config=search(max_attempts=2),
    )
    root = tree.nodes[0]
    assert all(len(t.prompt_ids) == 1 for t in root.turns)
    fifth = policy.text(root.turns[4].prompt_ids)
    task = root.turns[0].observation
    expected = f"{task}\n[3] {root.turns[2].observation}\n[3] > inventory\n"
    expected += f"[4] {root.turns[3].observation}\n[4] > inventory\n[5] {root.turns[4].observation}"
    assert fifth == expected


def test_window_prompts_of_instruct_models_have_verl_agents_parts():
    """Parts and order of verl-agent's ALFWorld template, for a first and a later step."""
    task = "test/look/0000"
    state, first = ENV.reset(task)
    react = Prompts(ENV, PromptsConfig(style="react"))
    goal = ENV.goal(first)
    assert first.endswith(f"Your task is to: {goal}") and goal.endswith(".")
    opening = react.window(first, [], 1, first, (), goal, ENV.actions(state))
    assert opening.count(goal) == 1 and "already taken" not in opening
    history, observation = [], first
    for action in ENV.solve(state)[:3]:
        history.append((observation, action))
        state, result = ENV.step(state, action)
        observation = result.observation
    later = react.window(
        first, history[-2:], 4, observation, [(3, "open it.")], goal, ENV.actions(state)
    )
    parts = [
        "You are an expert agent",
        ENV.description,
        f"Your task is to: {goal}",
        "already taken 3 step(s)",
        f"[Observation 2: '{history[1][0]}', Action 2: '{history[1][1]}']\n"
        f"[Observation 3: '{history[2][0]}', Action 3: '{history[2][1]}']\n"
        "You are now at step 4.",
        observation,
        str(list(ENV.actions(state))),
        "Experience: open it.",
        "<think> </think>",
        "<action> </action>",
    ]
    places = [later.index(part) for part in parts]
    assert places == sorted(places)
    assert history[0][1] not in later.split("admissible")[0]  # two pairs, not three
    without = react.window(first, history[-2:], 4, observation, (), goal, ENV.actions(state))
    assert later.replace("Experience: open it.\n", "") == without
    reflection = react.reflection(
        4, observation, react.window(first, history, 4, observation, (), goal, None)
    )
    assert "<action>" not in reflection and "Observation 1: " in reflection


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("[99] too far.", "out_of_range"),
        ("[0] before the start.", "out_of_range"),
        ("no idea", "unparsable"),
        ("", "unparsable"),
        ("no mistake.", "no_mistake"),
        ("[999999999] \x00<script>", "out_of_range"),
    ],
)
def test_bad_reflections_are_counted_and_dropped(text, status):
    tree, _ = grow(
        "test/pick/0003",
        reply=lambda turns, user, seed: text if "Reflect" in user else "inventory",
    )
    assert [r.status for r in tree.nodes[0].reflections] == [status] * 3  # steps 8, 16, failure
    assert len(tree.nodes) == 1 and tree.nodes[0].stop == "failure"
    assert tree.budget.reflections == 3 and tree.budget.env_steps == 20


def test_limits():
    def always(turns, user, seed):
        return f"[{len(turns)}] again {seed}." if "Reflect" in user else "look"

    tree, _ = grow("test/pick/0003", config=search(max_attempts=5, max_depth=9), reply=always)
    assert len(tree.nodes) == 5 and tree.budget.episodes == 5
    tree, _ = grow("test/pick/0003", config=search(max_attempts=50, max_depth=2), reply=always)
    assert max(n.depth for n in tree.nodes) == 2
    tree, _ = grow("test/pick/0003", config=search(max_env_steps=11), reply=always)
    assert tree.budget.env_steps == 11 and tree.nodes[-1].stop == "budget"
    with pytest.raises(UserError, match="search.reflect_every = 0"):
        search(reflect_every=0)
    with pytest.raises(UserError, match="search.method = 'mcts'"):
        search(method="mcts")


def test_independent_attempts_end_one_after_the_other():
    """A player that knows the way uses a budget of 50 steps for whole episodes, not for 64 beginnings."""
    task_id = "test/clean/0003"
    tree, policy = grow(
        task_id,
        config=search(method="independent", max_attempts=64, max_env_steps=50),
        reply=lambda turns, text, seed: PLAYER.next_action(
            task_id, [action for _, action in turns], PLAYER.all_aware
        ),
        max_active=128,
    )
    length = len(tree.nodes[0].turns)
    assert tree.budget.env_steps == 50 and tree.budget.episodes == len(tree.nodes)
    assert [n.success for n in tree.nodes] == [True] * (50 // length) + [False] * (50 % length > 0)
    assert not policy.live


def test_branches_that_the_budget_leaves_no_room_for():
    def reply(turns, user, seed):
        return f"[{len(turns)}] retry." if "Reflect" in user else "look"

    tree, policy = grow(
        "test/pick/0003",
        config=search(continue_after_branch=True, reflect_every=5, max_env_steps=12),
        reply=reply,
    )
    assert [(len(n.turns), n.stop) for n in tree.nodes] == [
        (12, "budget"),
        (0, "budget"),
        (0, "budget"),
    ]
    assert tree.budget.episodes == 1 and tree.budget.env_steps == 12 and not policy.live


def test_a_reflection_that_has_no_room_is_not_one():
    class Full(ScriptedPolicy):
        def _reply(self, request):
            if "Reflect" in request.text:
                return Completion("", (), None, (), (), "context", 0, 0)
            return super()._reply(request)

    policy, trees = Full(lambda turns, text, seed: "look"), []
    task = next(t for t in ENV.list_tasks("test") if t.task_id == "test/pick/0003")
    explore(policy, ENV, PROMPTS, [task], search(), rollout_config(), trees.append)
    (tree,) = trees
    assert [r.status for r in tree.nodes[0].reflections] == ["context"] * 3
    assert tree.budget.reflections == 0 and len(tree.nodes) == 1


def test_breadth_first_and_continue_after_branch():
    def reply(turns, user, seed):
        return f"[{len(turns)}] retry." if "Reflect" in user else "look"

    tree, _ = grow(
        "test/pick/0003",
        config=search(continue_after_branch=True, max_attempts=7, reflect_every=5, max_depth=3),
        reply=reply,
    )
    # First in, first out, one after the other: the root's branches come before their own.
    assert [n.parent for n in tree.nodes] == [None, 0, 0, 0, 0, 1, 1]
    assert [n.branch_step for n in tree.nodes[1:5]] == [5, 10, 15, 20]
    assert tree.nodes[0].stop == "failure"


@pytest.mark.parametrize("method", ["independent", "refine"])
def test_other_expansion_rules(method):
    tree, _ = grow("test/clean/0003", config=search(method=method, max_attempts=4))
    if method == "independent":
        assert [n.kind for n in tree.nodes] == ["root"] * 4 and tree.budget.reflections == 0
    else:
        assert [n.kind for n in tree.nodes] == ["root"] + ["retry"] * (len(tree.nodes) - 1)
        assert all(n.branch_step == 1 for n in tree.nodes[1:])
        assert tree.nodes[1].turns[0].experiences == ["open what is closed."]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_roots": 3},
        {"num_roots": 2, "continue_after_branch": True},
        {"num_roots": 2, "max_env_steps": 60},
        {"method": "independent", "max_env_steps": 60},
    ],
)
def test_trees_do_not_depend_on_how_many_run_at_once(changes):
    def noisy(turns, user, seed):
        if "Reflect" in user:
            return f"[{1 + seed % 9}] word {seed % 5}."
        return ("look", "inventory")[seed % 2]

    tasks = ENV.list_tasks("test")[:5]
    results = []
    for max_active in (1, 3, 64):
        trees = []
        explore(
            ScriptedPolicy(noisy, num_slots=max_active), ENV, PROMPTS, tasks, search(**changes),
            rollout_config(), trees.append,
        )  # fmt: skip
        texts = {}
        for tree in trees:
            assert tree.budget.env_steps <= changes.get("max_env_steps", 10**9)
            texts[tree.task_id] = [
                (n.branch_step, n.experience, [(t.step, t.action) for t in n.turns])
                for n in tree.nodes
            ]
        results.append(texts)
    assert results[0] == results[1] == results[2]


def test_tree_json_round_trip():
    tree, _ = grow("test/two/0003")
    assert Tree.from_json(json.loads(json.dumps(tree.to_json()))) == tree
    with pytest.raises(ValueError, match="schema"):
        Tree.from_json({**tree.to_json(), "schema": 99})


def leafe_config(**changes) -> leafe.LeafeConfig:
    return leafe.LeafeConfig(**{**dict(counterfactual_per_task=0, rehearsal_share=1.0), **changes})


def test_distilled_examples_are_token_exact_and_without_experience():
    tree, policy = grow("test/clean/0003")
    examples = make_examples([tree], leafe_config(), seed=0)
    pairs = [e for e in examples if e.source == 0]
    rehearsed = [e for e in examples if e.source == 1]
    successes = [n for n in tree.nodes if n.success]
    assert len(pairs) == 2 and len(rehearsed) == len(successes) == 1
    for example in examples:
        assert "Experience" not in policy.text(example.ids)
    # The pair: context h_tau, loss on a'_tau alone, exactly the ids that were sampled.
    for example, node in zip(pairs, tree.nodes[1:], strict=True):
        turn = node.turns[0]
        assert list(example.ids[-1:]) == turn.action_ids
        assert example.mass.tolist() == [0.0] * (len(example.ids) - 1) + [1.0]
        before = [i for t in tree.path(node) if t.step < node.branch_step
                  for i in [*(t.plain_prompt_ids or t.prompt_ids), *t.action_ids]]  # fmt: skip
        assert example.ids.tolist() == [*before, *turn.plain_prompt_ids, *turn.action_ids]
    # Rehearsal: every action of the path carries loss, no prompt does.
    path = tree.path(successes[0])
    assert rehearsed[0].mass.tolist() == [0.0, 1.0] * len(path)


def test_distill_rules():
    tree, _ = grow("test/clean/0003")
    one = make_examples([tree], leafe_config(counterfactual_per_task=1), seed=0)
    assert sum(e.source == 0 for e in one) == 1
    none = make_examples([tree], leafe_config(rehearsal_share=0.0), seed=0)
    assert all(e.source == 0 for e in none)
    failed, _ = grow("test/clean/0003", config=search(max_attempts=2))
    assert make_examples([failed], leafe_config(), seed=0) == []
    with pytest.raises(UserError, match="leafe.rehearsal_share = 1.5"):
        leafe_config(rehearsal_share=1.5)
    # A branch that took the same action again teaches nothing new.
    tree.nodes[1].turns[0].action = tree.nodes[0].turns[tree.nodes[1].branch_step - 1].action
    changed = make_examples([tree], leafe_config(rehearsal_share=0.0), seed=0)
    assert len(changed) == 1
    assert len(make_examples([tree], leafe_config(changed_only=False, rehearsal_share=0.0), 0)) == 2


def test_improvement_counts_up_to_where_the_parent_was_left():
    def node(number, parent, branch_step, rewards, stop, first=1):
        turns = [
            Turn(first + i, "", [], [1], None, [2], [0.0], str(number), str(number), True, reward)
            for i, reward in enumerate(rewards)
        ]
        made = Node(number, parent, branch_step, number, "root", None, turns)
        made.stop, made.return_ = stop, sum(rewards)
        return made

    def kept(parent_rewards, stop, branch_rewards):
        parent = node(0, None, None, parent_rewards, stop)
        branch = node(1, 0, 2, branch_rewards, "failure", first=2)
        tree = Tree("household", "t", "f", 0, "dialogue", [parent, branch])
        improve = leafe_config(qualify="improve")
        return [n.id for n in counterfactual_nodes(tree, improve)]

    # Left after three steps with 1 in hand: what the branch brings in its fifth does not count ...
    assert kept([1, 0, 0], "branched", [0, 0, 0, 9]) == []
    assert kept([1, 0, 0], "branched", [0, 1]) == [1]
    # ... and does beside a trajectory that came to its own end.
    assert kept([1, 0, 0], "failure", [0, 0, 0, 9]) == [1]


def test_parsers_are_total():
    react = Prompts(ENV, PromptsConfig(style="react"))
    assert react.parse_action("<think>x</think><action> Go To desk 1 </action>") == (
        "go to desk 1",
        True,
    )
    assert react.parse_action("no tags at all, just thirty characters or more")[1] is False
    assert PROMPTS.parse_action("  go  to\n desk 1 ") == ("go to desk 1", True)
    assert PROMPTS.parse_action("") == ("", False)
    assert react.parse_reflection("<think>[9] no</think>Step 3: open it").tau == 3
    for text in ("", "[", "[1]", "[1] ", "\x00", "9" * 500, "[3" * 100):
        parsed = PROMPTS.parse_reflection(text)
        assert parsed.status in ("ok", "no_mistake", "unparsable")
    assert re.fullmatch(r"x{400}", PROMPTS.parse_reflection("[1] " + "x" * 9999).experience)
