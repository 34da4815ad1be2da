"""The player of one-box Sokoban levels.

It knows a shortest plan from its position. Its bad habits are those of a player who goes for the box
without looking ahead.

    habit    unaware player                                    experience that mends it
    side     pushes the box from the side that is nearest,     push the box {direction} first.
             and goes on so
    on       stops after a push, as if that were enough        push it on.
    turn     goes on pushing the box the way it has begun      push it {direction} and then {next}.
"""

from __future__ import annotations

import dataclasses
import functools
import random

from envs.base import EnvDataError, Environment
from envs.player import Player
from envs.sokoban.environment import STILL, SokobanState, move
from envs.sokoban.levels import MOVES, Cell, Level
from envs.sokoban.solver import solve_level

_MAX_NODES = 20_000


@dataclasses.dataclass
class _Memory:
    """What happened to the box.

    Attributes:
      box: its cell.
      pushed: the direction of the last push, "" before the first.
      astray: the first push was not the planned one.
    """

    box: Cell
    pushed: str = ""
    astray: bool = False


class SokobanPlayer(Player):
    """The player of `sokoban` with one box; see the module docstring.

    Raises:
      EnvDataError: on first use, when a level has several boxes.
    """

    habits = ("side", "on", "turn")
    units = r" [#_OX√PS] \t"

    def __init__(self, env: Environment):
        super().__init__(env)
        self._plan = functools.lru_cache(maxsize=65536)(self._solve)

    def _solve(self, level: Level, box: Cell, player: Cell) -> tuple[str, ...]:
        plan = solve_level(level, frozenset({box}), player, _MAX_NODES)
        return () if plan is None else tuple(plan)

    def start(self, task_id: str, observation: str) -> _Memory:
        boxes = self.env.level(task_id).boxes
        if len(boxes) != 1:
            raise EnvDataError(
                f"sokoban task {task_id!r}: has {len(boxes)} boxes; the scripted player knows one"
            )
        return _Memory(*boxes)

    def update(self, memory: _Memory, action: str, state: SokobanState, observation: str) -> None:
        (box,) = state.boxes
        if box == memory.box:
            return
        if not memory.pushed:
            memory.astray = action != self._directions(state.task_id)[0]
        memory.box, memory.pushed = box, action

    def _directions(self, task_id: str) -> tuple[str, str]:
        """Directions of the plan's first push and of the first that differs from it ("" if none)."""
        level = self.env.level(task_id)
        pushes = _pushes(level, self._plan(level, *level.boxes, level.player))
        return pushes[0], next((push for push in pushes if push != pushes[0]), "")

    def decide(
        self, state: SokobanState, memory: _Memory, aware: frozenset[str]
    ) -> tuple[str, str | None]:
        level = self.env.level(state.task_id)
        player, box = state.player, memory.box
        if memory.astray and "side" not in aware:
            return memory.pushed, "side"  # goes on in the same direction
        plan = self._plan(level, box, player)
        if not plan:
            return memory.pushed or STILL, None  # nothing helps any more
        ideal = plan[0]
        behind = memory.pushed and _next_to(player, memory.pushed) == box
        if behind and ideal != memory.pushed:
            return (ideal if "turn" in aware else memory.pushed), "turn"
        if behind:
            return (ideal if "on" in aware else STILL), "on"
        if not memory.pushed:
            hasty = self._nearest(level, box, player)
            if hasty and hasty[0] != ideal:
                return (ideal if "side" in aware else hasty[0]), "side"
        return ideal, None

    def _nearest(self, level: Level, box: Cell, player: Cell) -> tuple[str, ...]:
        """The moves to the nearest cell from which the box can be pushed, and the push."""
        best: tuple[str, ...] = ()
        came: dict[Cell, tuple[str, ...]] = {player: ()}
        queue = [player]
        for cell in queue:
            for name, step in MOVES.items():
                ahead = (cell[0] + step[0], cell[1] + step[1])
                if ahead == box:
                    boxes, _ = move(level, frozenset({box}), cell, step)
                    if box not in boxes and (not best or len(came[cell]) + 1 < len(best)):
                        best = (*came[cell], name)
                elif ahead not in level.walls and ahead not in came:
                    came[ahead] = (*came[cell], name)
                    queue.append(ahead)
        return best

    def advice(self, habit: str, task_id: str) -> str:
        first, second = self._directions(task_id)
        return {
            "on": "push it on.",
            "side": f"push the box {first} first.",
            "turn": f"push it {first} and then {second}." if second else "push it another way.",
        }[habit]

    def slip(self, state: SokobanState, rng: random.Random) -> str | None:
        """A step that moves no box."""
        level = self.env.level(state.task_id)
        free = [
            name
            for name in MOVES
            if (ahead := _next_to(state.player, name)) not in level.walls
            and ahead not in state.boxes
        ]
        return rng.choice(free) if free else None


def _next_to(cell: Cell, name: str) -> Cell:
    return cell[0] + MOVES[name][0], cell[1] + MOVES[name][1]


def _pushes(level: Level, plan: tuple[str, ...]) -> list[str]:
    """The directions of a plan's pushes from the start."""
    boxes, player, pushes = level.boxes, level.player, []
    for name in plan:
        moved, player = move(level, boxes, player, MOVES[name])
        if moved != boxes:
            pushes.append(name)
        boxes = moved
    return pushes
