"""Sokoban levels: boards as values, level files, and which puzzles are the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from envs.base import EnvDataError, stable_seed

Cell = tuple[int, int]  # (row, column)
MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
# Cells of XSB files -> (wall, target, box, player).
_XSB = {
    "#": (True, False, False, False),
    " ": (False, False, False, False),
    "-": (False, False, False, False),
    "_": (False, False, False, False),
    ".": (False, True, False, False),
    "$": (False, False, True, False),
    "*": (False, True, True, False),
    "@": (False, False, False, True),
    "+": (False, True, False, True),
}


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


# -- the same board --------------------------------------------------------------------------------
def canonical_board(level: Level) -> str:
    """The same text for levels on the same board: turned, mirrored or shifted floor and targets.

    Where boxes and player start does not matter, so two levels with different texts are different
    puzzles, and so are all levels on their boards.
    """
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
                    (r - top, c - left, cell in level.targets) for cell, (r, c) in mapped.items()
                )
                texts.append(";".join(f"{r},{c},{int(target)}" for r, c, target in kinds))
    return min(texts)


def level_split(level: Level) -> str:
    """The split a generated level belongs to, by its board, so that no board is in two."""
    seed = stable_seed("sokoban-split", canonical_board(level))
    return ("test", "valid", "train", "train")[seed % 4]
