"""Settings: from the command line's form to checked values, what depends on what, and what is refused."""

import dataclasses

import pytest

from leafe_jax.errors import UserError
from leafe_jax.methods import base
from leafe_jax.methods.on_policy import OnPolicyConfig
from leafe_jax.methods.search import SearchConfig
from leafe_jax.run import checks
from leafe_jax.run.config import RunConfig, default_config, to_config_dict
from leafe_jax.run.depends import closure, flatten, relevant, searches
from leafe_jax.run.presets import (
    add_rounds,
    add_variant,
    find_config,
    load_config,
    set_on_policy,
    set_training,
)


def read(change=lambda c: None) -> RunConfig:
    config = default_config()
    change(config)
    return RunConfig.read(config)


def test_defaults_survive_the_way_through_the_command_line():
    assert read() == RunConfig()


@pytest.mark.parametrize(
    "path", sorted(find_config("default").parent.glob("*.py")), ids=lambda p: p.stem
)
@pytest.mark.parametrize("mode", ["full", "smoke"])
def test_every_config_file_can_be_read(path, mode):
    if path.stem != "default":
        RunConfig.read(load_config(path.stem, mode))


def test_a_training_preset_reaches_every_method():
    config = default_config()
    add_variant(config, "other", "leafe")
    set_training(config, num_epochs=9, mesh=dict(fsdp=-1, data=1))
    settings = RunConfig.read(config)
    names = (*settings.method, *settings.variants)
    trained = [m for m in (settings.find(n).config for n in names) if hasattr(m, "train")]
    assert len(trained) >= 3
    assert all(m.train.mesh.fsdp == -1 for m in trained)
    # Passes over fresh rollouts are another thing than passes over the data.
    epochs = {m.train.num_epochs for m in trained if not isinstance(m, OnPolicyConfig)}
    assert epochs == {9} and settings.method["grpo"].train.num_epochs == 1
    set_on_policy(config, iterations=7, kl_coefficient=0.5, train=dict(batch_size=2))
    changed = RunConfig.read(config).method
    assert changed["grpo"].kl_coefficient == 0.5 and changed["leafe"].train.batch_size == 8
    assert all(
        (changed[n].iterations, changed[n].train.batch_size) == (7, 2) for n in ("grpo", "sdpo")
    )


def two_rounds(c):
    """A second search explores with the agent of the first round, and rft starts from it."""
    c.search.second = to_config_dict(SearchConfig(agent="leafe", num_tasks=7))
    c.rft.start = "leafe"
    c.rft.trees = "second"
    c.methods = ("base", "rft")


def test_what_is_read_comes_first():
    config = read(two_rounds)
    order = ["base", "trees/tree", "leafe", "trees/second", "rft"]
    assert closure(config, "rft") == order
    assert searches(config) == ["tree", "second"]
    assert checks.phases_of(config) == order[1:] + ["evaluate/base", "evaluate/rft"]


def test_a_result_depends_on_what_it_read_and_on_nothing_else():
    config = read(two_rounds)
    fields = relevant(config, "trees/second")
    for name in (
        "seed",
        "env.horizon",
        "search.second.num_tasks",
        "leafe.beta",
        "search.tree.num_tasks",
    ):
        assert name in fields, name
    for name in (
        "rft.trees",
        "evaluate.num_tasks",
        "methods",
        "sampler.num_slots",
        "leafe.train.mesh.data",
    ):
        assert name not in fields, name
    assert "search.second.agent" not in relevant(config, "leafe")
    evaluated = relevant(config, "evaluate/base")
    assert "evaluate.num_tasks" in evaluated
    assert not [name for name in evaluated if name.startswith(("search.", "leafe.", "rft."))]
    assert "rft.train.num_epochs" in relevant(config, "evaluate/rft")


def test_a_variant_is_a_method_of_its_own():
    config = read(lambda c: add_variant(c, "unrehearsed", "leafe", beta=0.0))
    assert config.methods == ("base", "leafe", "unrehearsed")
    variant = config.find("unrehearsed")
    assert type(variant) is base.find("leafe") and variant.name == "unrehearsed"
    assert (variant.config.beta, config.find("leafe").config.beta) == (0.0, 1.0)
    fields = relevant(config, "evaluate/unrehearsed")
    assert fields["variants.unrehearsed.beta"] == 0.0
    assert fields["variants.unrehearsed.method"] == "leafe"
    assert not [name for name in fields if name.startswith("leafe.")]
    assert not [name for name in relevant(config, "leafe") if name.startswith("variants.")]


