"""The protocol card, from a config and an environment."""

import dataclasses
import importlib.metadata

from envs.base import Options
from leafe_jax.run import protocol
from leafe_jax.run.config import RunConfig
from leafe_jax.run.presets import load_config
from leafe_jax.run.validate import validate


def card(**changes):
    config = load_config("quickstart", "smoke")
    config.update_from_flattened_dict(changes)
    settings = RunConfig.read(config)
    env = validate(settings)
    return protocol.card(settings, env, {"base": "a" * 64, "leafe": "a" * 64}), env


def test_it_has_what_a_reader_needs_to_compare():
    made, env = card(
        **{"evaluate.temperature": 0.4, "evaluate.top_k": 50, "evaluate.top_p": 0.9, "seed": 3}
    )
    expected = {
        "environment": "household", "horizon": env.horizon, "split": "test",
        "split_hash": env.split_hash("test"), "tasks": 6, "samples": 8, "temperature": 0.4, "top_k": 50,
        "top_p": 0.9, "context_mode": "dialogue", "window": None, "seed": 3,
        "prompts": {"base": "a" * 12, "leafe": "a" * 12},
    }  # fmt: skip
    assert {name: made[name] for name in expected} == expected
    assert made["searches"]["tree"]["max_env_steps"] >= 1
    line = protocol.sentence(made)
    assert (
        f"({env.split_hash('test')}), 6 tasks, 8 samples a task; temperature 0.4, top_p 0.9, top_k 50"
        in line
    )
    assert "prompts aaaaaaaaaaaa;" in line  # once for both


def test_every_field_that_changes_the_evaluation_changes_the_card():
    plain, _ = card()
    for field, value in {
        "evaluate.temperature": 0.4, "evaluate.num_samples": 4, "evaluate.num_tasks": 4, "env.horizon": 9,
        "context.mode": "window", "evaluate.top_p": 0.5, "evaluate.top_k": 9, "sampler.max_action_tokens": 4,
        "seed": 1, "evaluate.split": "valid", "search.tree.max_env_steps": 99,
    }.items():  # fmt: skip
        changed, _ = card(**{field: value})
        assert changed != plain and protocol.rows(changed) != protocol.rows(plain), field
        assert protocol.sentence(changed) != protocol.sentence(plain), field


def test_versions_are_those_of_the_packages_that_decide():
    @dataclasses.dataclass
    class Env:
        packages: tuple[str, ...] = ("numpy",)
        options: Options = Options()

    Env.__module__ = "envs.anything"
    assert protocol.versions(Env()) == {
        "leafe_jax": "0.1.0", "numpy": importlib.metadata.version("numpy"),
    }  # fmt: skip
    Env.__module__ = "pluggy.somewhere"  # an environment that another package brings
    assert protocol.versions(Env(())) == {"pluggy": importlib.metadata.version("pluggy")}


def test_a_run_without_an_evaluation():
    """Then evaluate.num_tasks may be more than there are: nothing has checked it."""
    config = load_config("quickstart", "smoke")
    config.evaluate.num_tasks, config.phases = 10**6, ("explore", "report")
    settings = RunConfig.read(config)
    made = protocol.card(settings, validate(settings), {})
    assert 0 < made["tasks"] < 10**6 and "; nothing evaluated; " in protocol.sentence(made)
