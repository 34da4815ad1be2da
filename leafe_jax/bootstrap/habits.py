"""Measures how a model acts unaided, how it follows advice, and how good its reflections are.

The ground truth is the diagnosis of the environment's scripted player (envs/player.py): the first step
that a bad habit spoiled, and what should have been done instead. There are three measurements:

unaided      plain rollouts
told         stage-1 trees in which the diagnosis replaces the model's reflections
reflections  stage-1 trees as the method grows them; each reflection is compared with the diagnosis of the
             same history
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence

from envs.base import Environment, Task
from envs.player import Player, make_player
from envs.prompts import Prompts
from leafe_jax.agent.evaluate import TaskRecord, evaluate
from leafe_jax.agent.policy import Policy
from leafe_jax.agent.rollout import Episode, RolloutConfig
from leafe_jax.errors import UserError
from leafe_jax.methods.search import SearchConfig, explore
from leafe_jax.runtime.files import read_json
from leafe_jax.runtime.progress import Progress
from leafe_jax.types import Node, Tree, Turn

COLUMNS = (
    "unaided",  # success rate of plain rollouts
    "told",  # success rate of trees whose reflections are the diagnosis
    "followed",  # share of branches from a diagnosis whose first action is that of an aware player
    "parsed",  # share of reflections that parse
    "right_step",  # of reflections that name or miss a mistake: share whose tau is the diagnosed step
    "right_advice",  # of reflections that name a mistake: share whose e is the diagnosed advice verbatim
    "num_reflections",  # number of reflections asked for
)
_TOLD_ROOTS = 8
# Family -> column -> rate. None means that nothing was counted.
Table = dict[str, dict[str, float | None]]


def _told(turns: Sequence[Turn]) -> dict[int, str]:
    # In window mode a prompt repeats the earlier experiences; its last one is the newest.
    return {t.step: t.experiences[-1] for t in turns if t.experiences}


def _diagnosis(player: Player, task_id: str, turns: Sequence[Turn]) -> tuple[int, str] | None:
    """(tau, advice) for the first mistake in a history, or None."""
    mistake = player.diagnose(task_id, [t.action for t in turns], _told(turns))
    return None if mistake is None else (mistake[0], player.advice(mistake[1], task_id))


def _follows(player: Player, tree: Tree, node: Node) -> bool:
    """True if a branch's first action is what a player aware of all habits does at h_tau."""
    turns = tree.path(node)
    actions = [t.action for t in turns if t.step <= node.branch_step]
    if len(actions) < node.branch_step:
        return False
    ideal = player.next_action(tree.task_id, actions[:-1], player.all_aware)
    return not player.differs(actions[-1], ideal)


def _search(reflect_every: int, num_roots: int, max_depth: int) -> SearchConfig:
    return SearchConfig(
        num_roots=num_roots, max_attempts=num_roots * (max_depth + 1), max_depth=max_depth,
        reflect_every=reflect_every, max_env_steps=0,
    )  # fmt: skip


def measure(
    make_policy: Callable[[], Policy],
    env: Environment,
    prompts: Prompts,
    tasks: Sequence[Task],
    num_samples: int,
    reflect_every: int,
    rollout_config: RolloutConfig,
    progress: Callable[[int, str, str], Progress],
) -> Table:
    """Rates for each family and for all tasks: {"all" or family: {column of COLUMNS: rate}}.

    Args:
      make_policy: returns the model's policy with an empty cache.
      env, prompts: an environment that has a scripted player, and its prompts.
      tasks: tasks to measure on, of the validation split.
      num_samples: plain rollouts per task.
      reflect_every: K of the measured reflections, in steps.
      rollout_config: rendering and sampling.
      progress: (total, unit, label) -> progress bar, for each of the three measurements.

    Raises:
      EnvDataError: the environment has no scripted player.
    """
    player = make_player(env)
    with progress(len(tasks) * num_samples, "episode", "habits: unaided") as bar:
        unaided = evaluate(
            make_policy(), env, prompts, tasks, num_samples,
            dataclasses.replace(rollout_config, purpose="habits/unaided"),
            lambda: bar.update(1),
        )  # fmt: skip

    def grow(purpose: str, max_depth: int, adviser=None) -> list[Tree]:
        trees: list[Tree] = []

        def keep(tree: Tree) -> None:
            trees.append(tree)
            bar.update(1)

        with progress(len(tasks), "tree", f"habits: {purpose}") as bar:
            explore(
                make_policy(), env, prompts, tasks,
                _search(reflect_every, _TOLD_ROOTS, max_depth),
                dataclasses.replace(rollout_config, purpose=f"habits/{purpose}"),
                keep, adviser=adviser,
            )  # fmt: skip
        return trees

    told = grow("told", 3, lambda episode: _advise(player, prompts, episode))
    reflected = grow("reflect", 2)
    return _rates(player, unaided.tasks, told, reflected)


