"""Numbers of a page out of hand-made result files: pairs, seeds, environments, and what each row has cost."""

import numpy as np
import pytest
from made import SAMPLES, results, spent

from leafe_jax.errors import UserError
from leafe_jax.paper import numbers
from leafe_jax.run.presets import add_ace, add_leafe_on, add_variant, load_config


def config(seed=0):
    c = load_config("quickstart")
    c.seed = seed
    return c


def cell(name, runs):
    """runs: seed -> {row: successes of each task}."""
    made = {seed: results(config(seed), methods) for seed, methods in runs.items()}
    return numbers.read_cell(name, made, "methods")


def test_rows_are_paired_by_task_and_seed_over_environments():
    one = cell("one", {0: {"base": [0, 4], "leafe": [4, 4]}, 1: {"base": [0, 0], "leafe": [4, 0]}})
    other = cell(
        "other", {1: {"base": [4], "leafe": [0], "rft": [2]}, 2: {"base": [4], "leafe": [4]}}
    )
    values, k, where = numbers.differences([one, other], "leafe", "base", 1)
    assert (k, where) == (1, ("one", "other"))  # seed 1 is the only one that both have
    assert values.tolist() == [[1.0, 0.0, -1.0]]
    values, k, where = numbers.differences([one], "leafe", "base", 128)
    assert k == SAMPLES and values.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    # A row that a seed has not finished is no row of its cell.
    assert (
        other.counts.keys() == {"base", "leafe"}
        and numbers.differences([other], "rft", "base", 1) is None
    )
    assert numbers.rows_of([one, other]) == ["base", "leafe"]
    shares, names = numbers.taken_together([one, other], "base", 2)
    # 1 - C(n - c, 2) / C(n, 2) of 0 and 4 successes in 4.
    assert shares.tolist() == [[0.0, 0.0, 1.0]] and names == ("one", "other")
    mean, low, high = numbers.estimate(np.array([[0.0, 1.0]]))
    assert low < mean == 0.5 < high


def test_runs_on_other_tasks_are_no_cell():
    runs = {0: results(config(0), {"base": [1, 2]}), 1: results(config(1), {"base": [1, 2, 3]})}
    with pytest.raises(UserError, match="household: its runs have other tasks"):
        numbers.read_cell("household", runs, "methods")


def test_searches_count_the_tasks_that_they_solve():
    c = config()
    found = {"tree": ([True, False], spent(60)), "refine": ([False, False], spent(60))}
    made = numbers.read_cell("x", {0: results(c, {}, found)}, "searches")
    assert made.counts["tree"].tolist() == [[1, 0]] and made.samples == 1
    values, k, _ = numbers.differences([made], "tree", "refine", 0)
    assert k == 0 and values.tolist() == [[1.0, 0.0]]


def test_a_row_costs_all_that_it_reads():
    c = config()
    add_variant(c, "second", "leafe", start="leafe", trees="tree")
    add_leafe_on(c, "leafe", "leafe_2", "tree_2")
    add_ace(c, "leafe_2")
    c.leafe.train.num_epochs, c.variants.leafe_2.train.num_epochs = 5, 2
    fit = {"examples": {}, "duplicates": 0, "seconds": 10.0}
    made = results(
        c, {},
        {"tree": ([True], spent(60, 100, 3, 5)), "tree_2": ([True], spent(60, 50, 2))},
        {"leafe": {**fit, "target_tokens": 7}, "second": {**fit, "target_tokens": 1},
         "leafe_2": {**fit, "target_tokens": 4}, "ace": {**fit, "target_tokens": 0, "budget": spent(55, 9, 1)}},
    )  # fmt: skip
    nothing = dict(env_steps=0, generated_tokens=0, reflections=0, trained_tokens=0, seconds=0)
    assert numbers.spent(made, "base", "methods") == nothing
    assert numbers.spent(made, "leafe", "methods") == dict(
        env_steps=65, generated_tokens=100, reflections=3, trained_tokens=35, seconds=11
    )
    # The same search twice is paid for once.
    assert numbers.spent(made, "second", "methods")["env_steps"] == 65
    assert numbers.spent(made, "leafe_2", "methods") == dict(
        env_steps=125, generated_tokens=150, reflections=5, trained_tokens=43, seconds=22
    )
    assert numbers.spent(made, "ace", "methods")["env_steps"] == 180
    assert numbers.spent(made, "tree", "searches")["env_steps"] == 65
    assert (
        numbers.spent(made, "tree_2", "searches")["env_steps"] == 125
    )  # its agent is a trained one


@pytest.mark.parametrize(
    ("steps", "tokens", "said"),
    [
        (100, 1000, ""), (102, 1100, ""), (98, 900, ""), (103, 1000, "+3% environment steps"),
        (97, 1000, "-3% environment steps"), (100, 1200, "+20% generated tokens"),
        (50, 500, "-50% environment steps, -50% generated tokens"), (0, 0, ""),
    ],
)  # fmt: skip
def test_unequal_budgets_are_said(steps, tokens, said):
    own, reference = (
        dict(env_steps=s, generated_tokens=t) for s, t in ((steps, tokens), (100, 1000))
    )
    assert numbers.beyond([own], [reference]) == said
    assert numbers.beyond([reference, own], [reference, reference]) == said
