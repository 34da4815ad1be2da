"""`scienceworld`: the real ScienceWorld simulator (Wang et al. 2022, github.com/allenai/ScienceWorld).

It has thirty elementary-school science task types in a house with eleven places. The simulator is a
Scala program in the package's jar; each worker process runs one JVM (envs/replay.py). A step calls
only `server.step`. The package's own `step` also lists about a thousand valid actions, which takes
several times as long as the action.

As shipped, the simulator is not deterministic: it lists and updates objects in the order of their
identity hash codes, which differ between JVMs. `JVM_OPTIONS` makes these constant. Then replays are
exact, so observations can be compared word by word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from envs.base import EnvDataError, Form, State, Task, one_of
from envs.replay import ReplayEnvironment, ReplayOptions
from envs.workers import Reply, Simulator

VERSION = "1.2.3"  # of the package; other versions play the same actions differently
JAVA_VERSION = 11  # at least: Java 8 ignores JDK_JAVA_OPTIONS, so replays would differ
JVM_OPTIONS = "-XX:+UnlockExperimentalVMOptions -XX:hashCode=2 -XX:+UseSerialGC -Xmx768m"
NOT_UNDERSTOOD = "No known action matches that input."
_UNKNOWN = "Unknown action."  # after a menu of ambiguous readings

# Task -> number of variations, in the simulator's order (PythonInterface.getTaskNames,
# getTaskMaxVariations). The published index lists use this order, not that of tasks.json.
NUM_VARIATIONS = {
    "boil": 30,
    "change-the-state-of-matter-of": 30,
    "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36,
    "find-animal": 300,
    "find-living-thing": 300,
    "find-non-living-thing": 300,
    "find-plant": 300,
    "freeze": 30,
    "grow-fruit": 126,
    "grow-plant": 126,
    "identify-life-stages-1": 14,
    "identify-life-stages-2": 10,
    "inclined-plane-determine-angle": 168,
    "inclined-plane-friction-named-surfaces": 1386,
    "inclined-plane-friction-unnamed-surfaces": 162,
    "lifespan-longest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125,
    "lifespan-shortest-lived": 125,
    "measure-melting-point-known-substance": 436,
    "measure-melting-point-unknown-substance": 300,
    "melt": 30,
    "mendelian-genetics-known-plant": 120,
    "mendelian-genetics-unknown-plant": 480,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20,
    "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600,
    "use-thermometer": 540,
}
TASKS = tuple(NUM_VARIATIONS)
SIMPLIFICATIONS = (
    "easy", "teleportAction", "selfWateringFlowerPots", "openContainers", "openDoors",
    "noElectricalAction",
)  # fmt: skip
_ELECTRICAL = ("power-component", "conductivity")

# Index lists published with EPO (github.com/WujiangXu/EPO, variations_idx; also used by RLVMR). They
# are the official splits of some tasks. L0 and L1 leave out use-thermometer. L0 tests on the official
# dev variations, L1 and L2 on the test variations, L2 on tasks that it does not train on.
_L2_TEST_TASKS = (
    "change-the-state-of-matter-of", "chemistry-mix-paint-tertiary-color", "find-plant",
    "grow-plant", "identify-life-stages-2",
    "inclined-plane-friction-unnamed-surfaces", "lifespan-longest-lived-then-shortest-lived",
    "measure-melting-point-unknown-substance", "mendelian-genetics-unknown-plant",
    "test-conductivity-of-unknown-substances",
)  # fmt: skip
_PUBLISHED_TASKS = tuple(task for task in TASKS if task != "use-thermometer")
_SPLITS = {  # name -> split -> (tasks, which official part)
    "official": {
        "train": (TASKS, "train"),
        "valid": (TASKS, "dev"),
        "test": (TASKS, "test"),
    },
    "L0": {"train": (_PUBLISHED_TASKS, "train"), "test": (_PUBLISHED_TASKS, "dev")},
    "L1": {"train": (_PUBLISHED_TASKS, "train"), "test": (_PUBLISHED_TASKS, "test")},
    "L2": {
        "train": (tuple(t for t in _PUBLISHED_TASKS if t not in _L2_TEST_TASKS), "train"),
        "test": (_L2_TEST_TASKS, "test"),
    },
}


def official_variations(task: str, part: str) -> range:
    """Variation numbers of an official part, "train", "dev" or "test" (PythonInterface.getSets)."""
    quarter = NUM_VARIATIONS[task] // 4
    return {
        "train": range(0, 2 * quarter),
        "dev": range(2 * quarter, 3 * quarter),
        "test": range(3 * quarter, NUM_VARIATIONS[task]),
    }[part]


def task_list(splits: str, split: str, only: Sequence[str] = ()) -> list[Task]:
    """Tasks of one split, the types in turn, so that its first tasks are of all types.

    Args:
      splits: "official", "L0", "L1" or "L2".
      split: one of that choice's splits.
      only: task types to keep; () keeps all.
    """
    tasks, part = _SPLITS[splits][split]
    found = [
        (variation, place, task)
        for place, task in enumerate(tasks)
        for variation in official_variations(task, part)
        if not only or task in only
    ]
    # Variations are counted from the part's first one, which differs between types.
    found.sort(key=lambda f: (f[0] - official_variations(f[2], part)[0], f[1]))
    return [Task(f"{split}/{task}/{variation:04d}", task, split) for variation, _, task in found]


@functools.lru_cache(maxsize=1)
def _package() -> Any:
    """The package's environment, with the JVM that all simulators of this process share."""
    os.environ["JDK_JAVA_OPTIONS"] = (
        f"{os.environ.get('JDK_JAVA_OPTIONS', '')} {JVM_OPTIONS}".strip()
    )
    import scienceworld

    # If the JVM dies, py4j logs tracebacks, some to the root logger. The worker's own error is one
    # line, and nothing else logs in a worker process.
    logging.disable(logging.CRITICAL)
    if scienceworld.__version__ != VERSION:
        raise EnvDataError(
            f"the package scienceworld is version {scienceworld.__version__}; it must be"
            f" {VERSION}: pip install scienceworld=={VERSION}"
        )
    try:
        return scienceworld.ScienceWorldEnv("")
    except ValueError:  # py4j could not read the port number, which Java prints first
        raise EnvDataError(
            "env.name = 'scienceworld': Java did not start; is there memory for"
            f" JDK_JAVA_OPTIONS={os.environ['JDK_JAVA_OPTIONS']!r}?"
        ) from None