def _rates(
    player: Player,
    records: Sequence[TaskRecord],
    told: Sequence[Tree],
    reflected: Sequence[Tree],
) -> Table:
    """The table from the results of the three measurements."""
    tallies: dict[str, dict[str, list[bool]]] = {}

    def count(family: str, column: str, value: bool) -> None:
        for name in ("all", family):
            tallies.setdefault(name, {}).setdefault(column, []).append(value)

    for record in records:
        for success in record["successes"]:
            count(record["family"], "unaided", success)
    for tree in told:
        for node in tree.nodes:
            if node.parent is None:
                count(tree.family, "told", _line_succeeds(tree, node))
            elif node.turns:
                count(tree.family, "followed", _follows(player, tree, node))
    for tree in reflected:
        for node in tree.nodes:
            for reflection in node.reflections:
                _judge(player, tree, node, reflection, count)
    return {
        family: {
            **{c: _rate(tallies[family].get(c, [])) for c in COLUMNS[:-1]},
            "num_reflections": float(len(tallies[family].get("parsed", []))),
        }
        for family in ["all", *sorted(set(tallies) - {"all"})]
    }


def _rate(values: list[bool]) -> float | None:
    return sum(values) / len(values) if values else None  # JSON cannot represent NaN


def _advise(player: Player, prompts: Prompts, episode: Episode) -> str:
    mistake = _diagnosis(player, episode.owner.task_id, episode.turns)
    return "no mistake." if mistake is None else prompts.format_reflection(*mistake)


def _line_succeeds(tree: Tree, node: Node) -> bool:
    return node.success or any(
        _line_succeeds(tree, child) for child in tree.nodes if child.parent == node.id
    )


def _judge(player, tree: Tree, node: Node, record, count: Callable[[str, str, bool], None]) -> None:
    if record.status == "context":  # no reflection was asked for: the context was full
        return
    turns = [t for t in tree.path(node) if t.step < record.step]
    mistake = _diagnosis(player, tree.task_id, turns)
    count(tree.family, "parsed", record.status != "unparsable")
    if record.tau is None:
        if record.status == "no_mistake" and mistake is not None:
            count(tree.family, "right_step", False)  # the model missed the mistake
        return
    count(tree.family, "right_step", mistake is not None and record.tau == mistake[0])
    count(tree.family, "right_advice", mistake is not None and record.experience == mistake[1])


def _percent(rate: float | None) -> str:
    return "unknown" if rate is None else f"{100 * rate:.1f}%"


def gate_misses(table: Table, gate) -> list[str]:
    """The rates that are too low for a base model: one line for each family and column, [] if none.

    Rates measured on rollouts show whether a model can act; token accuracy does not.

    Args:
      table: from `measure`.
      gate: {column: minimum rate}.
    """
    return [
        f"{family}: {column} {_percent(row.get(column))} < {100 * least:.1f}%"
        for family, row in table.items()
        for column, least in gate.items()
        if row.get(column) is None or not row[column] >= least
    ]


def read_table(path: str | os.PathLike) -> Table:
    """The table in a habits.json.

    Raises:
      UserError: the file cannot be read or does not hold such a table.
    """
    table = read_json(path)
    for family, row in table.items():
        if not isinstance(row, dict) or not all(
            value is None or isinstance(value, (int, float)) for value in row.values()
        ):
            raise UserError(f"{path}: {family}: must be an object of numbers")
    if "all" not in table:
        raise UserError(f"{path}: field 'all' is missing")
    return table


def console_table(table: Table) -> str:
    """The table as text for the terminal, rates in percent."""
    width = max(map(len, ("family", *table)))
    lines = [f"{'family':{width}s}" + "".join(f"{column:>16s}" for column in COLUMNS)]
    for family, row in table.items():
        cells = [f"{_percent(row[c]):>16s}" for c in COLUMNS[:-1]]
        lines.append(f"{family:{width}s}" + "".join(cells) + f"{row['num_reflections']:16.0f}")
    return "\n".join(lines)
