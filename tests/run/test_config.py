"""Settings: from the command line's form to checked values, what depends on what, and what is refused."""

import dataclasses

import pytest

from leafe_jax.errors import UserError
from leafe_jax.methods import base
from leafe_jax.methods.search import SearchConfig
from leafe_jax.run import checks
from leafe_jax.run.config import RunConfig, default_config, to_config_dict
from leafe_jax.run.depends import closure, flatten, relevant, searches
from leafe_jax.run.presets import find_config, load_config, set_training


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
    set_training(config, num_epochs=9, mesh=dict(fsdp=-1, data=1))
    settings = RunConfig.read(config)
    trained = [m for m in settings.method.values() if hasattr(m, "train")]
    assert len(trained) >= 2
    assert all((m.train.num_epochs, m.train.mesh.fsdp) == (9, -1) for m in trained)


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


def endless(c):
    c.leafe.start, c.rft.start = "rft", "leafe"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (endless, "methods: leafe reads rft reads leafe: must end somewhere"),
        (lambda c: c.leafe.update(trees="forest"), "search.forest: missing; the searches of this config are tree"),
        (lambda c: c.leafe.update(start="ppo"), "methods = 'ppo': must be one of base, leafe, rft"),
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
        (lambda c: c.leafe.train.update(schedule="steep"), r"train\.schedule = 'steep'"),
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