def test_rounds_follow_each_other():
    config = read(lambda c: add_rounds(c, 3))
    order = ["base", "trees/tree", "leafe", "trees/tree_2", "leafe_2", "trees/tree_3", "leafe_3"]
    assert closure(config, "leafe_3") == order
    assert config.search["tree_3"].agent == config.find("leafe_3").config.start == "leafe_2"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("two", dict(beta=-1.0), r"^variants\.two\.beta = -1"),
        ("two", dict(train=dict(schedule="steep")), r"^variants\.two\.train\.schedule = 'steep'"),
        ("two", dict(method="ppo"), r"^variants\.two\.method = 'ppo': must be one of (\w+, )+rft"),
        ("two", dict(colour=1), r"^variants\.two\.colour: no such field"),
        ("trees", {}, r"^variants\.trees: must be"),
        ("rft", {}, r"^variants\.rft: must be"),
        ("Up", {}, r"^variants\.Up: must be"),
    ],
)  # fmt: skip
def test_a_bad_variant_is_refused(name, fields, message):
    def change(c):
        with c.unlocked():
            c.variants[name] = c.leafe.copy_and_resolve_references()
            c.variants[name].method = "leafe"
            c.variants[name].update(fields)

    with pytest.raises(UserError, match=message):
        read(change)


def test_an_evaluation_draws_tokens_in_its_own_way():
    def change(c):
        c.sampler.update(temperature=0.7, top_p=0.8, min_p=0.1)
        c.evaluate.update(temperature=0.4, top_k=5)

    config = read(change)
    exploring, evaluating = config.sampler.sampling(), config.evaluating().sampling
    assert (exploring.temperature, exploring.top_k, exploring.top_p) == (0.7, 0, 0.8)
    assert (evaluating.temperature, evaluating.top_k, evaluating.top_p) == (0.4, 5, 1.0)
    assert exploring.min_p == evaluating.min_p == 0.1
    assert config.exploring(config.search["tree"]).sampling == exploring
    assert not read().needs_options
    assert read(lambda c: c.evaluate.update(top_p=0.9)).needs_options
    with pytest.raises(UserError, match=r"^evaluate\.top_p = 1\.5: must be"):
        read(lambda c: c.evaluate.update(top_p=1.5)).evaluate_sampling()
    with pytest.raises(UserError, match=r"^evaluate\.temperature = -1\.0: must be"):
        read(lambda c: c.evaluate.update(temperature=-1.0)).evaluate_sampling()


def endless(c):
    c.leafe.start, c.rft.start = "rft", "leafe"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (endless, "methods: leafe reads rft reads leafe: must end somewhere"),
        (lambda c: c.leafe.update(trees="forest"), "search.forest: missing; the searches of this config are tree"),
        (lambda c: c.leafe.update(start="ppo"), r"methods = 'ppo': must be one of (\w+, )+rft"),
    ],
)  # fmt: skip
def test_what_cannot_be_ordered_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        closure(read(change), "leafe")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.search.tree.update(reflect_every=0), r"^search\.tree\.reflect_every = 0: must be"),
        (lambda c: c.search.tree.update(method="mcts"), r"^search\.tree\.method = 'mcts': must be one of tree"),
        (lambda c: c.leafe.update(beta=-1.0), r"^leafe\.beta = -1"),
        (lambda c: c.leafe.update(qualify="often"), r"^leafe\.qualify = 'often'"),
        (lambda c: c.leafe.train.update(schedule="steep"), r"^leafe\.train\.schedule = 'steep'"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_in_full(change, message):
    with pytest.raises(UserError, match=message):
        read(change)


def test_a_wrong_type_is_named_in_full():
    config = default_config()
    with config.unlocked(), config.ignore_type():
        config.search.tree.num_tasks = "many"
        config.colour = 1
    with pytest.raises(
        UserError, match=r"search\.tree\.num_tasks = 'many': must be a whole number"
    ):
        RunConfig.read(config)
    config = default_config()
    with config.unlocked():
        config.colour = 1
    with pytest.raises(UserError, match="colour: there is no such field"):
        RunConfig.read(config)


def test_every_field_of_every_section_is_in_the_flat_form():
    flat = flatten(RunConfig())
    for section, kind in (("search.tree", SearchConfig), ("leafe", base.find("leafe").Config)):
        for field in dataclasses.fields(kind):
            name = f"{section}.{field.name}"
            assert name in flat or any(key.startswith(name + ".") for key in flat), name
