"""What the config files say is what the environments take, and nothing is left for them to guess."""

import dataclasses
import runpy
from pathlib import Path

import pytest

import envs

pytest.importorskip("ml_collections")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# The two others are the base of the rest, and the corpus of the base model.
NAMES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in ("bootstrap", "default"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["full", "smoke"])
def test_every_option_is_there_to_be_set(name, mode):
    """A config is locked: a flag for an option that it does not have is refused."""
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](mode)
    options = {field.name for field in dataclasses.fields(envs.find(config.env.name).Options)}
    assert set(config.env.options.to_dict()) == options


@pytest.mark.parametrize("name", [n for n in NAMES if "qwen" in n or "llama" in n])
@pytest.mark.parametrize("mode", ["full", "smoke"])
def test_a_config_named_after_a_model_asks_for_it(name, mode):
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](mode)
    path = config.model.path.lower().replace("llama-", "llama").replace("-", "_").replace(".", "_")
    assert name.endswith(path.removesuffix("_instruct"))
