"""Sokoban levels: boards as values, level files, and which boards are equivalent."""

from __future__ import annotations

import codecs
import dataclasses
import re
from pathlib import Path

from envs import files
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
_CELLS = " ".join(map(repr, _XSB))
_RUN_LENGTHS = re.compile(r"(?:[0-9]{0,2}[-#_.$*@+ ]|\|)+")
MAX_SIDE = 100  # cells of a board from a file, in each direction


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
    """The levels of a Boxoban or XSB file, in its order.

    Consecutive rows are a board. Every other line is a note and ends the board: blank lines, `; 7`,
    `Title: ...`, `Author: ...`, a `Comment:` block. Rows may be run-length encoded
    (`5#|#@$.#|5#`). The text is UTF-8, UTF-16 with a byte order mark, or Latin-1.

    Raises:
      EnvDataError: names file, line, what it has and what is allowed.
    """
    levels: list[Level] = []
    rows: list[str] = []
    first = comment = 0  # first lines of the board and of the comment; 0: not in one
    lines = _decoded(files.read_bytes(path)).split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        key = line.strip().lower()
        if key == "comment:":
            comment = number
        elif key == "comment-end:":
            comment = 0
        found = [] if comment else _rows(line, bool(rows), f"{path}, line {number}")
        if found:
            first = first if rows else number
            rows += found
        elif rows:
            levels.append(_level(f"{path}, level at line {first}", rows))
            rows = []
    if comment:
        raise EnvDataError(f"{path}, line {comment}: 'Comment:' without a line 'Comment-End:'")
    if not levels:
        raise EnvDataError(
            f"{path}: no level; a level is at least 3 rows of the cells {_CELLS}, walled in by '#'"
        )
    return levels


def _decoded(data: bytes) -> str:
    """The text with "\\n" as line break. Only notes have non-ASCII characters."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    # splitlines would also split at form feeds.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _rows(line: str, inside: bool, where: str) -> list[str]:
    """The board rows of a line: one, several separated by `|`, or none for a note.

    Args:
      line: the line.
      inside: the line before was a row, so a line that begins with a wall must be one, too.
      where: the line's name in errors.
    """
    text = line.rstrip().expandtabs()
    if set(text) <= _XSB.keys():
        # Each row of a walled board has a wall; but a box may be outside of the board.
        return [text] if "#" in text or (inside and set(text) & set(".$*@+")) else []
    if "|" in text and _RUN_LENGTHS.fullmatch(text):
        return [_expanded(row) for row in text.strip("|").split("|")]
    if inside and text.lstrip(" -_").startswith("#"):
        column, sign = next((n, c) for n, c in enumerate(text, 1) if c not in _XSB)
        raise EnvDataError(f"{where}, column {column}: {sign!r} is no cell; allowed are {_CELLS}")
    return []


def _expanded(row: str) -> str:
    """A row without run lengths."""
    return re.sub(r"([0-9]+)(.)", lambda found: int(found[1]) * found[2], row)


def _level(where: str, rows: list[str]) -> Level:
    if len(rows) < 3:
        raise EnvDataError(
            f"{where}: {len(rows)} rows; a board has at least 3, with no other line between them"
        )
    width = max(len(row) for row in rows)
    if len(rows) > MAX_SIDE or width > MAX_SIDE:
        raise EnvDataError(
            f"{where}: {len(rows)} rows of {width} cells; at most {MAX_SIDE} of each are allowed"
        )
    # XSB files omit blanks at the end of a row, so short rows are padded. A missing wall is found
    # below, because the player could leave the board there.
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
                f"{where}: row {row + 1}, column {column + 1}: the board is open to the outside"
                f" here (row of {len(rows[row])} of {width} cells); the player's area must be"
                " walled in"
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
    """The split of a generated level. Its board decides, so that no board is in two splits."""
    seed = stable_seed("sokoban-split", canonical_board(level))
    return ("test", "valid", "train", "train")[seed % 4]
