"""Stage 2's data: which branches give a pair, what is rehearsed, duplicates; trees scripted or drawn."""

import random

import pytest
from test_search import PLAYER, grow, search

from leafe_jax.errors import UserError
from leafe_jax.methods import leafe
from leafe_jax.methods.leafe import REHEARSAL, counterfactual_nodes, make_examples
from leafe_jax.types import Node, Tree, Turn


def leafe_config(**changes) -> leafe.LeafeConfig:
    return leafe.LeafeConfig(**{**dict(counterfactual_per_task=0, rehearsal_share=1.0), **changes})


def test_distilled_examples_are_token_exact_and_without_experience():
    tree, policy = grow("test/clean/0003")
    examples = make_examples([tree], leafe_config(), seed=0).examples
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
    one = make_examples([tree], leafe_config(counterfactual_per_task=1), seed=0).examples
    assert sum(e.source == 0 for e in one) == 1
    none = make_examples([tree], leafe_config(rehearsal_share=0.0), seed=0).examples
    assert all(e.source == 0 for e in none)
    failed, _ = grow("test/clean/0003", config=search(max_attempts=2))
    assert make_examples([failed], leafe_config(), seed=0).examples == []
    with pytest.raises(UserError, match="leafe.rehearsal_share = 1.5"):
        leafe_config(rehearsal_share=1.5)
    # A branch that took the same action again teaches nothing new.
    tree.nodes[1].turns[0].action = tree.nodes[0].turns[tree.nodes[1].branch_step - 1].action
    changed = make_examples([tree], leafe_config(rehearsal_share=0.0), seed=0).examples
    assert len(changed) == 1
    kept = make_examples([tree], leafe_config(changed_only=False, rehearsal_share=0.0), 0)
    assert len(kept.examples) == 2


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


# -- which branches qualify ------------------------------------------------------------------------
def detour(turns, text, seed):
    """Reflects twice: on the root, where step 3 is named, and on its branch, where step 2 is. What the
    first one leads to is as useless as before; the second one's branch plays rightly."""
    told = "".join([*(said for said, _ in turns), text])
    if "Reflect:" in text:
        return "[2] go." if "Experience: wait." in told else "[3] wait."
    if "Experience: go." in told:
        return PLAYER.next_action(
            "test/clean/0003", [action for _, action in turns], PLAYER.all_aware
        )
    return "inventory" if "Experience: wait." in told else "look"


def test_a_child_that_takes_back_the_revised_action_does_not_qualify_it():
    """root --3: wait--> useless branch --2: go--> success. The success does not contain the useless a'_3."""
    tree, policy = grow("test/clean/0003", reply=detour)
    assert [(n.parent, n.branch_step, n.success) for n in tree.nodes] == [
        (None, None, False), (0, 3, False), (1, 2, True),
    ]  # fmt: skip
    assert [n.id for n in counterfactual_nodes(tree, leafe_config())] == [2]
    pairs = [e for e in make_examples([tree], leafe_config(), 0).examples if not e.source]
    assert [policy.text(e.ids[-1:]) for e in pairs] == [tree.nodes[2].turns[0].text]


def turn(step, ids=None, reward=0.0, experience=None):
    """Ids 10 * step + 1, and a further one for what was said with e, are the prompt."""
    plain = [10 * step + 1]
    shown = plain if experience is None else [*plain, 1000]
    name = str(ids)
    return Turn(
        step, "o", [] if experience is None else [experience], shown, None if experience is None else plain, ids or [10 * step],
        [0.0] * len(ids or [0]), name, name, True, reward,
    )  # fmt: skip


