"""ACE with scripted policies: what is asked of whom, what grows, and that no task exceeds its budget."""

import dataclasses
import json

import pytest
from scripted import ScriptedPolicy

from envs.household.environment import Household
from envs.household.player import HouseholdPlayer
from envs.prompts import Prompts, PromptsConfig
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.errors import UserError
from leafe_jax.methods.ace import AceConfig, State, adapt
from leafe_jax.types import Budget, Sampling

ENV = Household(horizon=20)
PLAYER = HouseholdPlayer(ENV)
TASKS = ENV.list_tasks("train")
ROLLOUT = RolloutConfig("dialogue", 2, "branch", Sampling(), 8, 0, "adapt")


def tagged(action):
    return f"<think>hm</think><action>{action}</action>"


def review(insight, **tags):
    listed = [{"id": name, "tag": tag} for name, tag in tags.items()]
    return json.dumps({"key_insight": insight, "correct_approach": "try", "bullet_tags": listed})


def additions(*contents):
    listed = [{"type": "ADD", "section": "others", "content": c} for c in contents]
    return json.dumps({"reasoning": "r", "operations": listed})


def kind(text):
    if "You keep a playbook" in text:
        return "curator"
    return "reflector" if "Review the episode" in text else "generator"


def run(reply, tasks=TASKS[:1], style="react", state=None, **rules):
    policy = ScriptedPolicy(reply)
    prompts = Prompts(ENV, PromptsConfig(style=style))
    config = AceConfig(**{"token_budget": 10**6, **rules})
    found = adapt(policy, ENV, prompts, tasks, config, ROLLOUT, state or State())
    assert not policy.live, "every session is released"
    return found, policy


def failing(insight="check the sink.", curated="check the sink."):
    def reply(turns, text, seed):
        return {
            "curator": additions(curated),
            "reflector": review(insight),
            "generator": tagged("look"),
        }[kind(text)]

    return reply


def test_reviews_are_shown_again_and_the_curator_reads_the_last_of_each_series():
    asked = {"curator": [], "reflector": [], "generator": []}
    insights = iter(f"insight {i}." for i in range(99))

    def reply(turns, text, seed):
        asked[kind(text)].append((turns, text))
        if kind(text) == "curator":
            return additions(f"bullet {len(asked['curator'])}.")
        return review(next(insights)) if kind(text) == "reflector" else tagged("look")

    (state, (tree,)), _ = run(reply, max_env_steps=140)
    # Attempts of 20 steps: a fresh one and three with reviews, then afresh.
    assert [n.kind for n in tree.nodes] == ["root"] + ["retry"] * 3 + ["root"] + ["retry"] * 2
    assert [n.turns[0].experiences for n in tree.nodes[:5]] == [
        [], ["insight 0."], ["insight 0.", "insight 1."], ["insight 0.", "insight 1.", "insight 2."], [],
    ]  # fmt: skip
    # The last attempt ends with the budget, so it is not reviewed.
    assert len(asked["reflector"]) == 5 and state.counts["reviews"] == 5
    texts = [text for _, text in asked["curator"]]
    assert len(texts) == 2 and "insight 2." in texts[0] and "insight 4." in texts[1]
    assert "The goal has not been reached" in asked["reflector"][0][1]
    assert [b.content for b in state.playbook.bullets] == ["bullet 1.", "bullet 2."]
    assert state.budget.env_steps == 140 == tree.budget.env_steps
    # 140 actions, 5 reviews, 2 replies of the curator; each is one token here.
    assert state.budget.generated_tokens == 147


def test_the_next_batch_plays_with_the_playbook_and_its_bullets_are_tagged():
    seen = []

    def reply(turns, text, seed):
        if kind(text) == "generator":
            seen.append((len(turns), "check the sink." in text))
            return tagged("look")
        if kind(text) == "reflector":
            assert ("[misc-00001]" in text) == bool(state.playbook.bullets)
            return review("other thing.", **{"misc-00001": "helpful", "misc-00099": "harmful"})
        return additions("check the sink.", "Check the sink!", "")

    state = State()
    (state, _), _ = run(reply, max_env_steps=40, state=state)
    assert [b.content for b in state.playbook.bullets] == ["check the sink."]
    assert not any(shown for _, shown in seen)
    assert (state.counts["duplicate"], state.counts["empty"], state.counts["added"]) == (1, 1, 1)
    seen.clear()
    (state, _), _ = run(reply, TASKS[1:3], max_env_steps=40, state=state)
    # In the first message of an episode, and only there.
    assert all(shown == (turns == 0) for turns, shown in seen) and len(seen) == 80
    (bullet,) = state.playbook.bullets
    assert (bullet.helpful, bullet.harmful) == (2, 0)  # one review of each of the two tasks
    assert State.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_a_success_is_reviewed_once_there_is_something_to_tag():
    def reply(turns, text, seed):
        if kind(text) == "curator":
            return additions("always win.")
        if kind(text) == "reflector":
            assert "The goal has been reached" in text
            return review("won.", **{"misc-00001": "helpful"})
        actions = [said.split("<action>")[1][:-9] for _, said in turns]
        return tagged(PLAYER.next_action(TASKS[0].task_id, actions, PLAYER.all_aware))

    (state, (tree,)), _ = run(reply, max_env_steps=50)
    assert state.counts["reviews"] == 0 and not state.playbook.bullets and tree.nodes[0].success
    book, _ = state.playbook.add("misc", "a bullet", 10**6, len, 1.0)
    (state, (tree,)), _ = run(
        reply, max_env_steps=50, state=dataclasses.replace(state, playbook=book)
    )
    wins = sum(node.success for node in tree.nodes)
    assert state.playbook.bullets[0].helpful == wins == state.counts["reviews"] > 0


