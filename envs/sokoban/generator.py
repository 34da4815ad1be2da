"""Seeded Sokoban levels by reverse play, so they are solvable by construction.

Rooms, placement and score are gym-sokoban's (gym_sokoban/envs/room_utils.py): a random walk carves
small patterns; boxes start on their targets and are pulled away; the position with the largest
pulls x displacement wins. Positions are bit boards. The search ends after 30,000 positions, the
original's after 300,000, which small boards do not have. docs/ENVIRONMENTS.md compares speed and
statistics. The player's last steps are verl-agent's
(agent_system/environments/env_package/sokoban/sokoban/room_utils.py).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from envs.base import EnvDataError, stable_seed
from envs.sokoban.levels import MOVES, Cell, Level, canonical_board, level_split
from envs.sokoban.solver import Grid, grid_of, solve_level

# Split -> number of generated tasks of a size. Those of "bootstrap" are for scripted corpora only.
TASKS = {"train": 512, "valid": 64, "test": 128, "bootstrap": 2048}
_MAX_POSITIONS = 30_000  # of one reverse search (gym-sokoban: 300,000)
_MAX_STEPS = 300  # of the path to a position
_MAX_NODES = 20_000  # of the solver
# The cells that one step of the random walk carves around its own: two bars, two bends, a square.
_PATTERNS: tuple[tuple[Cell, ...], ...] = (
    ((0, -1), (0, 0), (0, 1)),
    ((-1, 0), (0, 0), (1, 0)),
    ((0, -1), (0, 0), (1, 0)),
    ((0, 0), (0, 1), (1, 0)),
    ((0, -1), (0, 0), (1, -1), (1, 0)),
)


def _draw_room(height: int, width: int, rng: random.Random) -> set[Cell]:
    """The floor cells of a room; none is on the border."""
    directions = list(MOVES.values())
    row, column = rng.randrange(1, height), rng.randrange(1, width)
    direction = directions[rng.randrange(4)]
    floor: set[Cell] = set()
    for _ in range(int(1.7 * (height + width))):
        if rng.random() < 0.35:
            direction = directions[rng.randrange(4)]
        row = min(max(row + direction[0], 1), height - 2)
        column = min(max(column + direction[1], 1), width - 2)
        for dr, dc in _PATTERNS[rng.randrange(len(_PATTERNS))]:
            cell = (row + dr, column + dc)
            if 1 <= cell[0] <= height - 2 and 1 <= cell[1] <= width - 2:
                floor.add(cell)
    return floor


def _draw_solved(height: int, width: int, num_boxes: int, rng: random.Random) -> Level | None:
    """A room with every box on its target, or None if it has too few cells."""
    floor = sorted(_draw_room(height, width, rng))
    if len(floor) <= num_boxes + 1:
        return None
    board = {(r, c) for r in range(height) for c in range(width)}
    walls = frozenset(board.difference(floor))
    # Not random.sample: its values for a seed may differ between Python versions.
    player, *cells = [floor.pop(rng.randrange(len(floor))) for _ in range(num_boxes + 1)]
    targets = frozenset(cells)
    return Level(height, width, walls, targets, targets, player)


def _displacements(grid: Grid, target: int) -> list[int]:
    """Manhattan distance of every cell from a target, by index."""
    row, column = divmod(target, grid.stride)
    size = grid.floor.bit_length()
    return [abs(i // grid.stride - row) + abs(i % grid.stride - column) for i in range(size)]


def pull_away(
    grid: Grid, targets: Sequence[int], player: int
) -> tuple[tuple[int, ...], int] | None:
    """The best position that depth-first reverse play finds from the solved position.

    Args:
      grid: the board.
      targets: initial cells of the boxes.
      player: initial cell of the player.

    Returns:
      (boxes in the order of their targets, player) with the largest pulls x displacement among the
      positions in which nothing covers a target, or None if there is none.
    """
    floor, all_targets = grid.floor, grid.targets
    distances = {target: _displacements(grid, target) for target in targets}
    # The order of the original: steps that pull come first. The stack is last in, first out.
    ways = [(step, pull) for pull in (False, True) for step in reversed(grid.steps)]
    best: tuple[tuple[int, ...], int] | None = None
    best_score = 0
    seen: set[tuple[int, int]] = set()
    # (box of each target, boxes, player, pulls so far, displacement, steps so far)
    stack = [(tuple(targets), all_targets, player, 0, 0, 1)]
    while stack and len(seen) < _MAX_POSITIONS:
        boxes, mask, at, pulls, displacement, steps = stack.pop()
        if (mask, at) in seen:
            continue
        seen.add((mask, at))
        if pulls * displacement > best_score and not (mask | 1 << at) & all_targets:
            best, best_score = (boxes, at), pulls * displacement
        if steps + 1 == _MAX_STEPS:
            continue
        free = floor & ~mask
        for step, pull in ways:
            ahead, behind = at + step, at - step
            if not free >> ahead & 1:
                continue
            if not (pull and mask >> behind & 1):
                if (mask, ahead) not in seen:
                    stack.append((boxes, mask, ahead, pulls, displacement, steps + 1))
                continue
            pulled = mask ^ (1 << behind | 1 << at)
            if (pulled, ahead) not in seen:
                number = boxes.index(behind)
                distance = distances[targets[number]]
                moved = (*boxes[:number], at, *boxes[number + 1 :])
                far = displacement + distance[at] - distance[behind]
                stack.append((moved, pulled, ahead, pulls + 1, far, steps + 1))
    return best


def _walk_away(grid: Grid, boxes: int, player: int, chance: float, rng: random.Random) -> int:
    """verl-agent's last steps: with probability `chance`, one to three that do not cross themselves."""
    if rng.random() > chance:
        return player
    free = grid.floor & ~boxes
    for _ in range(3):
        free &= ~(1 << player)
        ways = [player + step for step in grid.steps if free >> (player + step) & 1]
        if not ways:
            break
        player = ways[rng.randrange(len(ways))]
        if rng.random() > 0.5:
            break
    return player


