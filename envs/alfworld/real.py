"""`alfworld_real`: the same tasks, played by the real ALFWorld package (extra `alfworld`).

The package keeps its state in a C library, which numbers the states it has seen. A state here is the
task and the commands so far. If this process has been in that position, its number and the stored
facts restore it. Otherwise reset and replay do, and the result is compared with the recorded one.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from typing import Any

from envs.alfworld.environment import Alfworld, AlfworldOptions
from envs.base import EnvDataError, State, StepResult

_MAX_LOADED = 4  # games in memory, since they are large
_MAX_KEPT = 512  # positions kept per game; others are replayed from the longest kept prefix
# The parts of textworld.logic.State, which the library's number does not cover.
_FACTS = ("_facts", "_vars_by_name", "_vars_by_type", "_var_counts")


@dataclasses.dataclass(frozen=True)
class RealState(State):
    """The task and the commands that led here.

    Attributes:
      commands: commands since the beginning of the episode.
      observation: the answer to the last one, with which a replay is compared.
    """

    commands: tuple[str, ...] = ()
    observation: str = ""


class AlfworldReal(Alfworld):
    """ALFWorld through textworld and alfworld; tasks, options and errors as in `Alfworld`.

    Raises:
      EnvDataError: the packages are not installed, or a replay was answered differently.
    """

    name = "alfworld_real"
    packages = ("alfworld", "textworld")
    player = ""  # Alfworld's player reads the state of our own engine

    def __init__(self, horizon: int | None = None, options: AlfworldOptions | None = None):
        super().__init__(horizon, options)
        try:
            import alfworld.agents.environment.alfred_tw_env  # noqa: F401
            import fast_downward  # noqa: F401
        except ImportError as error:
            raise EnvDataError(
                f"env.name = 'alfworld_real': {error}; `pip install -e '.[alfworld]'` brings it"
            ) from None
        self._loaded: collections.OrderedDict[str, _Loaded] = collections.OrderedDict()

    def _reset(self, task_id: str) -> tuple[RealState, str]:
        observation = self._at(RealState(task_id)).feedback
        return RealState(task_id, observation=observation), observation

    def _step(self, state: RealState, action: str) -> tuple[RealState, StepResult]:
        before = self._at(state)
        valid = action.strip() in before["_valid_commands"]
        seen, reward, won = self._loaded[state.task_id].play(state.commands, action)
        new = dataclasses.replace(
            state, commands=(*state.commands, action), observation=seen.feedback
        )
        return new, StepResult(seen.feedback, float(reward), won, won, {"valid": valid})

    def actions(self, state: RealState) -> tuple[str, ...]:
        return tuple(self._at(state)["admissible_commands"])

    def solve(self, state: RealState) -> list[str] | None:
        """The native engine's plan for the same game."""
        game = self.game(state.task_id)
        position = game.start
        for command in state.commands:
            position, _, _ = game.play(position, command)
        return game.plan(position.facts, self.horizon - state.num_steps)

    def close(self) -> None:
        for loaded in self._loaded.values():
            loaded.chain.downward_lib.cleanup()
        self._loaded.clear()

    def _at(self, state: RealState) -> Any:
        """Brings the package to `state`; returns its GameState."""
        loaded = self._loaded.get(state.task_id)
        if loaded is None:
            # The package trusts its files and never returns from a grammar without end. Ours checks.
            _ = self.game(state.task_id).commands
            full = len(self._loaded) >= _MAX_LOADED
            chain = self._loaded.popitem(last=False)[1].chain if full else None
            loaded = self._loaded[state.task_id] = _Loaded(self.game_data(state.task_id), chain)
        self._loaded.move_to_end(state.task_id)
        seen = loaded.restore(state.commands)
        if state.observation and seen.feedback != state.observation:
            raise EnvDataError(
                f"alfworld_real task {state.task_id!r}: replaying {len(state.commands)} commands ended"
                f" with {seen.feedback!r}, but {state.observation!r} had been seen"
            )
        return seen


class _Loaded:
    """One game in the package, with its last _MAX_KEPT positions.

    Args:
      data: the game.
      chain: the PddlEnv of a game that is no longer needed, which is reused. Each has its own copy of
        a C++ library, and unloading one makes the process crash at exit.
    """

    def __init__(self, data: dict, chain: Any = None):
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs import PddlEnv

        argv = list(sys.argv)  # fast_downward overwrites it
        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        self.chain = PddlEnv(infos) if chain is None else chain
        # For games without ALFRED's ids, the demangler would end every name with a blank. No command
        # could contain such a name, since commands are stripped.
        plain = "_bar_" not in data["pddl_problem"]
        self._env = self.chain if plain else AlfredDemangler(self.chain, shuffle=False)
        self._env.load(data)
        self._env.reset()
        sys.argv[:] = argv
        self._start = self._snapshot()
        # commands -> snapshot, the last used one at the end.
        self._kept: collections.OrderedDict[tuple[str, ...], tuple] = collections.OrderedDict()

    def restore(self, commands: tuple[str, ...]) -> Any:
        """Goes to the position after `commands`; returns the package's GameState there."""
        if commands and commands not in self._kept:
            self.restore(commands[:-1])
            self._env.step(commands[-1])
            self._kept[commands] = self._snapshot()
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        if commands:
            self._kept.move_to_end(commands)
        number, facts, operators, seen = self._kept[commands] if commands else self._start
        self.chain.downward_lib.set_state_id(number)
        for name, value in zip(_FACTS, facts, strict=True):
            setattr(self.chain._pddl_state, name, _copied(value))
        self.chain._pddl_state._operators = operators
        self.chain.state = seen
        return seen

    def play(self, commands: tuple[str, ...], action: str) -> tuple[Any, int, bool]:
        """(GameState, score, won) after one more command."""
        seen = self.restore((*commands, action))
        return seen, int(seen["score"]), bool(seen["won"])

    def _snapshot(self) -> tuple:
        state = self.chain._pddl_state
        facts = tuple(_copied(getattr(state, name)) for name in _FACTS)
        number = self.chain.downward_lib.get_state_id()
        return number, facts, state._operators, self.chain.state


def _copied(table: dict) -> dict:
    """A copy of a dictionary, with copies of the sets in it."""
    new = table.copy()
    for key, value in table.items():
        if isinstance(value, set):
            new[key] = value.copy()
    return new
