"""Optimal Sokoban plans, in moves or in pushes: A* over pushes on bit boards.

A set of cells is an integer with one bit per cell, so four shifts grow a whole area by one step. A
frame of walls keeps every shift on the board.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Iterator

from envs.base import EnvDataError
from envs.sokoban.levels import MOVES, Cell, Level

UNITS = ("moves", "pushes")
NO_LIMIT = 1 << 30


@dataclasses.dataclass(frozen=True)
class Grid:
    """A level as bit boards; cell (row, column) is bit (row + 1) * stride + column + 1.

    Attributes:
      stride: difference of index between a cell and the one below it.
      floor: mask of all cells that are not walls.
      targets: mask of the targets.
    """

    stride: int
    floor: int
    targets: int

    @property
    def steps(self) -> tuple[int, ...]:
        """The change of index for each of MOVES, in their order."""
        return tuple(row * self.stride + column for row, column in MOVES.values())

    def index(self, cell: Cell) -> int:
        return (cell[0] + 1) * self.stride + cell[1] + 1

    def cell(self, index: int) -> Cell:
        row, column = divmod(index, self.stride)
        return row - 1, column - 1

    def mask(self, cells) -> int:
        return sum(1 << self.index(cell) for cell in cells)


@functools.lru_cache(maxsize=4096)
def grid_of(level: Level) -> Grid:
    """The bit boards of a level."""
    empty = Grid(level.columns + 2, 0, 0)
    inside = ((r, c) for r in range(level.rows) for c in range(level.columns))
    floor = empty.mask(cell for cell in inside if cell not in level.walls)
    return Grid(empty.stride, floor, empty.mask(level.targets))


def indices(mask: int) -> Iterator[int]:
    """The cells of a mask, in ascending order."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def area(stride: int, start: int, free: int) -> int:
    """All cells of `free` that can be reached from the cells `start`; all three are masks."""
    region = start
    while True:
        grown = region | region << 1 | region >> 1 | region << stride | region >> stride
        grown &= free
        if grown == region:
            return region
        region = grown


@functools.lru_cache(maxsize=4096)
def push_distances(grid: Grid) -> dict[int, int]:
    """Cell -> fewest pushes of a single box from there to the nearest target.

    A missing cell is dead: a box there, e.g. in a corner, reaches no target.
    """
    distance = dict.fromkeys(indices(grid.targets), 0)
    queue = list(distance)
    for cell in queue:
        for step in grid.steps:
            box, player = cell - step, cell - 2 * step
            if grid.floor >> box & 1 and grid.floor >> player & 1 and box not in distance:
                distance[box] = distance[cell] + 1
                queue.append(box)
    return distance


def _pushes(grid: Grid, boxes: int, player: int) -> Iterator[tuple[int, int, int]]:
    """All pushes within reach of the player: (moves including the push, box, step)."""
    free = grid.floor & ~boxes
    sides: dict[int, list[tuple[int, int]]] = {}
    wanted = 0
    for box in indices(boxes):
        for step in grid.steps:
            if free >> (box + step) & 1 and free >> (box - step) & 1:
                sides.setdefault(box - step, []).append((box, step))
                wanted |= 1 << (box - step)
    stride, moves = grid.stride, 1
    region = fresh = 1 << player
    while fresh:
        for side in indices(fresh & wanted):
            for box, step in sides[side]:
                yield moves, box, step
        grown = fresh << 1 | fresh >> 1 | fresh << stride | fresh >> stride
        fresh = grown & free & ~region
        region |= fresh
        moves += 1


def _walk(grid: Grid, free: int, start: int, end: int) -> list[str]:
    """A shortest walk over `free` cells."""
    came: dict[int, tuple[int, str]] = {}
    queue = [start]
    for cell in queue:
        if cell == end:
            break
        for name, step in zip(MOVES, grid.steps, strict=True):
            ahead = cell + step
            if free >> ahead & 1 and ahead not in came and ahead != start:
                came[ahead] = (cell, name)
                queue.append(ahead)
    walk = []
    while end != start:
        end, name = came[end]
        walk.append(name)
    return walk[::-1]


