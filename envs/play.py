"""Play any environment in the terminal.

    python -m envs.play --env=sokoban --split=test --task=3
    python -m envs.play --env=sokoban --options='{"size": [7, 7], "num_boxes": 2, "horizon": 50}'
    python -m envs.play --env=household --list

Each line is an action, unless it begins with a colon: then it is a command to this program. If an
action is a program (`--env=code`), it ends with a line that is a single full stop.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import envs
from envs.base import EnvDataError, Environment, StepResult
from envs.terminal import one_line, printable

HELP = (
    "Type an action, or :actions (those that are admissible), :undo, :restart, :hint (what an expert"
    " would do), :help, :quit."
)
PROGRAM_HELP = (
    "Type a program, as many lines as it takes, and after them a line that is a full stop alone; or,"
    " in place of a program's first line, :undo, :restart, :hint (a solution, to be typed as it is"
    " shown), :help, :quit."
)
END = "."  # of a program


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise EnvDataError(message)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m envs.play", description=__doc__.splitlines()[0])
    names = f"one of {', '.join(envs.names())}, or package.module:Class"
    parser.add_argument("--env", required=True, help=names)
    parser.add_argument("--split", help="whose tasks; default: test, or the last split there is")
    parser.add_argument("--task", default="0", help="number within the split, or a task's id")
    parser.add_argument("--options", default="{}", help="the environment's options, as JSON")
    parser.add_argument("--list", action="store_true", help="print splits, sizes and hashes")
    return parser.parse_args(arguments)


def _make(flags: argparse.Namespace) -> Environment:
    try:
        options = json.loads(flags.options)
    except (ValueError, RecursionError) as error:
        raise EnvDataError(f"--options={flags.options}: not JSON: {error}") from error
    if not isinstance(options, dict):
        raise EnvDataError(
            f'--options={flags.options}: must be an object, such as {{"horizon": 9}}'
        )
    for name in ("name", "split"):  # envs.make has parameters of these names
        if name in options:
            raise EnvDataError(f"--options: {name!r} is no option of an environment")
    return envs.make(flags.env, **options)


def list_splits(env: Environment, split: str | None) -> list[str]:
    """One line for each split: name, number of tasks, hash of ids and first observations."""
    names = env.splits if split is None else (split,)
    return [
        f"{name:12} {len(env.list_tasks(name)):6} tasks   hash {env.split_hash(name)}"
        for name in names
    ]


def choose_task(env: Environment, split: str | None, task: str) -> str:
    """The id that --split and --task name.

    Raises:
      EnvDataError: no such split or task.
    """
    split = split or ("test" if "test" in env.splits else env.splits[-1])
    tasks = env.list_tasks(split)
    if task.isascii() and task.isdigit():
        number = int(task[:9])
        if number < len(tasks):
            return tasks[number].task_id
    elif any(task == known.task_id for known in tasks):
        return task
    raise EnvDataError(
        f"--task={task}: split {split!r} has the tasks 0 to {len(tasks) - 1}, or ids such as"
        f" {tasks[0].task_id}"
    )


class Game:
    """One task being played. States are values, so undo goes back to an earlier one.

    Args:
      env: the environment.
      task_id: the task.
    """

    def __init__(self, env: Environment, task_id: str):
        self.env = env
        self.start = env.reset(task_id)
        # (state, observation, total reward) after each action, newest last.
        self.track: list[tuple[Any, str, float]] = [(*self.start, 0.0)]

    @property
    def state(self) -> Any:
        return self.track[-1][0]

    @property
    def help(self) -> str:
        return PROGRAM_HELP if self.env.programs else HELP

    def show(self) -> str:
        """The current observation."""
        return self.track[-1][1]

    def answer(self, line: str) -> str:
        """Executes a line, or the lines of a program, and returns the text to show."""
        if not line.startswith(":"):
            return self._play(line)
        command = line[1:].strip().lower()
        if command == "undo":
            if len(self.track) == 1:
                return "This is the start."
            self.track.pop()
            return self.show()
        if command == "restart":
            self.track = self.track[:1]
            return self.show()
        if command == "actions":
            return "\n".join(f"  {action}" for action in self.env.actions(self.state))
        if command == "hint":
            return self._hint()
        return self.help if command == "help" else f"{line}: no such command. {self.help}"

    def _play(self, action: str) -> str:
        if self.state.done:
            return "The episode is over; :undo, :restart or :quit."
        state, result = self.env.step(self.state, action)
        total = self.track[-1][2] + result.reward
        self.track.append((state, result.observation, total))
        return f"{result.observation}\n{self._score(state, result, total)}"

    def _score(self, state: Any, result: StepResult, total: float) -> str:
        text = f"step {state.num_steps} of {self.env.horizon}, reward {result.reward:g}, "
        text += f"in all {round(total, 6):g}"
        if result.info.get("valid") is False:
            text += "; not understood"
        if result.done:
            text += "; solved" if result.success else "; over, not solved"
        return text

    def _hint(self) -> str:
        if self.state.done:
            return "The episode is over."
        plan = self.env.solve(self.state)
        if not plan:
            return "The expert knows no way to the goal from here in the steps left."
        if self.env.programs:
            return f"{plan[0]}\n{END}"
        return f"{plan[0]}   ({len(plan)} actions to the goal)"


def play(game: Game) -> None:
    """Reads lines from standard input until :quit or end of file."""
    print(f"{game.help}\n\n{printable(game.show())}")
    while True:
        try:
            typed = _read_program() if game.env.programs else input("> ").strip()
        except EOFError:  # an unfinished program is not played
            print()
            return
        if typed.lower() in (":quit", ":q"):
            return
        if typed or game.env.programs:
            print(printable(game.answer(typed)))


def _read_program() -> str:
    """The lines before END, as they were typed; or a first line that begins with a colon."""
    lines = [input("> ")]
    if lines[0].startswith(":"):
        return lines[0].strip()
    while lines[-1] != END:
        lines.append(input("| "))
    return "\n".join(lines[:-1])


def main(arguments: Sequence[str]) -> int:
    """Runs the program. Returns 0, or 2 for wrong input, after one line on standard error."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(
            stream, "reconfigure"
        ):  # a lone surrogate or a Latin terminal must not end a game
            stream.reconfigure(errors="replace" if stream is sys.stdin else "backslashreplace")
    env = None
    try:
        flags = _parse(arguments)
        env = _make(flags)
        if flags.list:
            print(printable("\n".join(list_splits(env, flags.split))))
        else:
            task_id = choose_task(env, flags.split, flags.task)
            print(printable(f"{env.name}, task {task_id}"))
            play(Game(env, task_id))
        sys.stdout.flush()
    except (EnvDataError, ImportError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    except BrokenPipeError:
        # The reader is gone. Without this, the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        if env is not None:
            env.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