def drawn_tree(rng):
    """A random tree of up to 12 trajectories; no two turns have the same action."""
    nodes, names = [], iter(range(2000, 9000))
    for _ in range(rng.randint(2, 12)):
        roots = not nodes or rng.random() < 0.15
        parent = None if roots else rng.choice(nodes)
        first = 1
        if parent is not None:
            last = parent.turns[-1].step if parent.turns else parent.branch_step - 1
            if last < 1:
                continue
            first = rng.randint(1, last)
        length = rng.choice((0, 1, 2, 3, 4)) if parent is not None else rng.randint(1, 5)
        turns = [
            turn(
                first + i,
                [next(names)],
                rng.choice((0.0, 0.5, 1.0)),
                "e" if i == 0 and parent else None,
            )
            for i in range(length)
        ]
        node = Node(
            len(nodes), None if parent is None else parent.id, None if parent is None else first,
            0, "root" if parent is None else "branch", None if parent is None else "e", turns,
        )  # fmt: skip
        node.success = bool(turns) and rng.random() < 0.3
        node.stop = "success" if node.success else rng.choice(("failure", "branched"))
        nodes.append(node)
    tree = Tree("household", "t", "f", 0, "dialogue", nodes)
    for node in nodes:
        node.return_ = sum(t.reward for t in tree.path(node))
    return tree


def test_the_branches_that_qualify_are_those_of_brute_force():
    """The first turn stands, as the same object, on the path of a trajectory that succeeds or improves."""
    counts = {"success": 0, "improve": 0}
    for seed in range(300):
        tree = drawn_tree(random.Random(seed))
        Tree.from_json(tree.to_json())  # its shape is that of a tree
        expected = {"success": [], "improve": []}
        for node in tree.nodes:
            if node.parent is None or not node.turns:
                continue
            on = [n for n in tree.nodes if any(t is node.turns[0] for t in tree.path(n))]
            parent = tree.nodes[node.parent]
            steps = [t.step for t in tree.path(parent)]
            last = max(steps) if parent.stop == "branched" else 10**9
            best = max(sum(t.reward for t in tree.path(n) if t.step <= last) for n in on)
            succeeds = any(n.success for n in on)
            if succeeds:
                expected["success"].append(node.id)
            if succeeds or best > parent.return_:
                expected["improve"].append(node.id)
        for qualify, ids in expected.items():
            config = leafe_config(qualify=qualify, changed_only=False)
            assert [n.id for n in counterfactual_nodes(tree, config)] == ids, (seed, qualify)
            counts[qualify] += len(ids)
    assert 200 < counts["success"] < counts["improve"]


# -- duplicates ------------------------------------------------------------------------------------
def bush(actions, success=True, mode="dialogue"):
    """A root of three steps and a branch at step 2 for each action, whose ids it is."""
    root = Node(0, None, None, 0, "root", None, [turn(1), turn(2), turn(3)])
    branches = [
        Node(i, 0, 2, 1, "branch", f"e{i}", [turn(2, ids, experience=f"e{i}")], success=success)
        for i, ids in enumerate(actions, 1)
    ]
    return Tree("household", "t", "f", 0, mode, [root, *branches])


@pytest.mark.parametrize("mode", ["dialogue", "window"])
def test_duplicates_do_not_use_up_the_places_of_a_task(mode):
    """Five branches say [7, 8], two say [9]: a task of two different pairs, whatever the seed."""
    tree = bush([[7, 8]] * 4 + [[9]] + [[7, 8]] + [[9]], mode=mode)
    before = [] if mode == "window" else [11, 10]
    for seed in range(9):
        for limit in (0, 2, 3):
            config = leafe_config(counterfactual_per_task=limit, rehearsal_share=0.0)
            made = make_examples([tree], config, seed)
            assert [e.ids.tolist() for e in made.examples] == [
                [*before, 21, 7, 8], [*before, 21, 9],
            ]  # fmt: skip
            assert made.duplicates == 5


def test_pairs_that_differ_in_where_the_target_begins_are_no_duplicates():
    tree = bush([[7, 8], [8]])
    tree.nodes[2].turns[0].plain_prompt_ids = [21, 7]
    made = make_examples([tree], leafe_config(rehearsal_share=0.0), 0)
    assert len(made.examples) == 2 and made.duplicates == 0
    assert made.examples[0].ids.tolist() == made.examples[1].ids.tolist()


def test_no_duplicates_are_counted_among_pairs_that_are_not_made():
    made = make_examples([bush([[7]] * 3)], leafe_config(counterfactual_weight=0.0), 0)
    assert made.duplicates == 0 and all(e.source == REHEARSAL for e in made.examples)


