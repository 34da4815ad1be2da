"""The versions that the processes of a run compare before they start."""

import shutil
import subprocess
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


def git(directory, *arguments):
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
    return subprocess.run(
        command, cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()


def checkout(directory):
    """A small repository with the two packages."""
    for package in ("leafe_jax", "envs"):
        (directory / package).mkdir(parents=True)
        (directory / package / "one.py").write_text("1\n")
    git(directory, "init", "-q")
    git(directory, "add", ".")
    git(directory, "commit", "-qm", "first")
    return directory


def code(directory):
    sources._code.cache_clear()  # as a new process has it
    return sources.code(directory)


def test_the_code_of_a_checkout(tmp_path, monkeypatch):
    root = checkout(tmp_path / "a")
    clean = code(root)
    assert clean["commit"] == git(root, "rev-parse", "HEAD") and clean["dirty"] is False
    assert sources.told(clean) == clean["commit"][:12]
    (root / "notes.txt").write_text("no code of ours")
    assert code(root) == clean
    (root / "envs" / "extra.py").write_text("")  # not in the commit, and imported all the same
    dirty = code(root)
    assert dirty["dirty"] is True and dirty["sources"] != clean["sources"]
    assert "with uncommitted changes" in sources.told(dirty)
    (root / "envs" / "extra.py").write_text("2")
    assert code(root)["sources"] != dirty["sources"], "other changes at the same commit"
    git(root, "add", ".")
    git(root, "commit", "-qm", "second")
    assert code(root)["dirty"] is False and code(root)["commit"] != clean["commit"]
    # A hook's variables name another repository.
    other = checkout(tmp_path / "b")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert code(root)["dirty"] is False


def test_code_is_what_the_process_began_with(tmp_path):
    root = checkout(tmp_path / "a")
    before = code(root)
    (root / "envs" / "one.py").write_text("changed while it runs")
    assert sources.code(root) == before


def test_an_installed_package_has_a_version_and_no_commit(tmp_path):
    inside = (
        checkout(tmp_path / "somebody's") / "site-packages"
    )  # a virtual environment in a repository
    for package in ("leafe_jax", "envs"):
        (inside / package).mkdir(parents=True)
    found = code(inside)
    assert found["commit"] is None and found["dirty"] is None
    assert sources.told(found).startswith("leafe_jax 0.1.0 (sources ")
    assert sources.all_code([found]) and not sources.all_code([{**found, "dirty": 1}])
