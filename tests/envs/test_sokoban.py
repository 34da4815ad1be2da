"""Sokoban rules against hand-computed cases and a brute-force solver; level files."""

import os
from pathlib import Path

import pytest

from envs.base import EnvDataError
from envs.sokoban import MOVES, Sokoban, level_split, make_level, move, parse_levels, render, solve_level

LEVEL = """; 7
#####
#@$.#
#   #
#####
"""


def from_text(tmp_path, text, **options):
    path = tmp_path / "levels.txt"
    path.write_text(text)
    return Sokoban(levels=[str(path)], **options)


def test_rewards_and_rendering(tmp_path):
    env = from_text(tmp_path, LEVEL)
    (task,) = env.tasks("test")
    assert task.task_id == "test/levels/0000"
    state, observation = env.reset(task.task_id)
    grid = " # \t # \t # \t # \t # \t\n # \t P \t X \t O \t # \t\n # \t _ \t _ \t _ \t # \t\n"
    assert observation.endswith(grid + " # \t # \t # \t # \t # \t")
    same, result = env.step(state, "north")
    assert result.reward == pytest.approx(-0.1) and not result.info["valid"] and same.num_steps == 1
    done, result = env.step(state, " RIGHT ")
    assert result.reward == pytest.approx(-0.1 + 1 + 10) and result.success
    assert result.observation.splitlines()[1] == " # \t _ \t P \t √ \t # \t"
    blocked, result = env.step(state, "up")
    assert blocked.player == state.player and result.reward == pytest.approx(-0.1)
    assert result.info["valid"]


def test_pushing_off_a_target_and_against_things(tmp_path):
    env = from_text(tmp_path, "; 0\n#######\n#@*$. #\n#     #\n#######\n")
    state, _ = env.reset("test/levels/0000")
    blocked, result = env.step(state, "right")  # two boxes in a row
    assert blocked.boxes == state.boxes and result.reward == pytest.approx(-0.1)
    env = from_text(tmp_path, "; 0\n#######\n#@*  .#\n#   $ #\n#######\n")
    state, _ = env.reset("test/levels/0000")
    off, result = env.step(state, "right")
    assert result.reward == pytest.approx(-0.1 - 1)
    assert " S \t" in render(env._level("test/levels/0000"), off.boxes, off.player)


def brute_force(level):
    """Breadth-first over single moves, nothing clever."""
    start = (level.boxes, level.player)
    seen, frontier, depth = {start}, [start], 0
    while frontier:
        if any(boxes == level.targets for boxes, _ in frontier):
            return depth
        frontier = [
            new for boxes, player in frontier for direction in MOVES.values()
            for new in [move(level, boxes, player, direction)] if new not in seen and not seen.add(new)
        ]  # fmt: skip
        depth += 1
    return None


@pytest.mark.parametrize(("size", "boxes"), [((6, 6), 1), ((6, 6), 2), ((7, 6), 2)])
def test_solver_is_optimal_and_levels_are_solvable(size, boxes):
    env = Sokoban(horizon=30, size=size, num_boxes=boxes)
    for task in env.tasks("valid")[:12]:
        level = make_level(task.task_id, 30)
        plan = solve_level(level, level.boxes, level.player, 100_000)
        assert len(plan) == brute_force(level)
        assert level_split(level) == "valid"
        assert len(level.boxes) == boxes and not level.boxes & level.targets
        assert (level.columns, level.rows) == size


def test_solver_knows_when_there_is_no_way(tmp_path):
    for text in ("; 0\n#####\n#$@.#\n#####\n", "; 0\n######\n#@ $ #\n#.   #\n######\n"):
        path = tmp_path / "l.txt"
        path.write_text(text)
        (level,) = parse_levels(path)
        assert solve_level(level, level.boxes, level.player, 1000) is None
        assert brute_force(level) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("; 0\n#####\n#@x.#\n#####\n", r"line 3, column 3: 'x' is no cell"),
        ("; 0\n#####\n# $.#\n#####\n", r"line 1: 0 players"),
        ("; 0\n#####\n#@@.#\n#####\n", r"line 1: 2 players"),
        ("; 0\n#####\n#@..#\n#####\n", r"0 boxes and 2 targets"),
        ("#####\n#@$.#\n#####\n", r"line 1: '#####' before the first"),
        ("; 0\n#@$.#\n", r"1 rows"),
        ("", r"no level"),
        ("; 0\n#####\n#@$. \n#####\n", r"open to the outside"),
    ],
)
def test_broken_level_files(tmp_path, text, message):
    with pytest.raises(EnvDataError, match=message) as error:
        from_text(tmp_path, text)
    assert "levels.txt" in str(error.value) and "\n" not in str(error.value)


def test_options():
    for options, field in (
        (dict(size=(3, 3)), "env.size"), (dict(num_boxes=0), "env.num_boxes"),
        (dict(levels=["/nowhere.txt"]), "env.levels"),
    ):  # fmt: skip
        with pytest.raises(EnvDataError, match=field):
            Sokoban(**options)


BOXOBAN = os.environ.get("LEAFE_BOXOBAN")


@pytest.mark.skipif(not BOXOBAN, reason="set LEAFE_BOXOBAN to a folder of Boxoban level files")
def test_all_boxoban_levels():
    for path in sorted(Path(BOXOBAN).glob("*.txt")):
        if path.name.startswith("LICENSE"):
            continue
        levels = parse_levels(path)
        rows = [r for r in path.read_text().splitlines() if r and not r.startswith(";")]
        drawn = []
        for level in levels:
            assert (level.rows, level.columns, len(level.boxes)) == (10, 10, 4)
            for line in render(level, level.boxes, level.player).splitlines():
                cells = [line[i : i + 4].strip() for i in range(0, len(line), 4)]
                drawn.append("".join({"_": " ", "O": ".", "X": "$", "P": "@"}.get(c, c) for c in cells))
        assert drawn == rows
        for level in levels[::100]:
            plan = solve_level(level, level.boxes, level.player, 20_000)
            boxes, player = level.boxes, level.player
            for name in plan or []:
                boxes, player = move(level, boxes, player, MOVES[name])
            assert plan is None or boxes == level.targets
