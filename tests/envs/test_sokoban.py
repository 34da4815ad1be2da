"""Sokoban rules against hand-computed cases and a brute-force solver; level files."""

import os
from pathlib import Path

import pytest

from envs.base import EnvDataError
from envs.sokoban import (
    MOVES,
    Level,
    Sokoban,
    canonical_level,
    level_split,
    make_level,
    move,
    parse_levels,
    render,
    solve_level,
)

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
    (task,) = env.list_tasks("test")
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
            for new in [move(level, boxes, player, direction)]
            if new not in seen and not seen.add(new)
        ]  # fmt: skip
        depth += 1
    return None


@pytest.mark.parametrize(("size", "boxes"), [((6, 6), 1), ((6, 6), 2), ((7, 6), 2)])
def test_solver_is_optimal_and_levels_are_solvable(size, boxes):
    env = Sokoban(horizon=30, size=size, num_boxes=boxes)
    for task in env.list_tasks("valid")[:12]:
        level = make_level(task.task_id, 30)
        plan = solve_level(level, level.boxes, level.player, 100_000)
        assert len(plan) == brute_force(level)
        assert level_split(level) == "valid"
        assert len(level.boxes) == boxes and not level.boxes & level.targets
        assert (level.columns, level.rows) == size


def turned(level, quarter, mirror):
    """The level turned by `quarter` right angles and mirrored, one row and column further in."""

    def place(cell):
        row, column, rows, columns = *cell, level.rows, level.columns
        for _ in range(quarter):
            row, column, rows, columns = column, rows - 1 - row, columns, rows
        return row + 1, (columns - 1 - column if mirror else column) + 1

    size = max(level.rows, level.columns) + 1
    targets, boxes = (frozenset(map(place, cells)) for cells in (level.targets, level.boxes))
    floor = {(r, c) for r in range(level.rows) for c in range(level.columns)} - level.walls
    board = {(r, c) for r in range(size) for c in range(size)}
    return Level(size, size, frozenset(board - set(map(place, floor))), targets, boxes,
                 place(level.player))  # fmt: skip


def test_splits_share_no_puzzle():
    env = Sokoban()
    puzzles = {
        split: {canonical_level(env._level(t.task_id)) for t in env.list_tasks(split)}
        for split in ("train", "valid", "test")
    }
    assert not puzzles["train"] & puzzles["valid"]
    assert not puzzles["train"] & puzzles["test"]
    assert not puzzles["valid"] & puzzles["test"]


def test_a_turned_level_is_the_same_puzzle_and_a_changed_one_is_not():
    level = make_level("train/sokoban-7x6-2/0003", 30)
    for quarter in range(4):
        for mirror in (False, True):
            assert canonical_level(turned(level, quarter, mirror)) == canonical_level(level)
    for name in MOVES:  # a step without a push leaves the player in the same area
        boxes, player = move(level, level.boxes, level.player, MOVES[name])
        changed = Level(level.rows, level.columns, level.walls, level.targets, boxes, player)
        same = canonical_level(changed) == canonical_level(level)
        assert same == (boxes == level.boxes)


def test_a_task_is_the_same_level_under_every_horizon_it_fits_in():
    for number in range(20):
        task_id = f"train/sokoban-6x6-1/{number:04d}"
        level = make_level(task_id, 15)
        plan = solve_level(level, level.boxes, level.player, 10_000)
        assert make_level(task_id, len(plan)) == make_level(task_id, 50) == level


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
        ("; 0\n#####\n#@$. \n#####\n", r"line 3, column 5: the board is open to the outside"),
        ("; 0\n#####\n#@$.#\n###\n", r"line 4, column \d: .*row of 3 of 5 cells"),
        ("; 0\n#####\n#@$.#\n\n#   #\n#####\n", r"line 5: '#   #' after a blank line"),
        ("; 0\n#####\n#@* #\n#####\n", r"line 1: every box is on a target already"),
        ("; 0\n#####\n#@$\f.#\n#####\n", r"line 3, column 4: '\\x0c' is no cell"),
    ],
)
def test_broken_level_files(tmp_path, text, message):
    with pytest.raises(EnvDataError, match=message) as error:
        from_text(tmp_path, text)
    assert "levels.txt" in str(error.value) and "\n" not in str(error.value)


def test_a_level_file_belongs_to_one_split(tmp_path):
    paths = []
    for name in ("train/000.txt", "valid/000.txt", "mine/a_test_1.txt", "mine/other.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(LEVEL)
        paths.append(str(path))
    env = Sokoban(levels=paths)
    ids = {
        split: [t.task_id for t in env.list_tasks(split)] for split in ("train", "valid", "test")
    }
    assert ids == {
        "train": ["train/000/0000"],
        "valid": ["valid/000/0000"],
        "test": ["test/a_test_1/0000", "test/other/0000"],
    }
    for task_id in ("test/000/0000", "train/other/0000", "nowhere/000/0000", "train/000/0001"):
        with pytest.raises(EnvDataError, match="not in any split"):
            env.reset(task_id)
    with pytest.raises(EnvDataError, match="must be one of train, valid, test"):
        env.list_tasks("nowhere")
    with pytest.raises(EnvDataError, match="split 'train': must be one of test"):
        Sokoban(levels=paths[3:]).list_tasks("train")
    with pytest.raises(EnvDataError, match="a second train file named 000"):
        Sokoban(levels=[paths[0], paths[0]])


def test_files_from_other_editors(tmp_path):
    path = tmp_path / "l.txt"
    path.write_text(LEVEL)
    plain = parse_levels(path)
    path.write_bytes(b"\xef\xbb\xbf" + LEVEL.replace("\n", "\r\n").encode())
    assert parse_levels(path) == plain


def test_options():
    for options, field in (
        (dict(size=(3, 3)), "env.options.size"), (dict(num_boxes=0), "env.options.num_boxes"),
        (dict(size=6), "env.options.size"), (dict(num_boxes=True), "env.options.num_boxes"),
        (dict(levels=["/nowhere.txt"]), "env.options.levels"), (dict(levels="a.txt"), "a list of paths"),
    ):  # fmt: skip
        with pytest.raises(EnvDataError, match=field):
            Sokoban(**options)


BOXOBAN = os.environ.get("LEAFE_BOXOBAN")


# Within 20,000 positions the solver finds 96% of a sample of both published files.
@pytest.mark.skipif(not BOXOBAN, reason="set LEAFE_BOXOBAN to a folder of Boxoban level files")
def test_all_boxoban_levels():
    signs = {"_": " ", "O": ".", "X": "$", "P": "@"}
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
                drawn.append("".join(signs.get(c, c) for c in cells))
        assert drawn == rows
        env = Sokoban(horizon=200, levels=[str(path)])
        (split,) = {s for s in ("train", "valid", "test") if s in path.name} or {"test"}
        tasks = env.list_tasks(split)
        assert len(tasks) == len(levels)
        for task in tasks:
            state, _ = env.reset(task.task_id)
            for action in ("up", "left", "?", "down", "right"):
                state, _ = env.step(state, action)
            assert len(state.boxes) == 4 and state.num_steps == 5
        solved = 0
        for task in tasks[::100]:
            state, _ = env.reset(task.task_id)
            plan = env.solve(state, max_nodes=20_000)
            for name in plan or []:
                state, _ = env.step(state, name)
            assert plan is None or state.success
            solved += state.success
        assert solved >= 0.8 * len(tasks[::100])
