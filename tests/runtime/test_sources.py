"""The versions that the processes of a run compare before they start."""

import shutil
from pathlib import Path

from leafe_jax.runtime import sources

ROOT = Path(__file__).resolve().parents[2]


def test_uncommitted_changes_are_seen(tmp_path):
    for package in ("leafe_jax", "envs"):
        shutil.copytree(ROOT / package, tmp_path / package)
    before = sources.facts(tmp_path)
    assert before == sources.facts()  # the location does not matter
    with open(tmp_path / "leafe_jax" / "agent" / "seeds.py", "a") as file:
        file.write("# a change on another host\n")
    (tmp_path / "envs" / "extra.py").write_text("")
    (tmp_path / "envs" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "envs" / "__pycache__" / "x.pyc").write_text("")
    after = sources.facts(tmp_path)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed == {"leafe_jax/agent/seeds.py", "envs/extra.py"}


def test_versions_and_data_are_included():
    facts = sources.facts()
    assert {"python", "jax", "jaxlib", "transformers", "tokenizers"} <= facts.keys()
    assert any(name.startswith("leafe_jax/assets/base/") for name in facts)