@pytest.mark.parametrize("said", ["nonsense", "{}", review(""), '{"key_insight": ["x"]}'])
def test_a_reflector_that_cannot_be_read_changes_nothing_but_the_budget(said):
    def reply(turns, text, seed):
        return tagged("look") if kind(text) == "generator" else said

    (state, (tree,)), _ = run(reply, max_env_steps=50)
    assert state.playbook.bullets == () and state.counts["reviews"] == 0
    assert {r.status for n in tree.nodes for r in n.reflections} == {"unparsable"}
    assert tree.budget.env_steps == 50 and len(tree.nodes) == 3


def test_a_curator_that_cannot_be_read_is_counted():
    def reply(turns, text, seed):
        return "I would rather not." if kind(text) == "curator" else failing()(turns, text, seed)

    (state, _), _ = run(reply, max_env_steps=40)
    assert state.counts["unreadable"] == 1 and state.playbook.bullets == ()


def test_the_token_budget_of_the_playbook_holds():
    number = iter(range(99))

    def reply(turns, text, seed):
        if kind(text) == "curator":
            return additions(*(f"bullet with number {next(number)}" for _ in range(9)))
        return review("x1.") if kind(text) == "reflector" else tagged("look")

    class Characters(ScriptedPolicy):
        """A token a character."""

        def __init__(self, reply):
            super().__init__(reply)
            self.encoder.reply = lambda text: [0] * (len(text) + 1)

    policy = Characters(reply)
    config = AceConfig(max_env_steps=40, token_budget=150)
    prompts = Prompts(ENV, PromptsConfig(style="react"))
    state, _ = adapt(policy, ENV, prompts, TASKS[:1], config, ROLLOUT, State())
    assert len(state.playbook.text) <= 150 < len(state.playbook.text) + 60
    assert state.counts["added"] + state.counts["full"] == 9 and state.counts["full"] > 0


# -- the embedded model's form -----------------------------------------------------------------------
def test_in_plain_words_the_advice_of_a_reflection_is_the_bullet():
    firsts = []

    def reply(turns, text, seed):
        if "Reflect" in text:
            return "[2] open the fridge."
        if not turns:
            firsts.append(text)
        return "look"

    (state, _), _ = run(reply, style="plain", max_env_steps=40)
    assert state.playbook.text.endswith("[sai-00001] helpful=0 harmful=0 :: open the fridge.")
    firsts.clear()
    (state, _), _ = run(reply, TASKS[1:2], style="plain", max_env_steps=20, state=state)
    # As the experience that the model knows, behind the first observation.
    assert firsts and firsts[0].endswith("\nExperience: open the fridge.")
    assert "helpful=" not in firsts[0]


# -- budgets -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("style", ["plain", "react"])
@pytest.mark.parametrize("limits", [(57, 0), (0, 45), (0, 21), (33, 1000)])
def test_no_task_exceeds_its_budget(style, limits):
    def reply(turns, text, seed):
        if style == "plain":
            return "[1] go." if "Reflect" in text else "look"
        return failing()(turns, text, seed)

    steps, tokens = limits
    rules = dict(max_env_steps=steps, max_generated_tokens=tokens)
    (state, trees), _ = run(reply, TASKS[:3], style=style, **rules)
    total = Budget()
    for tree in trees:
        total.add(tree.budget)
        if steps:
            assert tree.budget.env_steps == steps
        if tokens:
            assert tree.budget.generated_tokens <= tokens
        if not steps:
            assert (
                tree.budget.generated_tokens == tokens
            )  # a reply is one token: nothing is left over
    assert state.budget == total


def test_bad_settings_are_refused():
    for field, value, said in (
        ("batch_size", 0, "an integer of at least 1"), ("num_tasks", 1.5, "an integer of at least 0"),
        ("duplicate_similarity", 0, "above 0 and at most 1"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"ace.{field} = {value}: must be {said}"):
            AceConfig(**{field: value})
    with pytest.raises(UserError, match="ace.max_env_steps = 0: must be at least 1"):
        AceConfig(max_env_steps=0)
    with pytest.raises(ValueError, match="whole number"):
        State.from_json({"playbook": "", "last": -1, "counts": {}, "budget": {}})
