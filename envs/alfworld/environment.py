"""`alfworld`: the official ALFWorld games, played by a pure-Python engine with states as values.

Games come from an ALFWORLD_DATA directory, from single game files, or, by default, from a seeded
generator that writes the same format. Text, admissible commands, reward and success are those of
alfworld 0.4.2 on textworld 1.7, without its shuffling of object numbers
(alfworld/agents/environment/alfred_tw_env.py). The reward is 1 at the goal, else 0.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from envs import files
from envs.alfworld import games as generator
from envs.alfworld.engine import Game, Position, load_game, read_game
from envs.base import (
    EnvDataError,
    Environment,
    FilePath,
    Form,
    Options,
    State,
    StepResult,
    Task,
)

OFFICIAL_COUNTS = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
_SOURCE = "the official files come with `alfworld-download` (github.com/alfworld/alfworld)"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class AlfworldState(State):
    """A position in the task's game.

    Attributes:
      facts, denied: see engine.Position.
    """

    facts: int = 0
    denied: int = 0


@dataclasses.dataclass(frozen=True)
class AlfworldOptions(Options):
    """Options of `alfworld` and `alfworld_real`.

    Attributes:
      data: ALFWORLD_DATA directory, with json_2.1.1/{train,valid_seen,valid_unseen}; "": none.
      games: game.tw-pddl files, or their folders, that form one split "games"; (): none.
      max_receptacles: generated games in rooms with more receptacles are left out; 0 keeps all.
    """

    data: FilePath = ""
    games: tuple[FilePath, ...] = ()
    max_receptacles: int = 0

    def check(self) -> None:
        most, fewest = self.max_receptacles, generator.fewest_receptacles()
        self.require(
            "max_receptacles",
            most == 0 or most >= fewest,
            f"0 (all rooms) or at least {fewest}, as many as the smallest room has",
        )
        if most and (self.data or self.games):
            raise EnvDataError(
                f"env.options.max_receptacles = {most!r}: is for generated games only"
            )
        if self.data and self.games:
            raise EnvDataError(
                f"env.options.data = {self.data!r}: cannot go with env.options.games"
            )


class Alfworld(Environment):
    """ALFWorld.

    Raises:
      EnvDataError: a directory or file is missing or wrong.
    """

    name = "alfworld"
    horizon = 50
    Options = AlfworldOptions
    form = Form("alfworld", latin_only=True)
    player = "envs.alfworld.player:AlfworldPlayer"
    description = (
        "You are in a room of a house and act on it by text commands: go to, open, close, take from,"
        " move to (put in/on in older games), use, heat with, cool with, clean with, slice with,"
        " examine, inventory, look. You can hold one object. Closed receptacles must be opened before"
        " you can see or reach what is inside. A command that cannot be carried out is answered with"
        " 'Nothing happens.'"
    )
    splits = tuple(generator.GAMES_PER_FAMILY)
    states_goal = True

    def __init__(self, horizon: int | None = None, options: AlfworldOptions | None = None):
        super().__init__(horizon, options)
        data, games = self.options.data, self.options.games
        self._most = self.options.max_receptacles
        self._data = Path(data) / "json_2.1.1" if data else None
        self._files: dict[str, Path] = {}  # task id -> game file
        if self._data is not None and not self._data.is_dir():
            raise EnvDataError(f"env.options.data = {data!r}: has no json_2.1.1 folder; {_SOURCE}")
        if data:
            self.splits = tuple(OFFICIAL_COUNTS)
        if games:
            self.splits = ("games",)
            self._tasks["games"] = tuple(self._given(Path(path)) for path in games)

    # -- tasks -------------------------------------------------------------------------------------
    def _given(self, path: Path) -> Task:
        path = path / "game.tw-pddl" if path.is_dir() else path
        if not path.exists():
            raise EnvDataError(f"env.options.games: {path} is missing; {_SOURCE}")
        files.check_regular(path)
        folder = path.resolve().parent
        task_id = f"games/{folder.parent.name}/{folder.name}"
        if task_id in self._files:
            raise EnvDataError(
                f"env.options.games: {path} has the same task id as another: {task_id}"
            )
        self._files[task_id] = path
        trajectory = folder / "traj_data.json"
        family = _task_type(trajectory) if trajectory.is_file() else "game"
        return Task(task_id, family, "games")

    def _list_tasks(self, split: str) -> Sequence[Task]:
        if self._data is None:
            tasks = [
                Task(f"{split}/{family}/{number:04d}", family, split)
                for number in range(generator.GAMES_PER_FAMILY[split])
                for family in generator.FAMILIES
            ]
            if not self._most:
                return tasks
            return [t for t in tasks if len(_generated(t.task_id).receptacles) <= self._most]
        root = self._data / split
        if not root.is_dir():
            raise EnvDataError(f"{root} is missing; {_SOURCE}")
        tasks = []
        for trajectory in sorted(root.rglob("traj_data.json")):
            family = self._playable(trajectory)
            if family:
                task_id = f"{split}/{trajectory.parent.relative_to(root).as_posix()}"
                self._files[task_id] = trajectory.with_name("game.tw-pddl")
                tasks.append(Task(task_id, family, split))
        if not tasks:
            raise EnvDataError(
                f"{root}: has no traj_data.json with a solvable game.tw-pddl beside it; {_SOURCE}"
            )
        if len(tasks) != OFFICIAL_COUNTS[split]:
            _log.warning(
                "%s has %d games, the official split %d: the numbers are not comparable",
                root, len(tasks), OFFICIAL_COUNTS[split],
            )  # fmt: skip
        return tasks

    def _playable(self, trajectory: Path) -> str:
        """The task type, or "" for a game that AlfredTWEnv.collect_game_files skips."""
        folder = str(trajectory.parent.relative_to(self._data))
        game = trajectory.with_name("game.tw-pddl")
        if "movable" in folder or "Sliced" in folder or not game.is_file():
            return ""
        family = _task_type(trajectory)
        if family not in generator.FAMILIES or not read_game(game).get("solvable"):
            return ""
        return family

    def _source(self, task_id: str) -> str:
        """The file of a task; "" if it is generated.

        Raises:
          EnvDataError: the task is unknown.
        """
        split = task_id.partition("/")[0]
        if split not in self.splits:
            raise EnvDataError(
                f"{self.name} task {task_id!r}: must begin with one of {self.splits}"
            )
        if self._data is None and split != "games":
            _generated(task_id)
            return ""
        if task_id not in self._files:
            self.list_tasks(split)
        if task_id not in self._files:
            raise EnvDataError(f"{self.name} task {task_id!r}: is not in split {split}")
        return str(self._files[task_id])

    def spec(self, task_id: str) -> generator.GameSpec:
        """What a generated game was made from; EnvDataError for other games."""
        if self._source(task_id):
            raise EnvDataError(f"{self.name} task {task_id!r}: is not a generated game")
        return _generated(task_id)

    def game(self, task_id: str) -> Game:
        """The game of a task.

        Raises:
          EnvDataError: unknown task, or a file that cannot be played.
        """
        path = self._source(task_id)
        return load_game(path) if path else generated_game(task_id)

    def game_data(self, task_id: str) -> dict:
        """The JSON object of the task's game.tw-pddl."""
        path = self._source(task_id)
        return read_game(path) if path else generator.game_data(_generated(task_id))

    # -- playing -----------------------------------------------------------------------------------
    def _reset(self, task_id: str) -> tuple[AlfworldState, str]:
        game = self.game(task_id)
        return AlfworldState(task_id, facts=game.start.facts), game.intro

    def _step(self, state: AlfworldState, action: str) -> tuple[AlfworldState, StepResult]:
        game = self.game(state.task_id)
        position, feedback, valid = game.play(_position(state), action)
        won = game.won(position)
        new = dataclasses.replace(state, facts=position.facts, denied=position.denied)
        return new, StepResult(feedback, float(won), won, won, {"valid": valid})

    def actions(self, state: AlfworldState) -> tuple[str, ...]:
        return self.game(state.task_id).admissible(_position(state))

    def solve(self, state: AlfworldState) -> list[str] | None:
        steps_left = self.horizon - state.num_steps
        return self.game(state.task_id).plan(state.facts, steps_left)

    def write(self, directory: str | Path, split: str, limit: int | None = None) -> list[Path]:
        """Writes the first `limit` generated games of a split as an ALFWORLD_DATA directory.

        Raises:
          EnvDataError: this environment plays files, or a game has no plan.
        """
        if self._data is not None or "games" in self.splits:
            raise EnvDataError("alfworld: only generated games are written")
        paths = []
        for task in self.list_tasks(split)[:limit]:
            plan = self.solve(self.reset(task.task_id)[0])
            if plan is None:
                raise EnvDataError(
                    f"alfworld task {task.task_id!r}: no plan in {self.horizon} steps"
                )
            spec = _generated(task.task_id)
            trial = f"trial_T{task.task_id.rpartition('/')[2]}"
            folder = Path(directory) / "json_2.1.1" / split / spec.folder / trial
            paths.append(generator.write_game(spec, folder, plan))
        return paths


