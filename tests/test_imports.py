"""The two walls: environments know nothing of the model, the method nothing of the device."""

import ast
import subprocess
import sys
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


# Bottom first: a unit imports from those before it only. A unit is a folder of leafe_jax, or a file of
# its top level.
LAYERS = ("errors", "types", "runtime", "agent", "models", "sampling", "training", "methods",
          "bootstrap", "run", "api", "tools", "paper", "main")  # fmt: skip


def graph() -> dict[str, set[str]]:
    """Module -> the modules of this project that it imports, also inside functions."""
    paths = {}
    for top in ("leafe_jax", "envs"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            paths[".".join(parts).removesuffix(".__init__")] = path
    found = {}
    for module, path in paths.items():
        names = imported(path)
        # `from a import b` may name a module or something in one.
        found[module] = {name for name in names if name in paths} - {module, "leafe_jax"}
    return found


def unit(module: str) -> str:
    return module.split(".")[1]


def test_no_import_goes_up():
    for module, targets in graph().items():
        if not module.startswith("leafe_jax."):
            continue
        for target in targets:
            if target.startswith("leafe_jax."):
                assert LAYERS.index(unit(target)) <= LAYERS.index(unit(module)), (module, target)


def test_no_import_cycle():
    edges = graph()
    # A package's own __init__ is loaded before its modules, so names taken from a package do not count
    # against the package itself.
    left = {
        module: {t for t in targets if not module.startswith(t + ".")}
        for module, targets in edges.items()
    }
    while left:
        free = {module for module, targets in left.items() if not targets & left.keys()}
        assert free, f"a cycle among {sorted(left)}"
        left = {module: targets for module, targets in left.items() if module not in free}


def test_the_agent_the_search_and_the_environments_load_no_jax():
    """In a process of its own: every module that is imported on the way counts."""
    code = """
import importlib, pkgutil, sys
import envs, leafe_jax.agent
names = ["leafe_jax.methods.search", "leafe_jax.methods.examples"]
for package in (leafe_jax.agent, envs):
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    # Programs of other processes: they are run, not imported.
    names += [m.name for m in found if not m.name.endswith(("render_template", "guest", "__main__"))]
for name in names:
    importlib.import_module(name)
print(*sorted({"jax", "jaxlib", "flax", "grain", "torch"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "leafe_jax/models").glob("*.py")), ids=lambda p: p.name
)
def test_models_never_see_text(path):
    assert not tops(path) & {"transformers", "tokenizers", "envs"}


def test_every_config_field_is_read():
    """A field nobody reads is a bug: each leaf name of the default config occurs in the code."""
    import re
    import runpy

    config = runpy.run_path(str(ROOT / "configs/default.py"))["get_config"]()
    bootstrap = runpy.run_path(str(ROOT / "configs/bootstrap.py"))["get_config"]()
    sources = [*(ROOT / "leafe_jax").rglob("*.py"), ROOT / "envs/prompts.py"]
    code = "\n".join(path.read_text() for path in sources)

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
