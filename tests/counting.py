"""A simulator for tests: it counts, remembers where it ran, and can be told to misbehave."""

import dataclasses
import os
import sys
import time

from envs.base import EnvDataError, FilePath, Task
from envs.replay import ReplayEnvironment, ReplayOptions
from envs.workers import Reply, Simulator


class CountingSimulator(Simulator):
    """The state is a list of words; every observation shows all of them.

    Args:
      drift: file whose content is appended to each observation, as an unstable simulator would.
      calls: file to which each reset and step is appended.
    """

    # What no simulator should reply.
    ODD = {
        "none": None, "no text": Reply(None), "bytes": Reply(b"x"), "nan": Reply("x", float("nan")),
        "no score": Reply("x", None), "text score": Reply("x", "1"), "no flag": Reply("x", 0.0, None),
        "lone": Reply("a \udc80 b", 3),
    }  # fmt: skip

    def __init__(self, drift: str, calls: str):
        self._drift, self._calls = drift, calls
        self._words: list[str] = []

    def _say(self, what: str) -> str:
        with open(self._calls, "a") as log:
            log.write(f"{os.getpid()} {what}\n")
        with open(self._drift) as drift:
            return " ".join(self._words) + drift.read()

    def reset(self, task_id: str) -> Reply:
        if task_id.endswith("refused"):
            raise EnvDataError(f"task {task_id!r}: refused")
        self._words = [task_id]
        return Reply(self._say(f"reset {task_id}"))

    def step(self, action: str) -> Reply:
        if action == "break":
            raise RuntimeError("broken pipe dream")
        if action == "die once":
            if "die once" not in open(self._calls).read():
                self._say(action)
                os._exit(9)
        if action == "die loudly":
            print(
                "Traceback (most recent call last):\nfatal: out of beads",
                file=sys.stderr,
                flush=True,
            )
            os._exit(9)
        if action in self.ODD:
            return self.ODD[action]
        if action == "hang":
            time.sleep(60)
        self._words.append(action)
        text = self._say(f"step {action}")
        return Reply(text, float(len(self._words) - 1), action == "end", action == "win")

    def ask(self, question: str):
        return [question, *self._words]

    def plan(self, task_id: str):
        self._words = ["somewhere else"]
        return ["a", "b", "win"]


@dataclasses.dataclass(frozen=True)
class CountingOptions(ReplayOptions):
    episodes_per_worker: int = 1
    timeout: float = 20.0
    drift: FilePath = ""
    calls: FilePath = ""


class CountingEnvironment(ReplayEnvironment):
    name = "counting"
    horizon = 30
    Options = CountingOptions
    factory = "counting:CountingSimulator"

    def simulator_options(self):
        return {"drift": self.options.drift, "calls": self.options.calls}

    def _list_tasks(self, split: str):
        return [Task(f"{split}/count/{n:04d}", "count", split) for n in range(4)]

    def actions(self, state):
        return tuple(self.ask(state, "actions"))