def _position(state: AlfworldState) -> Position:
    return Position(state.facts, state.denied)


@functools.lru_cache(maxsize=4096)
def _generated(task_id: str) -> generator.GameSpec:
    """The GameSpec of a generated game's id."""
    split, *rest = task_id.split("/")
    if len(rest) != 2 or rest[0] not in generator.FAMILIES:
        raise EnvDataError(
            f"alfworld task {task_id!r}: must be {split}/<{'|'.join(generator.FAMILIES)}>/0000"
        )
    family, number = rest
    count = generator.GAMES_PER_FAMILY[split]
    if not (len(number) == 4 and number.isascii() and number.isdigit() and int(number) < count):
        raise EnvDataError(f"alfworld task {task_id!r}: number must be 0000 to {count - 1:04d}")
    return generator.draw(split, family, int(number))


@functools.lru_cache(maxsize=128)
def generated_game(task_id: str) -> Game:
    """A generated game; the last 128 are kept per process."""
    return Game(generator.game_data(_generated(task_id)), f"generated game {task_id}")


def _task_type(trajectory: Path) -> str:
    data = files.read_json(trajectory)
    task_type = data.get("task_type") if isinstance(data, dict) else None
    if not isinstance(task_type, str):
        raise EnvDataError(f"{trajectory}: task_type = {task_type!r:.60}: must be a text")
    return task_type
