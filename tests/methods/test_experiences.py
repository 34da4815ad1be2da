"""Both context modes show the same experiences at the same steps, and train on prompts that have none."""

import re

import pytest
from scripted import ScriptedPolicy

from envs.household.environment import Household
from envs.prompts import Prompts, PromptsConfig
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.agent.seeds import seed_for
from leafe_jax.methods.examples import sequence
from leafe_jax.methods.search import SearchConfig, explore
from leafe_jax.types import Sampling, Tree

ENV = Household(horizon=6)
TASK = ENV.list_tasks("test")[3]
PROMPTS = {style: Prompts(ENV, PromptsConfig(style=style)) for style in ("plain", "react")}
SAYS = re.compile(r"^Experience: (.*)$", re.MULTILINE)
# A later step, the same one, an earlier one, and deeper nests of them.
NESTS = [(2, 4), (3, 3), (4, 2), (2, 4, 6), (2, 5, 3), (4, 2, 4), (2, 2, 5)]


def grow(mode, span, taus, style="plain", **changes):
    """A root and one branch in another, back to `taus`; (tree, policy, seed -> e in that request's view)."""
    said, views = iter(enumerate(taus, start=1)), {}

    def reply(turns, text, seed):
        view = [text] if mode == "window" else [*(user for user, _ in turns), text]
        assert seed not in views
        views[seed] = sorted(e for part in view for e in SAYS.findall(part))
        if "Reflect" not in text:
            return PROMPTS[style].format_action(f"look {len(views)}")
        number, tau = next(said, (0, None))
        return "no mistake" if tau is None else f"[{tau}] e{number}."

    policy = ScriptedPolicy(reply, num_slots=1)
    rules = dict(num_roots=1, max_attempts=1 + len(taus), max_env_steps=0, reflect_every=99)
    found = []
    explore(
        policy, ENV, PROMPTS[style], [TASK], SearchConfig(**{**rules, **changes}),
        RolloutConfig(mode, 2, span, Sampling(), 8, 0, "explore"), found.append,
    )  # fmt: skip
    return found[0], policy, views


def expected(taus, span):
    """Seed of each request -> the experiences that ought to be in view, recounted from the rules."""
    name, told, views = f"{TASK.task_id}/r0", [], {}
    for number, tau in enumerate((1, *taus)):
        if number:
            name += f"/b{tau}.1"
            told = [(step, e) for step, e in told if step < tau] + [(tau, f"e{number}.")]
        for step in range(tau, ENV.horizon + 1):
            seen = [e for at, e in told if at == step or span == "branch"]
            views[seed_for(0, "explore", name, step)] = sorted(seen)
        if number < len(taus):
            asked = seed_for(0, "explore", name, ENV.horizon + 1, "reflect")
            views[asked] = sorted(e for _, e in told if span == "branch")
    return views


@pytest.mark.parametrize("span", ["branch", "step"])
@pytest.mark.parametrize("taus", NESTS)
@pytest.mark.parametrize("style", ["plain", "react"])
def test_nested_branches_show_the_same_experiences_in_both_modes(taus, span, style):
    shown = {mode: grow(mode, span, taus, style)[2] for mode in ("dialogue", "window")}
    assert shown["dialogue"] == expected(taus, span)
    assert shown["window"] == shown["dialogue"]


def test_what_the_nests_show():
    """The recount itself, by hand: at the last step of the last branch, and in its parent's reflection."""
    for taus, last in (((2, 4), ["e1.", "e2."]), ((3, 3), ["e2."]), ((4, 2), ["e2."])):
        views = list(expected(taus, "branch").values())
        assert views[-1] == last and ["e1."] in views
    assert list(expected((2, 4), "step").values())[-1] == []


@pytest.mark.parametrize("mode", ["dialogue", "window"])
@pytest.mark.parametrize("span", ["branch", "step"])
@pytest.mark.parametrize("taus", NESTS)
def test_the_plain_prompt_is_the_shown_one_without_any_experience(mode, span, taus):
    tree, policy, _ = grow(mode, span, taus)
    for node in tree.nodes:
        for turn in node.turns:
            shown = policy.text(turn.prompt_ids)
            assert SAYS.findall(shown) == turn.experiences
            if turn.plain_prompt_ids is None:
                assert turn.experiences == []
                continue
            without = shown.replace("".join(f"\nExperience: {e}" for e in turn.experiences), "")
            assert policy.text(turn.plain_prompt_ids) == without != shown
        path = tree.path(node)
        for example in sequence(path, {t.step for t in path}, mode, "example", 0):
            assert not SAYS.search(policy.text(example.ids))
    assert Tree.from_json(tree.to_json()) == tree


@pytest.mark.parametrize("mode", ["dialogue", "window"])
def test_the_control_without_experience_shows_none_anywhere(mode):
    _, _, views = grow(mode, "branch", (2, 4), show_experience=False)
    assert len(views) > 10 and not any(views.values())


@pytest.mark.parametrize("memory", ["all", "last"])
@pytest.mark.parametrize("span", ["branch", "step"])
def test_refinement_shows_its_memory_in_both_modes(memory, span):
    shown = {}
    for mode in ("dialogue", "window"):
        tree, _, shown[mode] = grow(mode, span, (2, 4), method="refine", refine_memory=memory)
        first = [node.turns[0].experiences for node in tree.nodes]
        assert first == [[], ["e1."], ["e1.", "e2."] if memory == "all" else ["e2."]]
    assert shown["window"] == shown["dialogue"]
