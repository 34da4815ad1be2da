"""Generated levels and the solver, against brute force and hand-made boards."""

import hashlib
import random

import pytest

import envs
from envs.base import EnvDataError
from envs.sokoban.environment import move
from envs.sokoban.generator import draw_level, make_level
from envs.sokoban.levels import MOVES, Level, canonical_board, level_split, parse_levels
from envs.sokoban.solver import solve_level


def brute_force(level, pushes=False):
    """Least moves, or pushes, by search over single moves, nothing clever."""
    start = (level.boxes, level.player)
    seen, layer, cost = set(), [start], 0
    while layer:
        ahead, queue = [], list(layer)
        for position in queue:
            if position in seen:
                continue
            seen.add(position)
            if position[0] == level.targets:
                return cost
            for direction in MOVES.values():
                new = move(level, *position, direction)
                free = pushes and new[0] == position[0]  # walking costs nothing then
                (queue if free else ahead).append(new)
        layer, cost = ahead, cost + 1
    return None


def count_pushes(level, plan):
    boxes, player, pushes = level.boxes, level.player, 0
    for name in plan:
        new, player = move(level, boxes, player, MOVES[name])
        pushes += new != boxes
        boxes = new
    assert boxes == level.targets
    return pushes


@pytest.mark.parametrize(
    ("size", "boxes", "count"), [((6, 6), 1, 25), ((6, 6), 2, 12), ((7, 6), 2, 12), ((8, 8), 3, 4)]
)
def test_plans_are_optimal_in_moves_and_in_pushes(size, boxes, count):
    env = envs.make("sokoban", horizon=60, size=size, num_boxes=boxes)
    for task in env.list_tasks("valid")[:count]:
        level = env.level(task.task_id)
        plan = solve_level(level, level.boxes, level.player, 100_000)
        assert len(plan) == brute_force(level)
        assert count_pushes(level, plan) >= brute_force(level, pushes=True)
        plan = solve_level(level, level.boxes, level.player, 100_000, "pushes")
        assert count_pushes(level, plan) == brute_force(level, pushes=True)


def test_fewest_moves_and_fewest_pushes_are_different_plans():
    env = envs.make("sokoban", horizon=60, size=(8, 8), num_boxes=3)
    traded = 0
    for task in env.list_tasks("train")[:60]:
        level = env.level(task.task_id)
        quick, few = (
            solve_level(level, level.boxes, level.player, 100_000, unit)
            for unit in ("moves", "pushes")
        )
        moves = len(few) - len(quick)
        pushes = count_pushes(level, quick) - count_pushes(level, few)
        assert moves >= 0 and pushes >= 0
        traded += moves > 0 and pushes > 0
    assert traded
    with pytest.raises(EnvDataError, match="unit = 'steps': must be one of moves, pushes"):
        solve_level(level, level.boxes, level.player, 9999, "steps")


def test_solver_knows_when_there_is_no_way(tmp_path):
    for text in ("; 0\n#####\n#$@.#\n#####\n", "; 0\n######\n#@ $ #\n#.   #\n######\n"):
        path = tmp_path / "l.txt"
        path.write_text(text)
        (level,) = parse_levels(path)
        for unit in ("moves", "pushes"):
            assert solve_level(level, level.boxes, level.player, 1000, unit) is None
        assert brute_force(level) is None


def test_a_box_beside_the_board_stays_there(tmp_path):
    path = tmp_path / "l.txt"
    path.write_text("; 0\n#######\n#@ $ .#\n#######\n$ .\n")
    (level,) = parse_levels(path)
    assert solve_level(level, level.boxes, level.player, 1000) is None


@pytest.mark.parametrize(("size", "boxes"), [((6, 6), 1), ((9, 5), 2), ((10, 10), 4)])
def test_levels_have_the_size_and_boxes_asked_for(size, boxes):
    env = envs.make("sokoban", horizon=120, size=size, num_boxes=boxes)
    for task in env.list_tasks("test")[:5]:
        level = env.level(task.task_id)
        assert (level.columns, level.rows) == size and level_split(level) == "test"
        assert len(level.boxes) == len(level.targets) == boxes and not level.boxes & level.targets
        rim = {(r, c) for r in range(level.rows) for c in range(level.columns)
               if r in (0, level.rows - 1) or c in (0, level.columns - 1)}  # fmt: skip
        assert rim <= level.walls
        assert level.player not in level.walls | level.boxes
        state, _ = env.reset(task.task_id)
        plan = env.solve(state)
        assert len(plan) <= 120 and count_pushes(level, plan)


def test_large_levels_are_the_same_everywhere():
    """Pinned, like the splits of the default size in test_properties.py."""
    env = envs.make("sokoban", horizon=120, size=(10, 10), num_boxes=4)
    boards = "".join(
        env.reset(t.task_id)[1].split("stays there.\n")[1] for t in env.list_tasks("test")[:4]
    )
    assert hashlib.sha256(boards.encode()).hexdigest()[:16] == "2ba58601bbf3acab"


def test_every_draw_is_solvable():
    """Without the check that a plan fits the horizon: reverse play alone makes it so."""
    drawn = [draw_level(7, 7, 2, random.Random(seed)) for seed in range(120)]
    levels = [level for level in drawn if level]
    assert len(levels) > 40
    for level in levels:
        assert solve_level(level, level.boxes, level.player, 100_000, "pushes") is not None


def test_splits_share_no_board():
    env = envs.make("sokoban")
    boards = {
        split: {canonical_board(env.level(t.task_id)) for t in env.list_tasks(split)}
        for split in ("train", "valid", "test")
    }
    assert not boards["train"] & boards["valid"]
    assert not boards["train"] & boards["test"]
    assert not boards["valid"] & boards["test"]


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


def test_a_turned_board_is_the_same_and_a_changed_one_is_not():
    level = make_level("train/sokoban-7x6-2/0003", 30)
    texts = {
        canonical_board(turned(level, quarter, mirror))
        for quarter in range(4)
        for mirror in (False, True)
    }
    assert texts == {canonical_board(level)}
    board = {(r, c) for r in range(level.rows) for c in range(level.columns)}
    targets = frozenset(sorted(board - level.walls - level.targets)[:2])
    moved = Level(level.rows, level.columns, level.walls, targets, level.boxes, level.player)
    assert canonical_board(moved) not in texts


def test_a_task_is_the_same_level_under_every_horizon_it_fits_in():
    for family, count in (("sokoban-6x6-1", 20), ("sokoban-7x7-2", 10)):
        for number in range(count):
            task_id = f"train/{family}/{number:04d}"
            level = make_level(task_id, 25)
            plan = solve_level(level, level.boxes, level.player, 10_000)
            assert make_level(task_id, len(plan)) == make_level(task_id, 60) == level


def test_a_horizon_too_short_for_any_level_is_an_error():
    env = envs.make("sokoban", horizon=1, size=(5, 5), num_boxes=3)
    with pytest.raises(EnvDataError, match="sokoban-5x5-3: .* env.horizon = 1"):
        env.reset("test/sokoban-5x5-3/0000")
