"""The two walls: environments know nothing of the model, the method nothing of the device."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", sorted((ROOT / "envs").rglob("*.py")), ids=lambda p: p.name)
def test_environments_import_neither_jax_nor_the_package(path):
    assert not tops(path) & {"jax", "jaxlib", "flax", "leafe_jax", "transformers", "torch"}


@pytest.mark.parametrize("name", ["types", "rollout", "explore", "evaluate", "distill", "seeds"])
def test_the_method_touches_no_device_array(name):
    path = ROOT / "leafe_jax" / f"{name}.py"
    assert not tops(path) & {"jax", "flax", "optax", "transformers"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "leafe_jax/models").glob("*.py")), ids=lambda p: p.name
)
def test_models_never_see_text(path):
    if path.name == "parity.py":  # compares them with transformers, on text
        return
    assert not tops(path) & {"transformers", "tokenizers", "envs"}
    assert "leafe_jax.chat" not in imported(path)


def test_nothing_imports_the_program():
    for path in (ROOT / "leafe_jax").rglob("*.py"):
        if path.name not in ("main.py", "sweep.py"):
            assert not {"leafe_jax.main", "leafe_jax.experiment"} & imported(path), path


def test_every_config_field_is_read():
    """A field nobody reads is a bug: each leaf name of the default config occurs in the code."""
    import re
    import runpy

    config = runpy.run_path(str(ROOT / "configs/default.py"))["get_config"]()
    bootstrap = runpy.run_path(str(ROOT / "configs/bootstrap.py"))["get_config"]()
    code = "\n".join(p.read_text() for p in (ROOT / "leafe_jax").rglob("*.py"))

    def leaves(section):
        for name, value in section.items():
            if name in ("unaided_rates", "family_weights", "options", "gate", "mesh"):
                continue  # read as a whole, by key
            if hasattr(value, "items"):
                yield from leaves(value)
            else:
                yield name

    for name in {*leaves(config), *leaves(bootstrap)}:
        assert re.search(rf"\b{name}\b", code), name