def play_pushes(grid: Grid, boxes: int, player: int, pushes: list[tuple[int, int]]) -> list[str]:
    """The moves for `pushes` (box, step), with a shortest walk before each push."""
    names = dict(zip(grid.steps, MOVES, strict=True))
    moves: list[str] = []
    for box, step in pushes:
        moves += _walk(grid, grid.floor & ~boxes, player, box - step)
        moves.append(names[step])
        boxes ^= 1 << box | 1 << (box + step)
        player = box
    return moves


def solve_level(
    level: Level,
    boxes: frozenset[Cell],
    player: Cell,
    max_nodes: int,
    unit: str = "moves",
    longest: int = NO_LIMIT,
) -> list[str] | None:
    """A plan with the fewest moves, or with the fewest pushes.

    Args:
      level, boxes, player: the position.
      max_nodes: positions expanded before giving up.
      unit: what is minimised, "moves" or "pushes".
      longest: most of that unit in a plan; a small number ends a hopeless search early.

    Returns:
      Moves, or None if there is no such plan or `max_nodes` was reached.

    Raises:
      EnvDataError: unknown unit.
    """
    if unit not in UNITS:
        raise EnvDataError(f"unit = {unit!r}: must be one of {', '.join(UNITS)}")
    grid = grid_of(level)
    start = grid.mask(boxes), grid.index(player)
    pushes, _ = _search(grid, *start, unit == "pushes", max_nodes, longest)
    return None if pushes is None else play_pushes(grid, *start, pushes)


def unsolvable_within(level: Level, longest: int, max_nodes: int) -> bool:
    """True if certainly no plan of `longest` moves solves the level.

    False also if `max_nodes` positions are too few to be certain.
    """
    grid = grid_of(level)
    start = grid.mask(level.boxes), grid.index(level.player)
    pushes, complete = _search(grid, *start, False, max_nodes, longest)
    return pushes is None and complete


def _search(
    grid: Grid, boxes: int, player: int, count_pushes: bool, max_nodes: int, longest: int
) -> tuple[list[tuple[int, int]] | None, bool]:
    """A* with the sum of push distances as lower bound; a position is (boxes, player).

    If pushes are counted, walking is free, so all cells of the player's area are one position.

    Returns:
      The pushes, or None; and True if the search was complete, so that None proves that there is no
      plan.
    """
    distance = push_distances(grid)

    def place(boxes: int, player: int) -> int:
        if not count_pushes:
            return player
        region = area(grid.stride, 1 << player, grid.floor & ~boxes)
        return (region & -region).bit_length() - 1

    if any(box not in distance for box in indices(boxes)):
        return None, True
    start = (boxes, place(boxes, player))
    best = {start: 0}
    came: dict[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]] = {}
    heap = [(sum(distance[box] for box in indices(boxes)), 0, 0, start)]
    tie = expanded = 0
    while heap:
        estimate, _, cost, node = heapq.heappop(heap)
        if cost > best[node]:
            continue
        if node[0] == grid.targets:
            pushes = []
            while node in came:
                node, push = came[node]
                pushes.append(push)
            return pushes[::-1], True
        expanded += 1
        if expanded > max_nodes:
            return None, False
        for moves, box, step in _pushes(grid, *node):
            ahead = box + step
            if ahead not in distance:
                continue
            new_boxes = node[0] ^ (1 << box | 1 << ahead)
            successor = (new_boxes, place(new_boxes, box))
            new_cost = cost + (1 if count_pushes else moves)
            bound = estimate - cost - distance[box] + distance[ahead]
            if new_cost + bound > longest:
                continue
            if new_cost < best.get(successor, NO_LIMIT):
                best[successor] = new_cost
                came[successor] = (node, (box, step))
                tie += 1
                heapq.heappush(heap, (new_cost + bound, -tie, new_cost, successor))
    return None, True
