"""Every search spends the whole of its budget: scripted policies, on environments with and without snapshots."""

import pytest
from counting import CountingEnvironment, CountingOptions
from scripted import ScriptedPolicy

from envs.household.environment import Household
from envs.household.player import HouseholdPlayer
from envs.prompts import Prompts
from envs.sokoban.environment import Sokoban
from leafe_jax.agent.policy import Completion
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.errors import UserError
from leafe_jax.methods.leafe import LeafeConfig, make_examples
from leafe_jax.methods.rft import RejectionFineTuning, RFTConfig
from leafe_jax.methods.search import METHODS, SearchConfig, explore
from leafe_jax.types import Sampling

HOUSE = Household(horizon=20)
PLAYER = HouseholdPlayer(HOUSE)
REPLIES = ("[{}] word {}.", "[{}] word {}.", "no mistake.", "no idea", "[99] far {}.")
ACTIONS = {
    "household": ("look", "inventory"),
    "sokoban": ("up", "down", "left", "right"),
    "counting": ("a", "b", "c", "d", "e", "f", "win"),
}


@pytest.fixture
def make(tmp_path):
    (tmp_path / "drift").write_text("")
    (tmp_path / "calls").write_text("")
    made = []

    def create(name, **options):
        if name == "household":
            return Household(horizon=12)
        if name == "sokoban":
            return Sokoban(horizon=9)
        files = {"drift": str(tmp_path / "drift"), "calls": str(tmp_path / "calls")}
        made.append(CountingEnvironment(7, CountingOptions(**files, **options)))
        return made[-1]

    yield create
    for env in made:
        env.close()


def rules(method, **changes):
    """Rules of a search whose steps are all sampled: tests/methods/test_alternatives.py has other experts."""
    return SearchConfig(method=method, expert="own", **changes)


