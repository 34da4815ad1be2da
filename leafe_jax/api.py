"""What notebooks and scripts call: `import leafe_jax` exports every function of this module.

The settings are the dataclasses of a run (leafe_jax/run/config.py). With the same settings and seed, a
function here samples the same tokens as the run's phase does. Nothing is printed unless progress is asked
for. The process is left alone: no signal handlers, no exit. docs/API.md has an example of each function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from etils import epath

from envs.base import EnvDataError, Environment, Task
from envs.prompts import Prompts
from leafe_jax.agent import evaluate as plain
from leafe_jax.agent.evaluate import Evaluation, TaskRecord
from leafe_jax.agent.rollout import Episode
from leafe_jax.errors import UserError
from leafe_jax.methods import base, search
from leafe_jax.methods.search import SearchConfig
from leafe_jax.run import passk, presets, weights
from leafe_jax.run.blocks import Trees
from leafe_jax.run.config import RunConfig
from leafe_jax.run.phase import read_record
from leafe_jax.run.validate import first_tasks, validate
from leafe_jax.run.workdir import locked
from leafe_jax.runtime.files import checksum, local_path
from leafe_jax.runtime.preemption import signals_left_alone
from leafe_jax.runtime.progress import Progress
from leafe_jax.sampling.lm_policy import LMPolicy
from leafe_jax.training.settings import TrainConfig
from leafe_jax.training.start import Data
from leafe_jax.types import Budget, Node, Tree

PathLike: TypeAlias = str | os.PathLike[str]


@contextlib.contextmanager
def _one_error_type() -> Iterator[None]:
    """A context, or decorator, in which an environment's errors become UserError."""
    try:
        yield
    except EnvDataError as error:
        raise UserError(str(error)) from error


# -- loading ---------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class LoadedPolicy:
    """A model in the sampler, with the environment that it plays.

    Attributes:
      config: all settings.
      model: directory of the model.
      env: the environment of `config.env`.
      prompts: how its observations become prompts.
      fresh: fresh() gives the sampler's policy with an empty cache, for code that drives rollouts itself.
        All policies that it gives share one engine, so only the last one may be in use.
    """

    config: RunConfig
    model: Path
    env: Environment
    prompts: Prompts
    fresh: Callable[[], LMPolicy]

    @_one_error_type()
    def tasks(self, split: str, num_tasks: int = 0) -> list[Task]:
        """The tasks that a run takes: the first `num_tasks` of a split, families in turn; 0 takes all.

        Raises:
          UserError: there is no such split, or it has fewer tasks.
        """
        return first_tasks(self.env, split, num_tasks, "num_tasks")

    def close(self) -> None:
        """Ends the environment's worker processes, if it has any."""
        self.env.close()


