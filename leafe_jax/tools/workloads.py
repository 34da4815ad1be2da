"""Workloads of the sampler's benchmarks: token arrays, and scripts of sessions that fork and continue.

leafe_jax/tools/bench_sampling.py describes each workload. It accepts any object with the same fields, e.g.
from another harness.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leafe_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plain:
    """`batch` prompts of `prompt` tokens, `gen` generated."""

    batch: int = 32
    prompt: int = 256
    gen: int = 64


@dataclasses.dataclass(frozen=True)
class Turns:
    """`batch` sequences; each turn appends `obs` tokens, then generates `gen`."""

    batch: int = 32
    turns: int = 8
    obs: int = 24
    gen: int = 16
    system: int = 0  # tokens before the first observation


@dataclasses.dataclass(frozen=True)
class Branch:
    """`branches` continuations of each of `parents` shared histories."""

    parents: int = 8
    history: int = 512
    branches: int = 16
    suffix: int = 32
    gen: int = 32


@dataclasses.dataclass(frozen=True)
class Ragged:
    """`live` sequences of unequal shape; see leafe_jax/tools/bench_sampling.py."""

    live: int = 128
    trunks: int = 32  # histories that the sequences fork from
    turns: int = 3
    history: tuple[int, int] = (100, 800)
    obs: tuple[int, int] = (5, 80)
    gen: tuple[int, int] = (4, 64)
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Leafe:
    """The first `num_trees` recorded trees, explored together."""

    num_trees: int = 48


WORKLOADS = {"plain": Plain, "turns": Turns, "branches": Branch, "ragged": Ragged, "leafe": Leafe}

# As small as the machine without an accelerator that tools.check runs on.
TINY = {
    "plain": Plain(4, 40, 16),
    "turns": Turns(4, 2, 48, 16),
    "branches": Branch(2, 50, 4, 9, 8),
    "ragged": Ragged(8, 4, 2, (20, 60), (2, 9), (2, 16)),
}


@dataclasses.dataclass(eq=False)
class Script:
    """One session of an event-driven workload.

    Attributes:
      turns: (prompt ids, number of tokens to generate, on the side) in order. A turn on the side (a
        reflection) does not stay in the context.
      parent: index of the script that this one branches from once it has ended, or None.
      begin: 1-based turn of the parent before which it branches; turns on the side are not counted.
    """

    turns: list[tuple[list[int], int, bool]]
    parent: int | None = None
    begin: int = 0


class Inputs:
    """Token data of a workload, the same for every engine.

    Args:
      w: the workload.
      vocab: tokens are drawn from 10..vocab - 1.
      trees: directory of recorded trees, for `leafe`.
    """

    def __init__(self, w, vocab: int, trees: str = ""):
        def draw(shape, seed):
            return np.random.default_rng(seed).integers(10, vocab, size=shape, dtype=np.int32)

        if isinstance(w, Plain):
            self.prompts = draw((w.batch, w.prompt), 0)
        elif isinstance(w, Turns):
            self.system = draw((w.batch, w.system), 0)
            self.obs = draw((w.turns, w.batch, w.obs), 1)
        elif isinstance(w, Branch):
            self.histories = draw((w.parents, w.history), 0)
            self.suffixes = draw((w.parents * w.branches, w.suffix), 1)
        elif isinstance(w, Ragged):
            self.scripts = _ragged_scripts(w, draw)
        else:
            self.scripts = _recorded_scripts(Path(trees), w.num_trees, draw)


def _ragged_scripts(w: Ragged, draw) -> list[Script]:
    rng = np.random.default_rng(w.seed)

    def between(bounds: tuple[int, int]) -> int:
        return int(rng.integers(bounds[0], bounds[1] + 1))

    trunks = [draw(between(w.history), 100 + i).tolist() for i in range(w.trunks)]
    scripts = []
    for number in range(w.live):
        trunk = trunks[number % w.trunks]
        # The first sequence on each trunk uses all of it. The others fork at unequal steps.
        cut = len(trunk) if number < w.trunks else between((w.history[0], len(trunk)))
        turns = []
        for turn in range(w.turns):
            ids = draw(between(w.obs), 1000 + number * w.turns + turn).tolist()
            turns.append((trunk[:cut] + ids if turn == 0 else ids, between(w.gen), False))
        scripts.append(Script(turns))
    return scripts


def _recorded_scripts(directory: Path, num_trees: int, draw) -> list[Script]:
    """Scripts from recorded trees: one per node, with each reflection as a turn on the side.

    Raises:
      UserError: the directory has no trees.
    """
    lines = [line for path in sorted(directory.glob("*.jsonl")) for line in path.open()]
    if not lines:
        raise UserError(f"--trees={directory}: no *.jsonl there; must be a run's trees/<search>")
    scripts: list[Script] = []
    for line in lines[:num_trees]:
        first = len(scripts)
        for node in json.loads(line)["nodes"]:
            turns = []
            asked = {r["step"]: r for r in node["reflections"]}
            for turn in node["turns"]:
                turns.append((turn["prompt_ids"], len(turn["action_ids"]), False))
                reflection = asked.get(turn["step"] + 1)
                if reflection is not None:
                    turns.append((reflection["prompt_ids"], len(reflection["ids"]), True))
            parent = None if node["parent"] is None else first + node["parent"]
            scripts.append(Script(turns, parent, node["branch_step"] or 1))
    return scripts


class Play:
    """State of an event-driven workload: which calls are ready, given the replies so far.

    Args:
      scripts: of the workload.
    """

    def __init__(self, scripts: Sequence[Script]):
        self.scripts = scripts
        self._contexts: list[list[int]] = [[] for _ in scripts]
        self._marks: list[list[int]] = [[] for _ in scripts]  # context length before each turn
        self._next = [0] * len(scripts)
        self._children: dict[int | None, list[int]] = {}
        for number, script in enumerate(scripts):
            self._children.setdefault(script.parent, []).append(number)
        self.generated = 0

    def start(self) -> list[tuple[int, list[int], int]]:
        """(script, context, number of tokens to generate) of all scripts that can start."""
        return [call for number in self._children.get(None, []) for call in self._ask(number)]

    def reply(self, number: int, ids: Sequence[int]) -> list[tuple[int, list[int], int]]:
        """Takes in a reply and returns the calls that are now ready, as `start` does."""
        prompt, count, side = self.scripts[number].turns[self._next[number]]
        assert len(ids) == count
        self.generated += count
        if not side:
            context = self._contexts[number]
            self._marks[number].append(len(context))
            context += [*prompt, *ids]
        self._next[number] += 1
        return self._ask(number)

    def _ask(self, number: int) -> list[tuple[int, list[int], int]]:
        script, turn = self.scripts[number], self._next[number]
        if turn < len(script.turns):
            prompt, count, _ = script.turns[turn]
            return [(number, self._contexts[number] + prompt, count)]
        calls = []
        for child in self._children.get(number, []):
            marks = self._marks[number][: self.scripts[child].begin]
            self._contexts[child] = self._contexts[number][: marks[-1] if marks else 0]
            self._marks[child] = marks[:-1]
            calls += self._ask(child)
        return calls