def noisy(env):
    """Replies that depend on the seed alone; reflections of every kind."""

    def reply(turns, text, seed):
        if "Reflect" in text:
            return REPLIES[seed % 5].format(1 + seed // 5 % 6, seed % 7)
        return ACTIONS[env.name][seed % len(ACTIONS[env.name])]

    return reply


def grow(env, reply, config, num_slots=1, tasks=None, mode="dialogue", policy=ScriptedPolicy):
    rollout = RolloutConfig(mode, 2, config.experience_span, Sampling(), 8, 0, "explore")
    player = policy(reply, num_slots=num_slots)
    trees = []
    tasks = env.list_tasks("train")[:3] if tasks is None else tasks
    explore(player, env, Prompts(env), tasks, config, rollout, trees.append)
    assert not player.live, "every session is released"
    return sorted(trees, key=lambda tree: tree.task_id)


# -- the same budget ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_one_override_changes_the_method_and_not_the_environment_steps(make, name, method):
    env = make(name)
    trees = grow(env, noisy(env), rules(method, reflect_every=4))
    assert len(trees) == 3
    for tree in trees:
        steps = sum(len(node.turns) for node in tree.nodes)
        assert tree.budget.env_steps == steps <= tree.budget.generated_tokens
        # The default budget, to the step.
        assert tree.budget.env_steps + tree.budget.replayed_steps == 60
        begun = [node for node in tree.nodes if node.turns]
        assert tree.budget.episodes == len(begun)
        branched = sum(n.branch_step - 1 for n in begun if n.kind in ("branch", "alternative"))
        assert tree.budget.replayed_steps == (branched if name == "counting" else 0)
    if name == "counting" and method == "tree":
        assert sum(tree.budget.replayed_steps for tree in trees) > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_tokens_is_spent_whole(make, method):
    env = make("household")
    limits = dict(max_env_steps=0, max_generated_tokens=75)
    for tree in grow(env, noisy(env), rules(method, reflect_every=4, **limits)):
        assert tree.budget.generated_tokens == 75  # a reply of the scripted policy is one token
    for limits, bound in (
        (dict(max_env_steps=40, max_generated_tokens=999), "env_steps"),
        (dict(max_env_steps=999, max_generated_tokens=40), "generated_tokens"),
    ):
        for tree in grow(env, noisy(env), rules(method, reflect_every=4, **limits)):
            assert getattr(tree.budget, bound) == 40  # whichever ends first


def played(node):
    """A trajectory without token ids: a scripted policy numbers texts as they come."""
    turns = [(turn.step, turn.experiences, turn.action) for turn in node.turns]
    asked = [(r.step, r.status, r.tau, r.experience, r.child) for r in node.reflections]
    return node.parent, node.branch_step, node.kind, node.experience, node.stop, turns, asked


@pytest.mark.parametrize("name", ["household", "counting"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_spent_does_not_depend_on_the_machine(make, name, method):
    found = []
    for num_slots, workers in ((1, 1), (2, 2), (64, 1)):
        env = make(name, num_workers=workers) if name == "counting" else make(name)
        trees = grow(env, noisy(env), rules(method, reflect_every=3), num_slots)
        found.append([(tree.budget, [played(node) for node in tree.nodes]) for tree in trees])
    assert found[0] == found[1] == found[2]


def test_a_branch_whose_way_back_has_no_room_leaves_it_to_a_root(make):
    def reply(turns, text, seed):
        return f"[{len(turns)}] again." if "Reflect" in text else "a"

    env = make("counting")
    # The root takes 7 steps. Its branch goes back to step 7: 6 replayed and 1 played, 14 in all. The
    # next one would need 7 more steps, and 3 are left.
    config = SearchConfig(num_roots=1, reflect_every=99, max_env_steps=17)
    (tree,) = grow(env, reply, config, tasks=env.list_tasks("train")[:1])
    ends = [(node.kind, len(node.turns), node.stop) for node in tree.nodes]
    assert ends == [
        ("root", 7, "failure"), ("branch", 1, "failure"), ("branch", 0, "budget"), ("root", 3, "budget"),
    ]  # fmt: skip
    assert (tree.budget.env_steps, tree.budget.replayed_steps) == (11, 6)
    assert tree.budget.episodes == 3


# -- trees -------------------------------------------------------------------------------------------
def test_a_tree_with_nothing_left_to_branch_begins_another_root():
    reply = lambda turns, text, seed: "no mistake." if "Reflect" in text else "look"  # noqa: E731
    (tree,) = grow(
        HOUSE, reply, SearchConfig(max_env_steps=70), tasks=HOUSE.list_tasks("train")[:1]
    )
    assert [(n.kind, len(n.turns), n.stop) for n in tree.nodes] == [
        ("root", 20, "failure"), ("root", 20, "failure"), ("root", 20, "failure"), ("root", 10, "budget"),
    ]  # fmt: skip
    # Without a budget, a tree ends when nothing waits; attempts are a cap.
    capped = SearchConfig(max_env_steps=0, max_attempts=9)
    (tree,) = grow(HOUSE, reply, capped, tasks=HOUSE.list_tasks("train")[:1])
    assert len(tree.nodes) == 2
    both = SearchConfig(max_attempts=3, max_env_steps=999)
    (tree,) = grow(HOUSE, reply, both, tasks=HOUSE.list_tasks("train")[:1])
    assert len(tree.nodes) == 3 and tree.budget.env_steps == 60


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [8, 16, 20, 25])
def test_a_trajectory_that_the_budget_cuts_is_no_failure_and_no_success(method, budget):
    """8 and 16 are steps at which a reflection is due; 20 is the horizon, so nothing is cut."""
    asked = []

    def reply(turns, text, seed):
        if "Reflect" in text:
            asked.append(len(turns))
            return "[2] again."
        return "look"

    config = rules(method, num_roots=1, max_env_steps=budget)
    (tree,) = grow(HOUSE, reply, config, tasks=HOUSE.list_tasks("train")[:1])
    last = [node for node in tree.nodes if node.turns][-1]
    assert tree.budget.env_steps == budget and not any(n.success for n in tree.nodes)
    if budget == 20 and method not in ("tree", "linear"):
        assert (last.stop, last.done) == ("failure", True)
    else:
        assert (last.stop, last.done, last.success) == ("budget", False, False)
    assert last.reflections == [] and len(asked) == tree.budget.reflections
    assert make_examples([tree], LeafeConfig(), 0).examples == []
    assert RejectionFineTuning(RFTConfig()).examples([tree], 0).examples == []


# -- refinement --------------------------------------------------------------------------------------
@pytest.mark.parametrize("said", ["no mistake.", "no idea", "[99] open it.", "[0] open it."])
def test_refinement_never_gives_up(said):
    env, told = Household(horizon=5), []

    def reply(turns, text, seed):
        if "Reflect" in text:
            return said
        if not turns:
            told.append(text.count("Experience: open it."))
        return "look"

    config = SearchConfig(method="refine", max_env_steps=18)
    (tree,) = grow(env, reply, config, tasks=env.list_tasks("train")[:1])
    assert [n.kind for n in tree.nodes] == ["root", "retry", "retry", "retry"]
    assert [len(n.turns) for n in tree.nodes] == [5, 5, 5, 3] and tree.budget.reflections == 3
    assert [n.parent for n in tree.nodes] == [None, 0, 1, 2]
    # A step that does not exist does not matter to who starts over: the advice counts.
    followed = said.endswith("open it.")
    assert told == ([0, 1, 2, 3] if followed else [0, 0, 0, 0])
    statuses = [r.status for n in tree.nodes for r in n.reflections]
    assert statuses.count("branched") == (3 if followed else 0)
    assert [r.child for n in tree.nodes for r in n.reflections] == (
        [1, 2, 3] if followed else [None] * 3
    )


@pytest.mark.parametrize("memory", ["all", "last"])
def test_the_memory_of_refinement(memory):
    """All that its chain was told, or the last; kept when a reflection brings nothing; empty after a success."""
    task = next(t for t in HOUSE.list_tasks("test") if t.task_id == "test/clean/0003")
    answers = iter(["[1] first.", "no mistake.", "[2] second.", "[3] third.", "[1] fourth."])

    def reply(turns, text, seed):
        if "Reflect" in text:
            return next(answers, "no mistake.")
        start = (turns[0][0] if turns else text).split("\nExperience: ")
        if "third." in start:  # now it knows the way
            actions = [action for _, action in turns]
            return PLAYER.next_action(task.task_id, actions, PLAYER.all_aware)
        return "look"

    config = SearchConfig(method="refine", max_env_steps=0, max_attempts=7, refine_memory=memory)
    (tree,) = grow(HOUSE, reply, config, tasks=[task])
    shown = [node.turns[0].experiences for node in tree.nodes]
    assert shown == {
        "all": [
            [], ["first."], ["first."], ["first.", "second."], ["first.", "second.", "third."], [],
            ["fourth."],
        ],
        "last": [[], ["first."], ["first."], ["second."], ["third."], [], ["fourth."]],
    }[memory]  # fmt: skip
    assert [n.success for n in tree.nodes] == [False] * 4 + [True] + [False] * 2
    assert [n.kind for n in tree.nodes] == ["root"] + ["retry"] * 4 + ["root", "retry"]
    assert SearchConfig().refine_memory == "all"


# -- nothing goes on for ever ------------------------------------------------------------------------
class Narrow(ScriptedPolicy):
    """Has no room for a first message with two experiences, or with `limit` of them."""

    limit = 2

    def _reply(self, request):
        if request.text.count("Experience: ") >= self.limit:
            return Completion("", (), None, (), (), "context", 0, 0)
        return super()._reply(request)


def test_a_memory_that_does_not_fit_begins_a_new_chain():
    env = Household(horizon=5)
    reply = lambda turns, text, seed: "[1] go." if "Reflect" in text else "look"  # noqa: E731
    config = SearchConfig(method="refine", max_env_steps=20)
    (tree,) = grow(env, reply, config, tasks=env.list_tasks("train")[:1], policy=Narrow)
    assert [(n.kind, len(n.turns), n.stop) for n in tree.nodes] == [
        ("root", 5, "failure"), ("retry", 5, "failure"), ("retry", 0, "context"),
        ("root", 5, "failure"), ("retry", 5, "failure"),
    ]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_task_whose_first_prompt_does_not_fit_ends(method):
    class Full(Narrow):
        limit = 0

    config = rules(method, num_roots=1)
    (tree,) = grow(
        HOUSE, lambda *_: "look", config, tasks=HOUSE.list_tasks("train")[:1], policy=Full
    )
    assert [(n.kind, n.stop) for n in tree.nodes] == [("root", "context")]


def test_a_search_without_any_limit_is_refused():
    with pytest.raises(UserError, match="search.max_attempts = 0: must be at least 1 where"):
        SearchConfig(max_env_steps=0)
    for limit in ("max_attempts", "max_generated_tokens"):
        SearchConfig(**{"max_env_steps": 0, limit: 1})
    with pytest.raises(UserError, match="search.refine_memory = 'none': must be one of all, last"):
        SearchConfig(refine_memory="none")
