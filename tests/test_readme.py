"""README.md and .ci/run stay together: CI runs the commands that a newcomer reads."""

import re
import shlex
import subprocess
from pathlib import Path

from leafe_jax.main import _parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def newcomer_commands() -> list[str]:
    """The lines of README.md's code blocks that install the project and then run something."""
    blocks = re.findall(r"(?:^    .*\n)+", README, flags=re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("pip install") and "&&" in line]


def test_ci_runs_the_commands_of_the_readme_word_for_word():
    listed = subprocess.run(
        ["bash", ".ci/run", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    quickstart, tests = newcomer_commands()
    assert listed == [quickstart.replace("quickstart.py ", "quickstart.py:smoke "), tests]
    assert listed[0] != quickstart  # CI takes the short form
    # It has no copy of its own, which could differ, and installs nothing before them.
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    before = script[: script.index("bash -c")]
    assert not re.search(r"^ *(python -m )?(pip|apt-get) ", before, flags=re.MULTILINE)
    assert "leafe_jax.main" not in before


def test_the_quickstart_command_is_one_that_the_program_takes():
    install, run = newcomer_commands()[0].split(" && ")
    assert install == "pip install -e ."
    python, module, *arguments = shlex.split(run)
    assert (python, module) == ("python", "-m")
    values = _parse(arguments)
    workdir = Path(values["workdir"].value)
    # Relative: Orbax refuses such paths, so an absolute one would test something else.
    assert not workdir.is_absolute()
    assert values["config"].value.seed == 0


def test_every_file_that_the_readme_names_is_there():
    names = re.findall(r"\b(?:configs|docs|leafe_jax|envs|tests)/[\w/.-]*\w\.\w+", README)
    assert len(names) > 20
    assert [name for name in sorted(set(names)) if not (ROOT / name).exists()] == []


def test_the_slow_tests_are_listed():
    """With what the default run has instead."""
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## The slow tests")[1]
    listed = {name for row in table.splitlines() if row.startswith("| `")
              for name in re.findall(r"`([\w/]+\.py)`", row.split("|")[1])}  # fmt: skip
    marked = {
        path.relative_to(ROOT / "tests").as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"^\s*[^#\n]*mark\.slow", path.read_text(), re.M)
    }
    assert listed == marked - {"test_readme.py"}