def draw_level(
    height: int, width: int, num_boxes: int, rng: random.Random, split: str | None = None
) -> Level | None:
    """One draw: a level, or None if the room gives none or belongs to another split."""
    solved = _draw_solved(height, width, num_boxes, rng)
    if solved is None or (split is not None and level_split(solved) != split):
        return None
    grid = grid_of(solved)
    targets = sorted(grid.index(cell) for cell in solved.targets)
    found = pull_away(grid, targets, grid.index(solved.player))
    if found is None:
        return None
    boxes, player = found
    displacement = sum(
        _displacements(grid, target)[box] for target, box in zip(targets, boxes, strict=True)
    )
    mask = sum(1 << box for box in boxes)
    player = _walk_away(grid, mask, player, 0.8 if displacement == 1 else 0.5, rng)
    return Level(
        height, width, solved.walls, solved.targets, frozenset(map(grid.cell, boxes)),
        grid.cell(player),
    )  # fmt: skip


def _fits(level: Level, horizon: int) -> bool:
    """True if a plan of at most `horizon` moves is found. Fewest pushes are found faster, so first."""
    for unit in ("pushes", "moves"):
        plan = solve_level(level, level.boxes, level.player, _MAX_NODES, unit)
        if plan is not None and len(plan) <= horizon:
            return True
    return False


@functools.cache
def _train_boards(family: str, horizon: int) -> frozenset[str]:
    """The boards of the train split, which a bootstrap level must not have."""
    names = (f"train/{family}/{number:04d}" for number in range(TASKS["train"]))
    return frozenset(canonical_board(make_level(name, horizon)) for name in names)


@functools.lru_cache(maxsize=8192)
def make_level(task_id: str, horizon: int) -> Level:
    """The generated level of `split/sokoban-WxH-B/number`: solvable within `horizon` moves.

    The horizon only rejects levels: a task is the same level for every horizon that it fits in.
    Levels of "bootstrap" are on boards that `level_split` gives to "train" and "train" does not use.

    Raises:
      EnvDataError: no such level was found.
    """
    split, family, _ = task_id.split("/")
    _, size, boxes = family.split("-")
    width, height = (int(x) for x in size.split("x"))
    for attempt in range(20_000):
        rng = random.Random(stable_seed("sokoban", task_id, attempt))
        owner = "train" if split == "bootstrap" else split
        level = draw_level(height, width, int(boxes), rng, owner)
        if level is None or not _fits(level, horizon):
            continue
        if owner == split or canonical_board(level) not in _train_boards(family, horizon):
            return level
    raise EnvDataError(
        f"sokoban {family}: no level solvable within env.horizon = {horizon} steps was found; raise"
        " the horizon or use fewer boxes"
    )
