"""`sokoban`: rules and rewards of gym-sokoban, text rendering of verl-agent, states as values.

Rules and rewards follow gym_sokoban/envs/sokoban_env.py: -0.1 a step, +1 for a box pushed onto a
target, -1 for one pushed off, +10 when all are on. A move pushes a box that stands in the way.
Unlike verl-agent, where an unknown action costs no step and only the rollout loop bounds the
episode, every reply counts as a step here: a model that does not answer in moves must not get more
time.

Levels come from a seeded generator (boxes start on their targets and are pulled away, so the way
back is a solution) or from Boxoban / XSB level files.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from envs.base import EnvDataError, Environment, State, StepResult, Task, stable_seed

Cell = tuple[int, int]  # (row, column)
MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_TASKS = {"train": 512, "valid": 64, "test": 128}
# Cells of XSB files -> (wall, target, box, player).
_XSB = {
    "#": (True, False, False, False),
    " ": (False, False, False, False),
    ".": (False, True, False, False),
    "$": (False, False, True, False),
    "*": (False, True, True, False),
    "@": (False, False, False, True),
    "+": (False, True, False, True),
}
_INSTRUCTIONS = (
    "Push every box onto a target. # is a wall, _ floor, O a target, X a box, √ a box on a target,"
    " P you, S you on a target. Moves: up, down, left, right."
)


@dataclasses.dataclass(frozen=True)
class Level:
    """A board.

    Attributes:
      rows: board height and `columns` width, in cells.
      walls, targets, boxes: cells.
      player: the player's cell.
    """

    rows: int
    columns: int
    walls: frozenset[Cell]
    targets: frozenset[Cell]
    boxes: frozenset[Cell]
    player: Cell


@dataclasses.dataclass(frozen=True)
class SokobanState(State):
    """What changes: where the boxes are and where the player is."""

    boxes: frozenset[Cell] = frozenset()
    player: Cell = (0, 0)


# -- level files -----------------------------------------------------------------------------------
def parse_levels(path: str | Path) -> list[Level]:
    """Reads a Boxoban or XSB file: `; number` lines, each followed by the rows of a board.

    Raises:
      EnvDataError: names file, line, what is there and what is allowed.
    """
    try:
        # utf-8-sig: editors on Windows put a byte order mark before the first header. Only "\n"
        # ends a line (read_text turns "\r\n" into it); splitlines would also split at form feeds.
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EnvDataError(f"env.options.levels: {path} cannot be read: {error}") from error
    levels: list[Level] = []
    rows: list[str] = []
    header = first_row = 0
    ended = False  # a blank line ends a board; a row after it would move the rows below it up
    for number, line in enumerate([*lines, ";"], start=1):
        if line.startswith(";"):
            if header:
                levels.append(_level(path, header, first_row, rows))
            header, rows, ended = number, [], False
        elif not line or line.isspace():
            ended = bool(rows)
        elif not header:
            raise EnvDataError(f"{path}, line {number}: {line!r} before the first '; number' line")
        elif ended:
            raise EnvDataError(
                f"{path}, line {number}: {line!r} after a blank line; rows of a board follow each"
                " other, and a new board begins with a '; number' line"
            )
        else:
            for column, character in enumerate(line, start=1):
                if character not in _XSB:
                    raise EnvDataError(
                        f"{path}, line {number}, column {column}: {character!r} is no cell; allowed"
                        f" are {' '.join(repr(c) for c in _XSB)}"
                    )
            first_row = first_row if rows else number
            rows.append(line)
    if not levels:
        raise EnvDataError(f"{path}: no level; expected '; number' lines, each before a board")
    return levels


def _level(path: str | Path, header: int, first_row: int, rows: list[str]) -> Level:
    where = f"{path}, level at line {header}"
    if len(rows) < 3:
        raise EnvDataError(f"{where}: {len(rows)} rows; a board has at least 3")
    width = max(len(row) for row in rows)
    # XSB files leave out blanks at the end of a row, so short rows are filled up; one that lost a
    # wall is found below, because the player could leave the board there.
    cells = {
        (r, c): _XSB[character]
        for r, row in enumerate(rows)
        for c, character in enumerate(row.ljust(width))
    }
    walls, targets, boxes, players = (
        frozenset(cell for cell, kinds in cells.items() if kinds[i]) for i in range(4)
    )
    if len(players) != 1:
        raise EnvDataError(f"{where}: {len(players)} players ('@' or '+'); exactly 1 is allowed")
    if len(boxes) != len(targets) or not boxes:
        raise EnvDataError(
            f"{where}: {len(boxes)} boxes and {len(targets)} targets; as many of each, at least 1"
        )
    if boxes == targets:
        raise EnvDataError(f"{where}: every box is on a target already; at least 1 must be off")
    level = Level(len(rows), width, walls, targets, boxes, next(iter(players)))
    for row, column in sorted(_reachable(level.player, walls, level)):
        if row in (0, level.rows - 1) or column in (0, width - 1):
            raise EnvDataError(
                f"{path}, line {first_row + row}, column {column + 1}: the board is open to the"
                f" outside here (row of {len(rows[row])} of {width} cells); the player's area must"
                " be walled in"
            )
    return level


def _reachable(start: Cell, blocked: frozenset[Cell], level: Level) -> set[Cell]:
    """Cells the player can walk to."""
    seen, stack = {start}, [start]
    while stack:
        row, column = stack.pop()
        for dr, dc in MOVES.values():
            cell = (row + dr, column + dc)
            inside = 0 <= cell[0] < level.rows and 0 <= cell[1] < level.columns
            if inside and cell not in seen and cell not in blocked:
                seen.add(cell)
                stack.append(cell)
    return seen


# -- generator -------------------------------------------------------------------------------------
def _draw_room(height: int, width: int, rng: random.Random) -> frozenset[Cell]:
    """Floor cells, by a random walk that carves small patterns (gym_sokoban/envs/room_utils.py)."""
    patterns = (
        ((0, -1), (0, 0), (0, 1)),
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 0), (1, 0), (0, 1)),
        ((0, 0), (-1, 0), (0, -1)),
        ((0, 0), (0, 1), (1, 0), (1, 1)),
    )
    directions = list(MOVES.values())
    row, column = rng.randrange(1, height - 1), rng.randrange(1, width - 1)
    direction = directions[rng.randrange(4)]
    floor: set[Cell] = set()
    for _ in range(int(1.7 * (height + width))):
        if rng.random() < 0.35:
            direction = directions[rng.randrange(4)]
        row = min(max(row + direction[0], 1), height - 2)
        column = min(max(column + direction[1], 1), width - 2)
        for dr, dc in patterns[rng.randrange(len(patterns))]:
            cell = (row + dr, column + dc)
            if 1 <= cell[0] <= height - 2 and 1 <= cell[1] <= width - 2:
                floor.add(cell)
    return frozenset(floor)


def _draw_level(height: int, width: int, num_boxes: int, pulls: int, rng) -> Level | None:
    """A level by reverse play: boxes on targets, pulled away by a random walk of the player."""
    floor = sorted(_draw_room(height, width, rng))
    if len(floor) < 2 * num_boxes + 2:
        return None
    # Own draw: the values of random.sample for a seed may differ between Python versions.
    cells = [floor.pop(rng.randrange(len(floor))) for _ in range(num_boxes + 1)]
    targets, player = frozenset(cells[:-1]), cells[-1]
    boxes, open_cells = set(targets), {*floor, *cells}
    moved = 0
    for _ in range(pulls * 8):
        dr, dc = list(MOVES.values())[rng.randrange(4)]
        step = (player[0] + dr, player[1] + dc)
        behind = (player[0] - dr, player[1] - dc)
        if step not in open_cells or step in boxes:
            continue
        if behind in boxes and rng.random() < 0.7:
            boxes.remove(behind)
            boxes.add(player)
            moved += 1
        player = step
        if moved >= pulls and not boxes & targets:
            break
    if boxes & targets:
        return None  # every box must need a push
    walls = frozenset(
        (r, c) for r in range(height) for c in range(width) if (r, c) not in open_cells
    )
    return Level(height, width, walls, targets, frozenset(boxes), player)


def canonical_level(level: Level) -> str:
    """The same text for levels that are the same puzzle.

    These are turned or mirrored boards, boards shifted inside the walls, and boards whose player
    starts elsewhere in the same area (the pushes that solve them are the same).
    """
    area = _reachable(level.player, level.walls | level.boxes, level)
    floor = _reachable(level.player, level.walls, level)
    texts = []
    for flip_rows in (1, -1):
        for flip_columns in (1, -1):
            for first in (0, 1):
                mapped = {
                    cell: (flip_rows * cell[first], flip_columns * cell[1 - first])
                    for cell in floor
                }
                top = min(r for r, _ in mapped.values())
                left = min(c for _, c in mapped.values())
                kinds = sorted(
                    (r - top, c - left, cell in level.targets, cell in level.boxes, cell in area)
                    for cell, (r, c) in mapped.items()
                )
                texts.append(";".join(",".join(str(int(n)) for n in kind) for kind in kinds))
    return min(texts)


def level_split(level: Level) -> str:
    """The split a generated level belongs to, by its content, so that no puzzle is in two."""
    seed = stable_seed("sokoban-split", canonical_level(level))
    return ("test", "valid", "train", "train")[seed % 4]


@functools.lru_cache(maxsize=8192)
def make_level(task_id: str, horizon: int) -> Level:
    """The generated level of `split/sokoban-WxH-B/number`: solvable within `horizon` moves.

    The horizon only rejects levels: a task is the same level under every horizon it fits in.
    """
    split, family, _ = task_id.split("/")
    _, size, boxes = family.split("-")
    width, height = (int(x) for x in size.split("x"))
    for attempt in range(100_000):
        rng = random.Random(stable_seed("sokoban", task_id, attempt))
        level = _draw_level(height, width, int(boxes), 2 + 2 * int(boxes), rng)
        if level is None or level_split(level) != split:
            continue
        plan = solve_level(level, level.boxes, level.player, max_nodes=20_000)
        if plan is not None and len(plan) <= horizon:
            return level
    raise EnvDataError(
        f"sokoban {family}: no level solvable within env.horizon = {horizon} steps was found; raise"
        " the horizon or use fewer boxes"
    )


# -- rules -----------------------------------------------------------------------------------------
def render(level: Level, boxes: frozenset[Cell], player: Cell) -> str:
    """verl-agent's text grid: cells as ` # \\t`, rows joined by newlines."""
    lines = []
    for r in range(level.rows):
        cells = []
        for c in range(level.columns):
            cell = (r, c)
            target = cell in level.targets
            if cell == player:
                cells.append("S" if target else "P")
            elif cell in boxes:
                cells.append("√" if target else "X")
            elif cell in level.walls:
                cells.append("#")
            else:
                cells.append("O" if target else "_")
        lines.append("".join(f" {symbol} \t" for symbol in cells))
    return "\n".join(lines)