class ScienceWorldSimulator(Simulator):
    """One game. Games in one JVM are independent and cheap compared with the JVM.

    Args:
      simplifications: comma-separated, as the simulator takes them.
    """

    def __init__(self, simplifications: str):
        from py4j.protocol import Py4JJavaError

        self._failure = Py4JJavaError
        self._simplifications = simplifications
        # As ScienceWorldEnv makes its own one.
        self._server = _package()._gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()

    def reset(self, task_id: str) -> Reply:
        self._load(task_id, plan=False)
        # Like the package's own reset. Some tasks then have points that no step earned, because the
        # agent starts in the right room.
        look = self.step("look around")
        text = f"{self._server.getTaskDescription()}\n{look.observation}"
        return dataclasses.replace(look, observation=text)

    def _load(self, task_id: str, plan: bool) -> None:
        _, task, variation = task_id.split("/")
        self._server.load(task, int(variation), self._simplifications, plan)

    def step(self, action: str) -> Reply:
        try:
            # Lone surrogates cannot cross to the JVM.
            observation = self._server.step(action.encode("utf-8", "replace").decode())
        except self._failure:  # an exception in the simulator's parser or rules, the same each time
            observation = NOT_UNDERSTOOD
        score = round(100 * self._server.getScore())
        valid = not observation.startswith((NOT_UNDERSTOOD, _UNKNOWN))
        # The score is negative if a wrong focus failed the task.
        done = self._server.getCompleted() or score < 0
        return Reply(observation, float(score), done, score == 100, {"valid": valid})

    def ask(self, question: str) -> Any:
        if question == "actions":
            return sorted(set(self._server.getValidActionObjectCombinations()))
        return sorted(set(self._server.getPossibleObjects()))

    def plan(self, task_id: str) -> list[str] | None:
        self._load(task_id, plan=True)
        return list(self._server.getGoldActionSequence()) or None

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the JVM may be dead
            _package().close()


@dataclasses.dataclass(frozen=True)
class ScienceWorldOptions(ReplayOptions):
    """Options of `scienceworld`; a worker is a JVM of about half a gigabyte.

    Attributes:
      simplifications: comma-separated names of SIMPLIFICATIONS; "" plays the full game. "easy" is
        teleportAction, selfWateringFlowerPots, openDoors and, for tasks without circuits,
        noElectricalAction.
      splits: "official", or one of the published "L0", "L1" (the same task types) and "L2" (test
        types that are not trained on).
      task_types: task types to keep; () keeps all.
    """

    simplifications: str = "easy"
    splits: str = one_of("official", tuple(_SPLITS))
    task_types: tuple[str, ...] = one_of((), TASKS)

    def check(self) -> None:
        super().check()
        names = self.simplifications.split(",") if self.simplifications else []
        self.require(
            "simplifications",
            all(name in SIMPLIFICATIONS for name in names),
            f"comma-separated names of {', '.join(SIMPLIFICATIONS)}",
        )
        kept = self.task_types or TASKS
        electrical = [task for task in kept if any(word in task for word in _ELECTRICAL)]
        if "noElectricalAction" in names and electrical:
            raise EnvDataError(
                f"env.options.simplifications = {self.simplifications!r}: noElectricalAction makes"
                f" {electrical[0]} impossible; leave the electrical tasks out of"
                " env.options.task_types"
            )


