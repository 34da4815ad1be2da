"""What a row's name says is what its settings do: variants, baselines and equal budgets, field by field."""

import pytest

from leafe_jax.methods import base
from leafe_jax.paper import tables
from leafe_jax.run.config import RunConfig
from leafe_jax.run.depends import closure
from leafe_jax.run.presets import add_ace, add_early_experience, load_config


def test_the_variants_of_leafe_are_what_their_names_say():
    read = RunConfig.read(load_config("variants"))
    settings = {name: variant.settings for name, variant in read.variants.items()}
    ours, search = read.method["leafe"], read.search
    assert (ours.start, ours.trees, ours.rehearsal_share) == ("base", "tree", 0.2)
    changed = {
        "no_rollback": dict(trees="refine"), "no_e": dict(trees="tree_without_e"), "cf": dict(beta=0.0),
        "reh_20": dict(counterfactual_weight=0.0), "leafe_100": dict(rehearsal_share=1.0),
        "reh_100": dict(counterfactual_weight=0.0, rehearsal_share=1.0),
        "leafe_2": dict(start="leafe", trees="tree_2"), "leafe_3": dict(start="leafe_2", trees="tree_3"),
        "leafe_early": dict(start="early_experience", trees="tree_early"),
    }  # fmt: skip
    for name, fields in changed.items():
        assert {k: getattr(settings[name], k) for k in fields} == fields
        same = {k: v for k, v in vars(settings[name]).items() if k not in fields}
        assert same == {k: v for k, v in vars(ours).items() if k not in fields}, name
        assert name in read.methods
    assert search["refine"].method == "refine" and not search["tree_without_e"].show_experience
    assert (
        read.method["rft"].trees == "independent" and search["independent"].method == "independent"
    )
    assert [search[f"tree_{r}"].agent for r in ("2", "3", "early")] == [
        "leafe", "leafe_2", "early_experience",
    ]  # fmt: skip
    # One budget for all of them.
    assert len({(s.num_tasks, s.split, s.max_env_steps) for s in search.values()}) == 1


def test_world_modelling_comes_before_imitation():
    c = load_config("quickstart")
    c.early_experience.train.num_epochs = 4
    add_early_experience(c, expert="own")
    read = RunConfig.read(c)
    first, then = read.variants["early_world"].settings, read.method["early_experience"]
    assert (first.world_weight, first.imitation_weight, first.start, first.train.num_epochs) == (
        1.0, 0.0, "base", 1,
    )  # fmt: skip
    assert (then.world_weight, then.imitation_weight, then.start, then.train.num_epochs) == (
        0.0, 1.0, "early_world", 3,
    )  # fmt: skip
    assert closure(read, "early_experience") == [
        "base", "trees/alternatives", "early_world", "early_experience",
    ]  # fmt: skip
    assert "early_world" not in read.methods, "it is fitted, and not evaluated"
    assert read.search["alternatives"].expert == "own" and not read.search["alternatives"].explain
    c = load_config("quickstart")
    add_early_experience(c, explain=True)
    read = RunConfig.read(c)
    ours = read.method["early_experience"]
    assert (ours.world_weight, ours.reflection_weight, ours.imitation_weight) == (0.0, 1.0, 1.0)
    assert ours.start == "base" and read.search["alternatives"].explain


def test_ace_gets_the_tasks_and_the_budget_of_the_tree():
    c = load_config("quickstart")
    c.search.tree.update(dict(num_tasks=7, max_env_steps=33, max_generated_tokens=99))
    add_ace(c)
    add_ace(c, "leafe", "ace_leafe", token_budget=50)
    read = RunConfig.read(c)
    for name, start, tokens in (("ace", "base", 96), ("ace_leafe", "leafe", 50)):
        own = read.find(name).config
        assert (own.num_tasks, own.max_env_steps, own.max_generated_tokens) == (7, 33, 99)
        assert (own.start, own.token_budget) == (start, tokens) and read.find(name).reads == (
            start,
        )


@pytest.mark.parametrize("table", ["table1", "peers"])
def test_every_row_of_a_table_has_the_same_environment_steps(table):
    """In miniature: searches and ACE a task, methods on their own rollouts in all."""
    for cell in tables.config(table, "mini").cells.values():
        read = RunConfig.read(cell)
        tree = read.search["tree"]
        assert tree.num_tasks > 0
        for search in read.search.values():
            assert (search.num_tasks, search.max_env_steps) == (tree.num_tasks, tree.max_env_steps)
        for name in read.methods:
            own = read.find(name).config
            if read.find(name).played is not None:
                assert (own.num_tasks, own.max_env_steps) == (tree.num_tasks, tree.max_env_steps)
            elif hasattr(own, "iterations"):
                assert own.max_env_steps == tree.num_tasks * tree.max_env_steps
                assert own.num_tasks == tree.num_tasks
        missing = {"grpo", "gigpo", "sdpo", "erl"} - set(base.REGISTRY)
        if table == "peers" and not missing:
            assert {"grpo", "gigpo", "sdpo", "erl", "maxrl"} <= set(read.methods)