def move(
    level: Level, boxes: frozenset[Cell], player: Cell, direction: Cell
) -> tuple[frozenset[Cell], Cell]:
    """One move; unchanged when a wall or a second box is in the way."""
    ahead = (player[0] + direction[0], player[1] + direction[1])
    if ahead in level.walls:
        return boxes, player
    if ahead in boxes:
        beyond = (ahead[0] + direction[0], ahead[1] + direction[1])
        if beyond in level.walls or beyond in boxes:
            return boxes, player
        return (boxes - {ahead}) | {beyond}, ahead
    return boxes, ahead


def _file_split(path: Path) -> str:
    """The split a level file belongs to: said by its directory, else by a word of its name."""
    for name in (path.parent.name, path.stem):
        said = [split for split in Sokoban.splits if split in re.split(r"[^a-z]+", name.lower())]
        if len(said) == 1:
            return said[0]
    return "test"


class Sokoban(Environment):
    """Sokoban; see the module docstring.

    Args:
      horizon: steps per episode (verl-agent: 15).
      size: (width, height) of generated levels, walls included.
      num_boxes: boxes of generated levels.
      levels: level files; when given, their levels are the tasks instead of generated ones. A file
        belongs to one split: the one its directory or name says (Boxoban's `medium/train/000.txt`,
        `unfiltered_test_000.txt`), "test" when neither says one. So no level is in two splits.

    Raises:
      EnvDataError: a value is out of range or a file is broken.
    """

    name = "sokoban"
    description = _INSTRUCTIONS

    def __init__(
        self,
        horizon: int = 15,
        size: tuple[int, int] = (6, 6),
        num_boxes: int = 1,
        levels: Sequence[str] | None = None,
    ):
        super().__init__(horizon)
        size = tuple(size) if isinstance(size, Sequence) else (size,)
        if len(size) != 2 or not all(type(s) is int and 4 <= s <= 20 for s in size):
            raise EnvDataError(
                f"env.options.size = {size!r}: must be (width, height), each 4 to 20"
            )
        if type(num_boxes) is not int or not 1 <= num_boxes <= 8:
            raise EnvDataError(f"env.options.num_boxes = {num_boxes!r}: must be 1 to 8")
        if isinstance(levels, str):
            raise EnvDataError(
                f"env.options.levels = {levels!r}: must be a list of paths, not one path"
            )
        self._family = f"sokoban-{size[0]}x{size[1]}-{num_boxes}"
        self._files: dict[tuple[str, str], list[Level]] | None = None
        if levels:
            self._files = {}
            for path in levels:
                key = (_file_split(Path(path)), Path(path).stem)
                if key in self._files:
                    raise EnvDataError(
                        f"env.options.levels: {path}: a second {key[0]} file named {key[1]}; task ids are"
                        " split/name/number, so names must differ"
                    )
                self._files[key] = parse_levels(path)
            self.splits = tuple(s for s in self.splits if any(s == k[0] for k in self._files))

    def _list_tasks(self, split: str) -> Sequence[Task]:
        if self._files is None:
            return [
                Task(f"{split}/{self._family}/{number:04d}", self._family, split)
                for number in range(_TASKS[split])
            ]
        return [
            Task(f"{split}/{stem}/{number:04d}", stem, split)
            for (file_split, stem), levels in self._files.items()
            if file_split == split
            for number in range(len(levels))
        ]

    def _level(self, task_id: str) -> Level:
        parts = task_id.split("/")
        if len(parts) == 3 and parts[2].isascii() and parts[2].isdigit():
            number = int(parts[2][:9])
            if parts[2] == f"{number:04d}":
                if self._files is not None:
                    levels = self._files.get((parts[0], parts[1]), [])
                    if number < len(levels):
                        return levels[number]
                elif parts[1] == self._family and number < _TASKS.get(parts[0], 0):
                    return make_level(task_id, self.horizon)
        raise EnvDataError(f"sokoban task {task_id!r}: not in any split of this environment")

    def _reset(self, task_id: str) -> tuple[State, str]:
        level = self._level(task_id)
        state = SokobanState(task_id=task_id, boxes=level.boxes, player=level.player)
        return state, f"{_INSTRUCTIONS}\n{render(level, level.boxes, level.player)}"

    def _step(self, state: SokobanState, action: str) -> tuple[State, StepResult]:
        level = self._level(state.task_id)
        direction = MOVES.get(action.strip().lower())
        boxes, player = state.boxes, state.player
        if direction is not None:
            boxes, player = move(level, boxes, player, direction)
        on_before, on_after = (len(b & level.targets) for b in (state.boxes, boxes))
        success = on_after == len(boxes)
        reward = -0.1 + (on_after - on_before) + (10.0 if success else 0.0)
        new = dataclasses.replace(state, boxes=boxes, player=player)
        info = {"valid": direction is not None}
        return new, StepResult(render(level, boxes, player), reward, success, success, info)

    def actions(self, state: SokobanState) -> tuple[str, ...]:
        """The four directions; against a wall they are understood, and do nothing."""
        return tuple(MOVES)

    def solve(self, state: SokobanState, max_nodes: int = 200_000) -> list[str] | None:
        """A plan within the steps left, or None (also when `max_nodes` are not enough)."""
        level = self._level(state.task_id)
        plan = solve_level(level, state.boxes, state.player, max_nodes)
        return plan if plan is not None and len(plan) <= self.horizon - state.num_steps else None