class ScienceWorld(ReplayEnvironment):
    """ScienceWorld; see the module docstring. Success is a score of 100.

    A reward is the change of the score, which is 0 to 100 points. As in the package, some tasks begin
    with points that no step earned. A fatal focus ends the episode with a score of -100.

    Raises:
      EnvDataError: Java or the package is missing.
    """

    name = "scienceworld"
    horizon = 100  # the package; EPO: 30
    Options = ScienceWorldOptions
    # Only EPO's fork of verl-agent has this environment (agent_system/environments, sciworld).
    form = Form("scienceworld", fallback_chars=20, keeps_case=True, latin_only=True)
    factory = "envs.scienceworld.environment:ScienceWorldSimulator"
    packages = ("scienceworld",)
    description = (
        "You act in a house with a yard, a workshop and a foundry, and do elementary science there"
        " through text commands. OBJ stands for an object that you see or the name of a place: look"
        " around; inventory; task; go to OBJ; teleport to OBJ (where offered); open OBJ; close OBJ;"
        " pick up OBJ; put down OBJ; move OBJ to OBJ; look at OBJ; look in OBJ; read OBJ; activate"
        " OBJ; deactivate OBJ; use OBJ on OBJ; pour OBJ in OBJ; dunk OBJ in OBJ; mix OBJ; connect"
        " OBJ to OBJ; disconnect OBJ; eat OBJ; flush OBJ; focus on OBJ, which names the thing that"
        " the task is about and fails the task when it is the wrong one; wait (ten moments); wait1"
        " (one moment). When a command has several readings you get a numbered list: answer with"
        " the number alone."
    )

    def __init__(self, horizon: int | None = None, options: ScienceWorldOptions | None = None):
        super().__init__(horizon, options)
        self.splits = tuple(_SPLITS[self.options.splits])
        self._types = self.options.task_types
        self._members: dict[str, frozenset[Task]] = {}
        _require_java()

    def simulator_options(self) -> Mapping[str, Any]:
        return {"simplifications": self.options.simplifications}

    def _list_tasks(self, split: str) -> Sequence[Task]:
        return task_list(self.options.splits, split, self._types)

    def split_hash(self, split: str) -> str:
        """Short SHA-256 of the task ids and of what the first observations depend on.

        The package's version is pinned, so machines can be compared without 1,800 resets.
        """
        digest = hashlib.sha256(f"scienceworld {VERSION} {self.options.simplifications}\n".encode())
        for task in self.list_tasks(split):
            digest.update(f"{task.task_id}\n".encode())
        return digest.hexdigest()[:16]

    def _reset(self, task_id: str) -> tuple[State, str]:
        parts = task_id.split("/")
        if (
            len(parts) != 3
            or parts[0] not in self.splits
            or parts[1] not in (self._types or TASKS)
            or Task(task_id, parts[1], parts[0]) not in self._known(parts[0])
        ):
            raise EnvDataError(
                f"scienceworld task {task_id!r}: must be split/type/variation with split in"
                f" {self.splits} and a variation of four digits that belongs to the split"
            )
        return super()._reset(task_id)

    def _known(self, split: str) -> frozenset[Task]:
        if split not in self._members:
            self._members[split] = frozenset(self.list_tasks(split))
        return self._members[split]

    def goal(self, first_observation: str) -> str:
        """The task description, without its "Your task is to "."""
        return first_observation.partition("\n")[0].removeprefix("Your task is to ")

    def actions(self, state: Any) -> tuple[str, ...]:
        """The simulator's valid combinations of action and objects: hundreds, and slow to list."""
        return tuple(self.ask(state, "actions"))

    def prompt_actions(self, state: Any) -> str:
        """The objects that can be named; the description has the templates of the actions."""
        return f"OBJ can be: {', '.join(self.ask(state, 'objects'))}."


def _require_java() -> None:
    """Raises EnvDataError if Java or the package is missing, before anything is started."""
    if importlib.util.find_spec("scienceworld") is None:
        raise EnvDataError(
            "env.name = 'scienceworld': the package scienceworld is missing: pip install"
            " -e '.[scienceworld]'"
        )
    if shutil.which("java") is None:
        raise EnvDataError(
            f"env.name = 'scienceworld': Java is missing: install a headless JRE of version"
            f" {JAVA_VERSION} or later (Debian: apt-get install default-jre-headless)"
        )
    said, version = _java_version()
    if version < JAVA_VERSION:
        raise EnvDataError(
            f"env.name = 'scienceworld': `java -version` says {said!r}: must be version"
            f" {JAVA_VERSION} or later, whose objects can be made to hash the same in every run"
            " (Debian: apt-get install default-jre-headless)"
        )


@functools.cache
def _java_version() -> tuple[str, int]:
    """(output of `java -version`, the version in it: 8 for "1.8.0_392"; 0 if there is none)."""
    try:
        done = subprocess.run(["java", "-version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error), 0
    # A JVM that cannot start says why on standard output.
    lines = (done.stderr + done.stdout).decode(errors="replace").splitlines()
    said = next((line for line in lines if " version " in line), " ".join(lines))[:80]
    found = re.search(r'version "(?:1\.)?([0-9]{1,4})', said)
    return said, int(found[1]) if found else 0
