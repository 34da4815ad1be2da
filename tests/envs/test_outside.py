"""The game of docs/ENVIRONMENTS.md, in a folder of its own beside an installed wheel of this project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs/ENVIRONMENTS.md").read_text(encoding="utf-8")
RUN = (
    "--config=quickstart:smoke", "--workdir=run", "--config.env.name=guess:Guess",
    "--config.env.horizon=4", "--config.phases=('explore','evaluate','report')",
    "--config.methods=('base',)", "--config.search.tree.num_tasks=2", "--config.evaluate.num_tasks=2",
    "--config.evaluate.num_samples=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Runs Python in an empty directory, where only the wheel and the game can be imported."""
    root = tmp_path_factory.mktemp("outside")
    # Built from a copy: setuptools leaves its files beside setup.py.
    for name in ("envs", "leafe_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, root / "source" / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", root, root / "source"]
    subprocess.run(build, check=True)
    (wheel,) = root.glob("leafe_jax-*.whl")
    subprocess.run([*pip, "install", *offline, "--target", root / "site", wheel], check=True)
    shutil.rmtree(root / "source")

    (code,) = [c for c in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "class Guess" in c]
    assert code.count("\n") <= 60
    game = root / "game"
    (game / "guess-1.0.dist-info").mkdir(parents=True)
    (game / "guess.py").write_text(code)
    (game / "guess-1.0.dist-info" / "METADATA").write_text("Name: guess\nVersion: 1.0\n")
    (points,) = re.findall(r"\n    (\[project\.entry-points.*\n)    (guess = .*\n)", DOCS)
    points = points[0].replace("project.entry-points.", "").replace('"', "") + points[1].replace(
        '"', ""
    )
    (game / "guess-1.0.dist-info" / "entry_points.txt").write_text(points)
    empty = root / "empty"
    empty.mkdir()

    def run(*arguments, typed=""):
        path = os.pathsep.join(map(str, (root / "site", game)))
        return subprocess.run(
            [sys.executable, *arguments], input=typed, capture_output=True, text=True, cwd=empty,
            env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip

    return run


def test_what_is_imported_is_the_wheel_and_the_game(outside):
    done = outside("-c", "import envs, guess, leafe_jax; print(envs.__file__, guess.__file__)")
    ours, theirs = done.stdout.split()
    assert not ours.startswith(str(ROOT)) and Path(ours).parts[-3:-1] == ("site", "envs")
    assert not theirs.startswith(str(ROOT)) and Path(theirs).parts[-2] == "game"


@pytest.mark.parametrize("name", ["guess:Guess", "guess"])
def test_the_game_passes_the_property_tests(outside, name):
    done = outside("-m", "envs.testing", name, '--options={"largest": 50}', "--tasks=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") == len(done.stdout.splitlines()) >= 9


def test_the_game_is_played(outside):
    code = """
import envs
env = envs.make("guess:Guess", split="test", largest=60)
assert envs.make("guess", largest=60).tasks[-1] == env.tasks[-1] and "guess" in envs.names()
won = 0
for task in env.tasks:
    state, first = env.reset(task)
    goal = env.goal(first)
    assert goal.startswith("say the number from 1 to ")
    low, high = 1, int(goal.split()[6])
    while not state.done:  # what the feedback is good for: no guess is wasted
        guess = (low + high) // 2
        state, result = env.step(state, str(guess))
        low, high = (guess + 1, high) if "too low" in result.observation else (low, guess - 1)
    won += state.success
print(won, len(env.tasks), sorted({task.family for task in env.tasks}))
"""
    done = outside("-c", code)
    assert done.stdout.split("\n")[0] == "40 40 ['large', 'small']", done.stderr
    typed = "30\nno\n:quit\n"
    done = outside("-m", "envs.play", "--env=guess:Guess", typed=typed)
    assert "guess, task test/small/000" in done.stdout and "'no' is not a number" in done.stdout
    assert re.search("30 is (too high|too low|right)", done.stdout), done.stdout + done.stderr


def test_a_wrong_option_of_the_game_is_one_line(outside):
    done = outside("-m", "envs.testing", "guess:Guess", '--options={"largest": 3}')
    message = "error: env.options.largest = 3: must be an integer from 4 to 1000\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.parametrize("name", ["household", "webshop", "alfworld", "code", "science", "sokoban"])
def test_the_wheel_has_the_files_of_our_own(outside, name):
    options = {"code": ', allow_weak=True, layout="own"'}.get(name, "")
    code = (
        f"import envs; env = envs.make({name!r}{options}); print(bool(env.reset(env.tasks[0])[1]))"
    )
    done = outside("-c", code)
    assert done.stdout == "True\n", done.stderr


def test_a_run_on_the_game_from_the_wheel(outside):
    """A config by name, the embedded model and the game, in a directory without a checkout."""
    done = outside("-m", "leafe_jax.main", *RUN)
    assert done.returncode == 0, done.stderr
    assert "Search tree: " in done.stdout and "small" in done.stdout
    code = "import json; print(*json.load(open('run/results.json'))['searches'])"
    assert outside("-c", code).stdout == "tree\n"