# -- solver ----------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=4096)
def _push_distances(level: Level) -> dict[Cell, int]:
    """Least pushes that bring a lone box from a cell to its nearest target; absent: it never gets
    there (corners and other dead squares)."""
    distance = dict.fromkeys(level.targets, 0)
    frontier = list(level.targets)
    while frontier:
        ahead = []
        for row, column in frontier:
            for dr, dc in MOVES.values():
                box, player = (row - dr, column - dc), (row - 2 * dr, column - 2 * dc)
                free = box not in level.walls and player not in level.walls
                inside = 0 <= player[0] < level.rows and 0 <= player[1] < level.columns
                if free and inside and box not in distance:
                    distance[box] = distance[(row, column)] + 1
                    ahead.append(box)
        frontier = ahead
    return distance


def _pushes(
    level: Level, boxes: frozenset[Cell], player: Cell
) -> Iterator[tuple[list[str], frozenset[Cell], Cell, Cell]]:
    """All pushes the player can walk to: (moves, new boxes, new player cell, box's new cell)."""
    names = list(MOVES.items())
    came: dict[Cell, tuple[Cell, str] | None] = {player: None}
    order = [player]
    for cell in order:  # breadth-first: the walks are shortest
        for name, (dr, dc) in names:
            ahead = (cell[0] + dr, cell[1] + dc)
            if ahead in level.walls or ahead in came:
                continue
            if ahead in boxes:
                beyond = (ahead[0] + dr, ahead[1] + dc)
                if beyond in level.walls or beyond in boxes:
                    continue
                walk, at = [name], cell
                while came[at] is not None:
                    at, step = came[at]
                    walk.append(step)
                yield walk[::-1], (boxes - {ahead}) | {beyond}, ahead, beyond
            else:
                came[ahead] = (cell, name)
                order.append(ahead)