@_one_error_type()
def load_config(name: str = "default", overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The settings that a config file makes, checked.

    Args:
      name: as after `--config=`: the name of a file that comes with the package ("quickstart"), or a path
        that ends in .py; a mode may follow a colon ("quickstart:smoke").
      overrides: field -> value, with the names that the command line has: {"sampler.num_slots": 16}.

    Raises:
      UserError: there is no such file, mode or field, or a value is not allowed.
    """
    file, _, mode = name.partition(":")
    try:
        made = presets.load_config(file, mode)
        made.update_from_flattened_dict(dict(overrides or {}))
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = str(error.args[0]) if error.args else type(error).__name__
        raise UserError(f"load_config({name!r}): {' '.join(text.split())}") from error
    return RunConfig.read(made)


@_one_error_type()
def load_policy(path: PathLike = "", config: RunConfig | None = None) -> LoadedPolicy:
    """A policy from a checkpoint directory, ready to play.

    Args:
      path: directory in Hugging Face format, e.g. one that `train` or a run has written. "" takes
        `config.model.path`, whose default is the embedded model.
      config: settings; None takes the defaults, with the environment "household".

    Raises:
      UserError: a field is out of range, or the directory holds no model.
    """
    config = RunConfig() if config is None else config
    if os.fspath(path):
        model = dataclasses.replace(config.model, path=str(local_path("path = ", os.fspath(path))))
        config = dataclasses.replace(config, model=model)
    directory = weights.given_model(config.model)
    weights.check_model(directory)
    env = validate(config)
    try:
        prompts = Prompts(env, config.prompts)
        fresh = weights.Weights(config).policies(base.Agent(directory, prompts))
    except BaseException:
        env.close()
        raise
    return LoadedPolicy(config, directory, env, prompts, fresh)


# -- playing ---------------------------------------------------------------------------------------
def _seeded(config: RunConfig, seed: int | None) -> RunConfig:
    return config if seed is None else dataclasses.replace(config, seed=seed)


def _list(tasks: Task | Sequence[Task]) -> list[Task]:
    """The tasks, checked: results are looked up by task id."""
    listed = [tasks] if isinstance(tasks, Task) else list(tasks)
    if not listed:
        raise UserError("tasks = []: must have at least one task")
    seen: set[str] = set()
    for task in listed:
        if not isinstance(task, Task):
            raise UserError(f"tasks: {task!r:.80}: must be a Task, e.g. of policy.tasks('train')")
        if task.task_id in seen:
            raise UserError(f"tasks: {task.task_id!r} occurs twice: must occur once")
        seen.add(task.task_id)
    return listed


def _check_samples(num_samples: int) -> None:
    if type(num_samples) is not int or num_samples < 1:
        raise UserError(f"num_samples = {num_samples!r}: must be an integer of at least 1")


def _blocks(tasks: Sequence[Task], size: int) -> list[Sequence[Task]]:
    """The tasks in blocks as a run has them. Each begins with an empty cache, so tokens do not depend on
    what was played before."""
    return [tasks[begin : begin + size] for begin in range(0, len(tasks), size)]


@contextlib.contextmanager
def _sampler(policy: LoadedPolicy) -> Iterator[LMPolicy]:
    """A context with the sampler, its cache empty.

    After an error or an interrupt, requests may be in flight. They are waited for: the next call finds the
    sampler free.
    """
    sampler = policy.fresh()
    try:
        yield sampler
    finally:
        while sampler.collect():
            pass


@_one_error_type()
def play(
    policy: LoadedPolicy,
    tasks: Task | Sequence[Task],
    num_samples: int = 1,
    *,
    seed: int | None = None,
    progress: bool = False,
) -> list[Tree]:
    """Plays each task `num_samples` times, without reflection: the episodes that `evaluate` counts.

    Args:
      policy: who plays.
      tasks: a task, or several.
      num_samples: episodes per task.
      seed: of the sampling keys; None takes `policy.config.seed`.
      progress: show a progress bar on stderr.

    Returns:
      One tree per task, in their order. Its nodes are the episodes, all of them roots.

    Raises:
      UserError: a task is given twice, or a prompt does not fit the sampler.
    """
    listed, config = _list(tasks), _seeded(policy.config, seed)
    _check_samples(num_samples)
    rollout = config.evaluating()
    episodes: dict[str, dict[int, Node]] = {task.task_id: {} for task in listed}
    budgets = {task.task_id: Budget() for task in listed}
    with Progress(len(listed) * num_samples, "episode", "play", shown=progress) as bar:

        def keep(episode: Episode) -> None:
            task_id = episode.owner.task_id
            episodes[task_id][episode.node.id] = episode.node
            budgets[task_id].add(episode.budget)
            bar.update(1)

        for block in _blocks(listed, config.evaluate.block_size):
            with _sampler(policy) as sampler:
                plain.play(sampler, policy.env, policy.prompts, block, num_samples, rollout, keep)
    return [
        Tree(
            policy.env.name,
            task.task_id,
            task.family,
            config.seed,
            rollout.mode,
            [episodes[task.task_id][number] for number in range(num_samples)],
            budgets[task.task_id],
        )  # fmt: skip
        for task in listed
    ]


@_one_error_type()
def evaluate(
    policy: LoadedPolicy,
    tasks: Task | Sequence[Task],
    num_samples: int | None = None,
    *,
    seed: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Counts the outcomes of `num_samples` episodes per task; the episodes themselves are not kept.

    Args:
      policy: who plays.
      tasks: a held-out task, or several.
      num_samples: n of Pass@k; None takes `policy.config.evaluate.num_samples`.
      seed, progress: see `play`.

    Raises:
      UserError: see `play`.
    """
    listed, config = _list(tasks), _seeded(policy.config, seed)
    number = config.evaluate.num_samples if num_samples is None else num_samples
    _check_samples(number)
    records: list[TaskRecord] = []
    budget = Budget()
    with Progress(len(listed) * number, "episode", "evaluate", shown=progress) as bar:
        for block in _blocks(listed, config.evaluate.block_size):
            with _sampler(policy) as sampler:
                part = plain.evaluate(
                    sampler, policy.env, policy.prompts, block, number, config.evaluating(),
                    lambda: bar.update(1),
                )  # fmt: skip
            records += part.tasks
            budget.add(part.budget)
    return Evaluation(records, budget)


def pass_at_k(evaluation: Evaluation) -> dict[str, passk.FamilySummary]:
    """Pass@k with 95% intervals over tasks: for all tasks ("all") and for each family.

        pass_at_k(evaluation)["all"]["pass_at_k"]["8"]  # {"value": 0.61, "low": 0.5, "high": 0.72}

    Args:
      evaluation: from `evaluate`.

    Raises:
      UserError: the evaluation has no tasks.
    """
    try:
        return passk.summarise(
            {r["task_id"]: r["successes"] for r in evaluation.tasks},
            {r["task_id"]: r["family"] for r in evaluation.tasks},
        )
    except ValueError as error:
        raise UserError(f"pass_at_k: {error}") from error


def pass_at_k_difference(
    evaluation: Evaluation, minus: Evaluation
) -> dict[str, passk.FamilyDifference]:
    """Pass@k of one evaluation minus that of another, paired by task, with 95% intervals: for all tasks
    ("all") and for each family.

        pass_at_k_difference(after, before)["all"]["pass_at_k"]["8"]
        # {"value": 0.31, "low": 0.2, "high": 0.4, "p": 1e-6}

    Args:
      evaluation, minus: from `evaluate`, on the same tasks.

    Raises:
      UserError: they have no tasks, or not the same ones.
    """
    try:
        return passk.differences(
            {r["task_id"]: r["successes"] for r in evaluation.tasks},
            {r["task_id"]: r["successes"] for r in minus.tasks},
            {r["task_id"]: r["family"] for r in evaluation.tasks},
        )
    except ValueError as error:
        raise UserError(f"pass_at_k_difference: {error}") from error


# -- trees and what is learned from them -----------------------------------------------------------
@_one_error_type()
def explore(
    policy: LoadedPolicy,
    tasks: Task | Sequence[Task],
    config: SearchConfig | None = None,
    *,
    seed: int | None = None,
    progress: bool = False,
) -> list[Tree]:
    """Grows one tree per task: episodes, reflections, and branches from where a reflection says.

    Args:
      policy: who plays and reflects.
      tasks: a training task, or several.
      config: rules of the search; its `agent`, `split` and `num_tasks` are for runs. None takes
        `policy.config.search["tree"]`.
      seed, progress: see `play`.

    Returns:
      The trees, in the order of the tasks.

    Raises:
      UserError: see `play`.
    """
    listed, settings = _list(tasks), _seeded(policy.config, seed)
    if config is None:
        if "tree" not in settings.search:
            raise UserError("explore: policy.config has no search 'tree': config must be given")
        config = settings.search["tree"]
    rollout = settings.exploring(config)
    found: dict[str, Tree] = {}
    with Progress(len(listed), "tree", "explore", shown=progress) as bar:

        def keep(tree: Tree) -> None:
            found[tree.task_id] = tree
            bar.update(1)

        for block in _blocks(listed, config.block_size):
            with _sampler(policy) as sampler:
                search.explore(sampler, policy.env, policy.prompts, block, config, rollout, keep)
    return [found[task.task_id] for task in listed]


def read_trees(workdir: PathLike, name: str = "tree") -> Trees:
    """The trees that a run has grown. They are read anew at each iteration, since all at once may be more
    than memory holds; `list(read_trees(...))` keeps them.

    Args:
      workdir: of the run. While it is going on, the trees of its finished blocks are there.
      name: of the search, as in `config.search`.

    Raises:
      UserError: there is no such search; or a file of it is missing or damaged. A line that is no tree is
        named while iterating.
    """
    root = local_path("workdir = ", os.fspath(workdir))
    directory = epath.Path(root / "trees" / name)
    if not (directory / "phase.json").exists():
        known = sorted(path.parent.name for path in root.glob("trees/*/phase.json"))
        raise UserError(
            f"{root}: no search {name!r} there; it has {', '.join(known) if known else 'none'}"
        )
    files = read_record(directory)["files"]
    for file, digest in files.items():
        if checksum(directory / file) != digest:
            raise UserError(
                f"{directory / file}: damaged: not as it was written (another checksum)"
            )
    return Trees([directory / file for file in sorted(files)])


def make_examples(method: str, trees: Iterable[Tree], config: Any = None, *, seed: int = 0) -> Data:
    """The training examples that a method makes from trees, and the loss weight of each source.

    Args:
      method: one that fine-tunes, e.g. "leafe" or "rft".
      trees: a list, or what `read_trees` returns.
      config: the method's settings, e.g. `load_config().method["leafe"]`; None takes the defaults.
      seed: of choices among examples; that of a run gives the run's examples.

    Returns:
      `examples` (ids and loss mass of each; Example.source numbers the sources) and `weights` (source ->
      loss weight).

    Raises:
      UserError: there is no such method, it makes no examples, or `config` is another method's.
    """
    kind = base.find(method)
    if not issubclass(kind, base.FineTuned):
        raise UserError(f"make_examples({method!r}): this method makes no examples from trees")
    settings = kind.Config() if config is None else config
    if type(settings) is not kind.Config:
        raise UserError(
            f"make_examples({method!r}): config is of type {type(settings).__name__}: must be"
            f" load_config().method[{method!r}], or one made from it"
        )
    made = kind(settings)
    several = trees if isinstance(trees, Trees) else list(trees)  # iterated more than once
    return Data(made.training_examples(several, seed).examples, made.named_weights)


def train(
    data: Data,
    directory: PathLike,
    start: PathLike = "",
    config: TrainConfig | None = None,
    *,
    seed: int = 0,
    log: Callable[[int, dict[str, float]], None] | None = None,
    progress: bool = False,
) -> Path:
    """Fine-tunes a model and returns the directory of the new one, in Hugging Face format.

    A call that was interrupted resumes from its last checkpoint when it is repeated. A call that was
    complete trains nothing and writes the model again.

    Args:
      data: from `make_examples`, or your own: Data(examples, {"my source": 1.0}).
      directory: gets `model`, `checkpoints`, `examples.array_record` and, with config.lora.rank above 0,
        `adapter`. It is made if missing.
      start: directory of the model that training begins with; "" is the embedded model.
      config: settings of training; None takes the defaults, which suit the embedded model.
      seed: of the data's order and of adapters; that of a run gives the run's.
      log: log(step, measurements), every `config.log_every` steps.
      progress: show a progress bar on stderr.

    Raises:
      UserError: there is no example, a field does not go with the model or the devices, or the directory
        holds the checkpoints of other examples or settings, or is in use.
      OSError: the disk is full; the last checkpoint is intact.
    """
    if not data.examples:
        raise UserError("train: data has no example to train on")
    config = TrainConfig() if config is None else config
    model = weights.BASE_MODEL if not os.fspath(start) else local_path("start = ", os.fspath(start))
    weights.check_model(model)
    root = local_path("directory = ", os.fspath(directory))
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"directory = {root}: cannot be made: {error.strerror}") from error
    with (
        locked(root, f"directory = {root}"),
        signals_left_alone(),
        Progress(1, "step", "train", shown=progress) as bar,
    ):
        trained = weights.fine_tune(
            model, data, config, root, seed, log or (lambda step, measured: None), bar.to
        )
        weights.export(root, model, config, trained)
    return root / "model"
