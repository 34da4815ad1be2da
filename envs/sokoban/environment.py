"""`sokoban`: rules and rewards of gym-sokoban, text rendering of verl-agent, states as values.

Rules and rewards follow gym_sokoban/envs/sokoban_env.py: -0.1 per step, +1 for a box pushed onto a
target, -1 for one pushed off, +10 when all are on. The episode ends when all are on, or at the horizon.
A move pushes a box that is in the way. One difference: gym-sokoban assumes that no box starts on a
target. On other boards, it rewards the first step for the boxes that do.

Replies that are not moves follow verl-agent (agent_system/environments/env_package/sokoban): they
cost -0.1 and one reply, but no environment step. See `invalid_action`.

Levels come from a seeded generator (generator.py) or from Boxoban / XSB level files (levels.py).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from envs.base import (
    EnvDataError,
    Environment,
    FilePath,
    Form,
    Options,
    State,
    StepResult,
    Task,
    one_of,
)
from envs.sokoban.generator import TASKS, make_level
from envs.sokoban.levels import MOVES, Cell, Level, parse_levels
from envs.sokoban.solver import solve_level, unsolvable_within

INVALID_ACTION = ("reply", "step", "end")
FEEDBACK = ("invalid", "blocked", "deadlock")
_SAMPLE = 40  # levels from files that are checked against the horizon
_SAMPLE_CELLS = 50_000  # search effort for each: positions times cells
STILL = "still"  # verl-agent's name for doing nothing
_INSTRUCTIONS = (
    "Symbols: # is a wall, _ floor, O a target, X a box, √ a box on a target, P is you, S is you on"
    " a target.\n"
    "Goal: every box on a target.\n"
    "Rules: you move one cell up, down, left or right. Moving into a box pushes it one cell on,"
    " unless a wall or another box is behind it. Boxes cannot be pulled, so one that is pushed into"
    " a corner stays there."
)

_warn = functools.cache(logging.getLogger(__name__).warning)  # once, not per phase of a run


@dataclasses.dataclass(frozen=True)
class SokobanState(State):
    """What changes.

    Attributes:
      num_steps: moves made (gym-sokoban's num_env_steps).
      num_replies: replies so far; more than num_steps if some were not moves.
      boxes: cells of the boxes.
      player: cell of the player.
    """

    num_replies: int = 0
    boxes: frozenset[Cell] = frozenset()
    player: Cell = (0, 0)


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
    """(boxes, player) after one move; unchanged if a wall or a second box is in the way."""
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
    """The split of a level file: named by its directory, or else by a word of its name."""
    for name in (path.parent.name, path.stem):
        said = [split for split in Sokoban.splits if split in re.split(r"[^a-z]+", name.lower())]
        if len(said) == 1:
            return said[0]
    return "test"


def cornered(level: Level, box: Cell) -> bool:
    """True if the box is lost: not on a target, with a wall above or below it and one beside it."""
    row, column = box
    vertical = {(row - 1, column), (row + 1, column)} & level.walls
    horizontal = {(row, column - 1), (row, column + 1)} & level.walls
    return box not in level.targets and bool(vertical) and bool(horizontal)


def _check_horizon(where: str, levels: Sequence[Level], moves: int) -> None:
    """Warns if levels have no solution of `moves` moves; tries a sample spread over `levels`."""
    sample = levels[:: -(-len(levels) // _SAMPLE)]
    # Fewer positions on larger boards, so that any file takes at most a second.
    lost = sum(
        unsolvable_within(level, moves, max(10, _SAMPLE_CELLS // (level.rows * level.columns)))
        for level in sample
    )
    if lost:
        _warn(
            "%s: %d of %d levels tried have no solution of %d moves (the least of env.horizon and"
            " env.options.max_replies); gym-sokoban's horizon is 120",
            where, lost, len(sample), moves,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SokobanOptions(Options):
    """Options of `sokoban`.

    Attributes:
      size: (width, height) of generated levels, walls included.
      num_boxes: boxes of generated levels.
      min_moves: generated levels that need fewer moves are left out; 0 keeps all. (Half of the 6x6
        levels with one box need at most four.)
      levels: level files, whose levels replace the generated ones. Most need a longer horizon
        (gym-sokoban: 120): a warning says how many of a sample do. A file belongs to one split, so
        no level is in two: the split that its directory or name contains (Boxoban's
        `medium/train/000.txt`, `unfiltered_test_000.txt`), or else "test".
      invalid_action: the cost of a reply that is neither a move nor "still", in addition to -0.1:
        "reply", one reply and no step (verl-agent); "step", a step as well; "end", the episode.
        "still" costs a reply, and a step only with "step".
      max_replies: replies per episode, including moves; 0: as many as the horizon (verl-agent's
        env.max_steps bounds both). The episode ends at the first bound that it reaches.
      feedback: texts above the board, any of "invalid" (the reply was not a move), "blocked" (a
        wall or a second box was in the way), "deadlock" (a box was pushed into a corner). (): none,
        as in the original.
    """

    size: tuple[int, int] = (6, 6)
    num_boxes: int = 1
    min_moves: int = 0
    levels: tuple[FilePath, ...] = ()
    invalid_action: str = one_of("reply", INVALID_ACTION)
    max_replies: int = 0
    feedback: tuple[str, ...] = one_of((), FEEDBACK)

    def check(self) -> None:
        fits = all(4 <= side <= 20 for side in self.size)
        self.require("size", fits, "(width, height), each 4 to 20")
        self.require("num_boxes", 1 <= self.num_boxes <= 8, "1 to 8")
        self.require("min_moves", self.min_moves >= 0, "a number of moves, or 0")
        self.require("max_replies", self.max_replies >= 0, "a number of replies, or 0")


class Sokoban(Environment):
    """Sokoban; see the module docstring.

    Raises:
      EnvDataError: min_moves is above the horizon, or a level file is broken.
    """

    name = "sokoban"
    horizon = 15  # verl-agent; gym-sokoban: 120
    Options = SokobanOptions
    form = Form("sokoban", fallback_chars=0, pool=(*MOVES, STILL))
    player = "envs.sokoban.player:SokobanPlayer"
    splits = tuple(TASKS)
    description = _INSTRUCTIONS

    def __init__(self, horizon: int | None = None, options: SokobanOptions | None = None):
        super().__init__(horizon, options)
        options = self.options
        options.require(
            "min_moves", options.min_moves <= self.horizon, f"0 to env.horizon = {self.horizon}"
        )
        self.max_replies = options.max_replies or self.horizon
        width, height = options.size
        self._family = f"sokoban-{width}x{height}-{options.num_boxes}"
        paths = options.levels
        self._files = self._read(paths) if paths else None
        if self._files is not None:
            where = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"
            listed = [level for levels in self._files.values() for level in levels]
            _check_horizon(where, listed, min(self.horizon, self.max_replies))
            self.splits = tuple(s for s in self.splits if any(s == k[0] for k in self._files))

    def _read(self, paths: Sequence[str]) -> dict[tuple[str, str], list[Level]]:
        """Levels of each file by (split, name)."""
        files: dict[tuple[str, str], list[Level]] = {}
        for path in paths:
            key = (_file_split(Path(path)), Path(path).stem)
            if key in files:
                raise EnvDataError(
                    f"env.options.levels: {path}: a second {key[0]} file named {key[1]}; task ids"
                    " are split/name/number, so names must differ"
                )
            files[key] = parse_levels(path)
        return files

    def _list_tasks(self, split: str) -> Sequence[Task]:
        if self._files is None:
            tasks = [
                Task(f"{split}/{self._family}/{number:04d}", self._family, split)
                for number in range(TASKS[split])
            ]
            if not self.options.min_moves:
                return tasks
            # A level whose solution is not found in time is not a short one.
            plans = [self.solve(self._reset(task.task_id)[0]) for task in tasks]
            return [
                task
                for task, plan in zip(tasks, plans, strict=True)
                if plan is None or len(plan) >= self.options.min_moves
            ]
        return [
            Task(f"{split}/{stem}/{number:04d}", stem, split)
            for (file_split, stem), levels in self._files.items()
            if file_split == split
            for number in range(len(levels))
        ]

    def level(self, task_id: str) -> Level:
        """The level of a task in its initial position.

        Raises:
          EnvDataError: there is no such task.
        """
        parts = task_id.split("/")
        if len(parts) == 3 and parts[2].isascii() and parts[2].isdigit():
            number = int(parts[2][:9])
            if parts[2] == f"{number:04d}":
                if self._files is not None:
                    levels = self._files.get((parts[0], parts[1]), [])
                    if number < len(levels):
                        return levels[number]
                elif parts[1] == self._family and number < TASKS.get(parts[0], 0):
                    return make_level(task_id, min(self.horizon, self.max_replies))
        raise EnvDataError(f"sokoban task {task_id!r}: not in any split of this environment")

    def _reset(self, task_id: str) -> tuple[State, str]:
        level = self.level(task_id)
        state = SokobanState(task_id=task_id, boxes=level.boxes, player=level.player)
        return state, f"{_INSTRUCTIONS}\n{render(level, level.boxes, level.player)}"

    def _step(self, state: SokobanState, action: str) -> tuple[State, StepResult]:
        level = self.level(state.task_id)
        name = action.strip().lower()
        valid = name in MOVES or name == STILL
        boxes, player = state.boxes, state.player
        if name in MOVES:
            boxes, player = move(level, boxes, player, MOVES[name])
        on_before, on_after = (len(b & level.targets) for b in (state.boxes, boxes))
        success = on_after == len(boxes)
        reward = -0.1 + (on_after - on_before) + (10.0 if success else 0.0)
        new = dataclasses.replace(
            state, boxes=boxes, player=player, num_replies=state.num_replies + 1
        )
        observation = render(level, boxes, player)
        said = self._say(level, state, new, name)
        if said:
            observation = f"{said}\n{observation}"
        done = success or (not valid and self.options.invalid_action == "end")
        info = {"valid": valid, "is_step": name in MOVES or self.options.invalid_action == "step"}
        return new, StepResult(observation, reward, done, success, info)

    def _finish(self, state: SokobanState, new_state: SokobanState, result: StepResult):
        """Unlike in other environments, a reply need not be a step. Either bound ends the episode."""
        num_steps = state.num_steps + result.info["is_step"]
        over = num_steps >= self.horizon or new_state.num_replies >= self.max_replies
        done = result.done or over
        new_state = dataclasses.replace(
            new_state, num_steps=num_steps, done=done, success=result.success
        )
        return new_state, dataclasses.replace(result, done=done)

    def _say(self, level: Level, old: SokobanState, new: SokobanState, name: str) -> str:
        """The feedback that the options ask for, "" if there is none."""
        if name not in MOVES:
            no_move = name != STILL and "invalid" in self.options.feedback
            return f"That is no move; the moves are {', '.join(MOVES)}." if no_move else ""
        if new.player == old.player:
            if "blocked" not in self.options.feedback:
                return ""
            ahead = (old.player[0] + MOVES[name][0], old.player[1] + MOVES[name][1])
            thing = "wall" if ahead in level.walls else "box that cannot be pushed"
            return f"You did not move: {name} of you is a {thing}."
        pushed = new.boxes - old.boxes
        if "deadlock" in self.options.feedback and any(cornered(level, box) for box in pushed):
            return "The box you pushed is in a corner and no target is there: it is stuck for good."
        return ""

    def actions(self, state: SokobanState) -> tuple[str, ...]:
        """The four directions; a move against a wall is understood, but has no effect."""
        return tuple(MOVES)

    def solve(self, state: SokobanState, max_nodes: int = 200_000) -> list[str] | None:
        """A plan with the fewest moves within the steps and replies left; None if there is none,
        or if it is not found within `max_nodes` positions."""
        level = self.level(state.task_id)
        left = min(self.horizon - state.num_steps, self.max_replies - state.num_replies)
        return solve_level(level, state.boxes, state.player, max_nodes, longest=left)