def solve_level(
    level: Level, boxes: frozenset[Cell], player: Cell, max_nodes: int
) -> list[str] | None:
    """A* over pushes, cost in moves; the plan is shortest in moves.

    Args:
      level, boxes, player: the position.
      max_nodes: positions expanded before giving up.

    Returns:
      Moves, or None when there is no plan or the limit was reached.
    """
    distance = _push_distances(level)

    def bound(position: frozenset[Cell]) -> int | None:
        total = 0
        for box in position:
            if box not in distance:
                return None
            total += distance[box]
        return total

    start = bound(boxes)
    if start is None:
        return None
    best = {(boxes, player): 0}
    came: dict[tuple, tuple[tuple, list[str]]] = {}
    heap = [(start, 0, 0, (boxes, player))]
    tie = 0
    expanded = 0
    while heap:
        _, _, cost, node = heapq.heappop(heap)
        if cost > best[node]:
            continue
        if node[0] == level.targets:
            plan: list[str] = []
            while node in came:
                node, walk = came[node]
                plan = walk + plan
            return plan
        expanded += 1
        if expanded > max_nodes:
            return None
        for walk, new_boxes, new_player, _ in _pushes(level, *node):
            estimate = bound(new_boxes)
            if estimate is None:
                continue
            successor, new_cost = (new_boxes, new_player), cost + len(walk)
            if new_cost < best.get(successor, 1 << 30):
                best[successor] = new_cost
                came[successor] = (node, walk)
                tie += 1
                heapq.heappush(heap, (new_cost + estimate, -tie, new_cost, successor))
    return None