# -- rehearsal -------------------------------------------------------------------------------------
def family(mode="dialogue"):
    """A root that succeeds, and one that fails; a branch of it at 2; the branch's own at 3, a success."""
    win = Node(0, None, None, 0, "root", None, [turn(1), turn(2)], success=True)
    root = Node(1, None, None, 0, "root", None, [turn(1), turn(2)])
    first = Node(2, 1, 2, 1, "branch", "e", [turn(2, [7], experience="e"), turn(3), turn(4)])
    last = [turn(3, [8], experience="f"), turn(4)]
    second = Node(3, 2, 3, 2, "branch", "f", last, success=True)
    return Tree("household", "t", "f", 0, mode, [win, root, first, second])


def rehearsed(tree, **changes):
    """(ids, those that carry loss) of each sequence."""
    config = leafe_config(counterfactual_weight=0.0, **changes)
    made = make_examples([tree], config, 0).examples
    assert all(e.source == REHEARSAL for e in made)
    return [(e.ids.tolist(), [i for i, m in zip(e.ids.tolist(), e.mass) if m]) for e in made]


ROOT = ([11, 10, 21, 20], [10, 20])


def test_what_is_rehearsed():
    whole = [11, 10, 21, 7, 31, 8, 41, 40]
    assert rehearsed(family()) == [ROOT, (whole, [10, 7, 8, 40])]
    assert rehearsed(family(), rehearse="roots") == [ROOT]
    assert rehearsed(family(), rehearse="without_branch_step") == [ROOT, (whole, [10, 40])]
    shown = [11, 10, 21, 1000, 7, 31, 1000, 8, 41, 40]
    assert rehearsed(family(), rehearse_with_experience=True) == [ROOT, (shown, [10, 7, 8, 40])]
    both = dict(rehearse="without_branch_step", rehearse_with_experience=True)
    assert rehearsed(family(), **both) == [ROOT, (shown, [10, 40])]


def test_what_is_rehearsed_in_window_mode():
    roots = [([11, 10], [10]), ([21, 20], [20])]
    tree = family("window")
    assert rehearsed(tree, rehearse="roots") == roots
    steps = [([11, 10], [10]), ([21, 7], [7]), ([31, 8], [8]), ([41, 40], [40])]
    assert rehearsed(tree) == [*roots, *steps]
    assert rehearsed(tree, rehearse="without_branch_step") == [*roots, steps[0], steps[3]]
    shown = [steps[0], ([21, 1000, 7], [7]), ([31, 1000, 8], [8]), steps[3]]
    assert rehearsed(tree, rehearse_with_experience=True) == [*roots, *shown]


def test_branch_steps_without_experience_are_rehearsed_and_empty_trajectories_left_out():
    """show_experience = False: the a'_tau was sampled as any other action."""
    unaided = family()
    for node in unaided.nodes[2:]:
        node.turns[0].plain_prompt_ids = None
        node.turns[0].prompt_ids.remove(1000)
    ids = [11, 10, 21, 7, 31, 8, 41, 40]
    assert rehearsed(unaided, rehearse="without_branch_step")[1] == (ids, [10, 7, 8, 40])
    # A trajectory that is nothing but a branch step.
    alone = Tree("household", "t", "f", 0, "dialogue", [
        Node(0, None, None, 0, "root", None, [turn(1)]),
        Node(1, 0, 1, 1, "branch", "e", [turn(1, [7], experience="e")], success=True),
    ])  # fmt: skip
    assert rehearsed(alone) == [([11, 7], [7])]
    assert rehearsed(alone, rehearse="without_branch_step") == []


def test_the_share_is_of_the_trajectories_that_may_be_rehearsed():
    trees = []
    for number in range(10):
        trees.append(family())
        trees[-1].task_id = f"t{number}"
    for rehearse, most in (("all", 20), ("roots", 10), ("without_branch_step", 20)):
        config = leafe_config(rehearse=rehearse, rehearsal_share=0.3, counterfactual_weight=0.0)
        assert len(make_examples(trees, config, 0).examples) == round(0.3 * most)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(rehearse="some"),
            "leafe.rehearse = 'some': must be one of all, roots, without_branch_step",
        ),
        (dict(qualify="any"), "leafe.qualify = 'any': must be one of success, improve"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        leafe_config(**changes)
