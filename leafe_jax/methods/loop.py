"""The on-policy loop, which GRPO and its relatives share:

    sample groups of episodes -> examples, token-exact, with the sampler's log-probabilities -> those of the
    reference -> optimizer steps with exact importance ratios -> new weights for the sampler -> ...

An iteration is a function of the weights and a small state, both of which its checkpoint holds. So a run
that was killed at any moment repeats what came after its last checkpoint and ends with the same bits.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs.base import Environment, Task
from envs.prompts import Prompts
from leafe_jax.agent.evaluate import Evaluation, evaluate
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.agent.seeds import seed_for
from leafe_jax.methods import watch
from leafe_jax.methods.groups import Group
from leafe_jax.methods.on_policy import Lesson, OnPolicy, Scene
from leafe_jax.models import lora
from leafe_jax.models.decoder import abstract_params
from leafe_jax.models.sharding import shardings_for
from leafe_jax.runtime import processes
from leafe_jax.runtime.files import make_directory, read_json, remove, write_json
from leafe_jax.runtime.preemption import Preemption
from leafe_jax.sampling.lm_policy import LMPolicy
from leafe_jax.training.score import Scorer
from leafe_jax.training.start import Start
from leafe_jax.training.trainer import Trainer
from leafe_jax.types import BEHAVIOUR, REFERENCE, SAMPLER_WEIGHT, TEACHER, Budget, Example

_LOG = logging.getLogger("leafe_jax")


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a run gives the loop.

    Attributes:
      seed: of the run.
      directory: of the method.
      start: the model that training begins with; it is the reference, too.
      policy: its sampler.
      env, prompts: what is played, and how it is put into words.
      tasks, probe: tasks to train on, and held-out ones.
      rollout: rollout(purpose) is how turns are rendered and sampled in training.
      probing: the same for the probe, with keys that are the same each time.
      log: log(iteration, measurements), names with a prefix of their own ("speed/", "probe/") or none.
      interval: interval(values in [0, 1]) -> (low, high), of their mean.
      pass_at_k: pass_at_k(evaluation) -> name -> value, "pass_at_1" among them.
      export: export(params, name) writes the directory `name`/model.
      progress: progress(iterations, of how many, what is shown beside).
    """

    seed: int
    directory: Path
    start: Start
    policy: LMPolicy
    env: Environment
    prompts: Prompts
    tasks: Sequence[Task]
    probe: Sequence[Task]
    rollout: Callable[[str], RolloutConfig]
    probing: RolloutConfig
    log: Callable[[int, dict[str, float]], None]
    interval: Callable[[Sequence[float]], tuple[float, float]]
    pass_at_k: Callable[[Evaluation], dict[str, float]]
    export: Callable[[Any, str], None]
    progress: Callable[[int, int, dict[str, str]], None]


@dataclasses.dataclass
class State:
    """What an iteration needs beside the weights; JSON in its checkpoint.

    Attributes:
      iteration: iterations that are done.
      position: tasks taken from the endless list of shuffled tasks.
      rounds: of sampling.
      episodes, groups, dropped: counts; the first two are of what was trained on.
      target_tokens: tokens with mass in the examples of all iterations.
      budget, probe_budget: what all rollouts, and all probes, have spent.
      best: {"iteration", "pass_at_1"} of the best probe, or {}.
      baseline: see watch.update_baseline.
      warned: kinds of warnings that have been given and still hold.
    """

    iteration: int = 0
    position: int = 0
    rounds: int = 0
    episodes: int = 0
    groups: int = 0
    dropped: int = 0
    target_tokens: int = 0
    budget: Budget = dataclasses.field(default_factory=Budget)
    probe_budget: Budget = dataclasses.field(default_factory=Budget)
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    baseline: dict[str, float] = dataclasses.field(default_factory=dict)
    warned: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> State:
        budgets = {name: Budget(**data[name]) for name in ("budget", "probe_budget")}
        return cls(**{**data, **budgets})


@dataclasses.dataclass
class Rollouts:
    """What an iteration trains on.

    Attributes:
      groups: those that are trained on.
      dropped: those that were not wanted.
      seconds: that sampling took; 0 if a file had them.
    """

    groups: list[Group]
    dropped: list[Group]
    seconds: float = 0.0


class Loop:
    """The loop of one method.

    Args:
      method: says what is trained on.
      stage: what it is played and trained with.

    Raises:
      UserError: a field does not go with the model, the devices or the tasks.
    """

    def __init__(self, method: OnPolicy, stage: Stage):
        config = method.config
        self.method, self.config, self.stage = method, config, stage
        self.objective = method.objective()
        self.state = State()
        self.trainer = Trainer(
            stage.start, config.train, self.objective, stage.directory / "checkpoints",
            seed=seed_for(stage.seed, "distill"), average=method.average,
        )  # fmt: skip
        self.base = dataclasses.replace(self.trainer.config, lora=None)

    # -- the loop ------------------------------------------------------------------------------
    def run(self) -> Any:
        """Runs what is left of the iterations; returns Trainer.params.

        Raises:
          UserError: see Trainer; or a file of rollouts is missing.
          SystemExit: 75, or 130 after SIGINT, once the state is saved.
        """
        config, trainer = self.config, self.trainer
        with contextlib.closing(trainer), Preemption(config.train.notice_url) as preemption:
            found = trainer.restore(
                dict.fromkeys(self.method.sources, 1.0), 2**30, {"method": type(self.method).name}
            )
            if found is not None:
                self.state = State.from_json(found)
            self._score = Scorer(self.base, config.train, trainer.options)
            self._own = Scorer(trainer.config, config.train, trainer.options)
            self._reference = self._load_reference()
            self._swap()
            with concurrent.futures.ThreadPoolExecutor(1) as threads:
                for rollouts, following in self._rollouts(threads):
                    self._iterate(rollouts, following)
                    if preemption.asked():
                        self._leave(preemption)
            return trainer.params

    def _leave(self, preemption: Preemption) -> None:
        self._save(must=True)
        self.trainer.close()
        _LOG.info(
            "%s: told to stop; iteration %d is saved; the same command goes on from there",
            self.method.name, self.state.iteration,
        )  # fmt: skip
        preemption.leaving()
        raise SystemExit(preemption.code)

    @property
    def done(self) -> bool:
        """True if there is no iteration left."""
        return self.state.iteration >= self.config.iterations or not self._affordable()

    def _affordable(self, spent: int = 0) -> int:
        """How many groups the rest of the budget pays for, at the mean of all so far.

        Rounded to the nearest, so that a run ends within half a group of `max_env_steps`.

        Args:
          spent: environment steps that the state has not counted yet.
        """
        limit, state = self.config.max_env_steps, self.state
        played = state.groups + state.dropped
        if not limit:
            return 2**30
        if not played:
            return 2**30 if spent < limit else 0
        mean = state.budget.env_steps / played
        return max(0, round((limit - state.budget.env_steps - spent) / max(mean, 1.0)))

    def _rollouts(
        self, threads: concurrent.futures.Executor
    ) -> Iterator[tuple[Rollouts, concurrent.futures.Future[Rollouts] | None]]:
        """The rollouts of each iteration that is left and, with `overlap`, those of the next one, which
        are being sampled."""
        following: concurrent.futures.Future[Rollouts] | None = None
        while not self.done:
            if following is not None:
                rollouts = following.result()
            elif self.config.overlap and self.state.iteration:
                rollouts = self._read_ahead()
            else:
                rollouts = self.sample()
            self._count(rollouts)  # before the next ones are sampled, which get what is left
            last = self.state.iteration + 1 >= self.config.iterations or not self._affordable()
            following = None
            if self.config.overlap and not last:
                following = threads.submit(self.sample)
            yield rollouts, following

    def _count(self, rollouts: Rollouts) -> None:
        state = self.state
        for group in (*rollouts.groups, *rollouts.dropped):
            for episode in group.episodes:
                state.budget.add(episode.budget)
        state.groups += len(rollouts.groups)
        state.episodes += sum(len(group.episodes) for group in rollouts.groups)
        state.dropped += len(rollouts.dropped)

    def _iterate(
        self, rollouts: Rollouts, following: concurrent.futures.Future[Rollouts] | None
    ) -> None:
        """Trains on rollouts, and leaves sampler and checkpoint with the new weights."""
        state, number = self.state, self.state.iteration
        begin = time.monotonic()
        steps, tokens = self._train(rollouts.groups)
        seconds = time.monotonic() - begin
        measured = {
            **watch.rollout_measurements(rollouts.groups, len(rollouts.dropped)),
            **self._success(rollouts.groups),
            **watch.training_measurements(steps),
            "env_steps": float(state.budget.env_steps),
            "generated_tokens": float(state.budget.generated_tokens),
        }
        state.baseline = watch.update_baseline(state.baseline, measured, number)
        self._warn(measured)
        self._log(number, measured, rollouts, tokens / max(seconds, 1e-9))
        if following is not None:  # the file must be there before the checkpoint that needs it
            self._write_ahead(number + 1, following.result())
        state.iteration = number + 1
        self._swap()
        every = self.config.probe_every
        if every and (state.iteration % every == 0 or self.done):
            self._probe()
        if state.iteration % self.config.train.checkpoint_every == 0 or self.done:
            self._save(must=self.done)

    def _save(self, must: bool) -> None:
        # A save in progress is not waited for: an iteration more may have to be repeated.
        self.trainer.save(dataclasses.asdict(self.state), must=must)

    def _swap(self) -> None:
        """Hands the weights to the sampler."""
        params = self.trainer.params
        if self.trainer.config.lora is not None:
            params = lora.merged(self.trainer.config, self.trainer.frozen, params)
        self.stage.policy.engine.swap(params)

    # -- sampling ------------------------------------------------------------------------------
    def sample(self) -> Rollouts:
        """Plays groups until there are enough that the method wants, or `max_rounds` have been played, or
        the budget pays for no more."""
        config, found = self.config, Rollouts([], [])
        begin = time.monotonic()
        for _ in range(self.method.max_rounds):
            spent = sum(group.env_steps for group in (*found.groups, *found.dropped))
            missing = min(
                config.episodes // config.group_size - len(found.groups), self._affordable(spent)
            )
            if not missing:
                break
            purpose = f"on_policy/{self.state.rounds}"  # the same for all methods
            for group in self._play(self._draw(missing), purpose):
                (found.groups if self.method.wanted(group) else found.dropped).append(group)
            self.state.rounds += 1
        found.seconds = time.monotonic() - begin
        if not found.groups:  # rather a step on the KL term alone than none to measure
            found.groups, found.dropped = found.dropped, []
        return found

    def _draw(self, number: int) -> list[Task]:
        """The next tasks: all in random order, then all in another order, and so on."""
        tasks, state = self.stage.tasks, self.state
        drawn: dict[str, Task] = {}
        while len(drawn) < number:
            epoch, place = divmod(state.position, len(tasks))
            task = tasks[_order(len(tasks), seed_for(self.stage.seed, "on_policy", epoch))[place]]
            drawn.setdefault(task.task_id, task)  # at the border of two epochs one may come again
            state.position += 1
        return list(drawn.values())

    def _play(self, tasks: Sequence[Task], purpose: str) -> list[Group]:
        """The groups of tasks; several processes divide them, and all get all."""
        stage = self.stage
        stage.policy.engine.clear()  # as a run that was resumed finds it
        own, count = tasks[jax.process_index() :: jax.process_count()], jax.process_count()
        played = self.method.play(stage.policy, self._scene(purpose), own)
        if count == 1:
            return played
        found: list[Group] = []
        for first in range(0, len(tasks), count):  # group by group: a message has a limit
            number = first // count
            mine = played[number].to_json() if number < len(played) else None
            every = processes.together(
                f"{self.method.name}: rollouts", mine, decide=lambda parts: parts, seconds=None
            )
            found += [Group.from_json(group) for group in every if group is not None]
        return found

    def _scene(self, purpose: str = "") -> Scene:
        stage = self.stage
        return Scene(
            stage.env, stage.prompts, stage.rollout(purpose), stage.policy.chat.first_turn,
            self.config.train.seq_len + 1,
        )  # fmt: skip

    def _ahead(self, iteration: int) -> Path:
        return self.stage.directory / "rollouts" / f"{iteration:06d}.json"

    def _write_ahead(self, iteration: int, rollouts: Rollouts) -> None:
        """Keeps rollouts of older weights: after a kill, those weights are gone."""
        make_directory(self._ahead(0).parent)
        data = {
            name: [group.to_json() for group in getattr(rollouts, name)]
            for name in ("groups", "dropped")
        }
        write_json(self._ahead(iteration), data)
        # The oldest checkpoint that is kept may be many iterations old, if saves took long.
        oldest = iteration - 32 - 2 * self.config.train.checkpoint_every
        for path in self._ahead(0).parent.glob("*.json"):
            if path.stem.isdigit() and int(path.stem) < oldest:
                remove(path)

    def _read_ahead(self) -> Rollouts:
        data = read_json(self._ahead(self.state.iteration))
        groups, dropped = ([Group.from_json(g) for g in data[n]] for n in ("groups", "dropped"))
        return Rollouts(groups, dropped)

    # -- training ------------------------------------------------------------------------------
    def _load_reference(self) -> Any:
        """The weights of the start, if the objective needs them."""
        if REFERENCE not in self.objective.columns:
            return None
        if self.trainer.config.lora is not None:
            return self.trainer.frozen
        places = shardings_for(abstract_params(self.base), self.trainer.mesh)
        return self.stage.start.load_params(self.config.train.compute_dtype, places)

    def _train(self, groups: Sequence[Group]) -> tuple[list[dict[str, float]], int]:
        """The measurements of each optimizer step, and the tokens that were computed, contexts included."""
        lesson = self.method.lesson(groups, self._scene())
        if not lesson.examples:
            return [], 0
        examples = self._filled(lesson)
        self.state.target_tokens += int(sum((e.mass > 0).sum() for e in examples))
        epochs = self.config.train.num_epochs
        batches = self.trainer.batches(
            examples,
            num_epochs=epochs,
            seed=seed_for(self.stage.seed, "on_policy", "order", self.state.iteration),
        )
        tokens = epochs * sum(len(e.ids) - 1 for e in examples)
        return [self.trainer.step(rows) for rows in batches], tokens

    def _filled(self, lesson: Lesson) -> list[Example]:
        """The examples with the columns that only a model can give."""
        examples = lesson.examples
        columns: dict[str, list[np.ndarray]] = {}
        if REFERENCE in self.objective.columns:
            columns[REFERENCE] = self._score(self._reference, examples)
        if SAMPLER_WEIGHT in self.objective.columns:
            params = lora.join(self.trainer.frozen, self.trainer.params)
            columns[BEHAVIOUR] = self._own(params, examples)
            columns[SAMPLER_WEIGHT] = [
                np.minimum(np.exp(ours - e.columns[BEHAVIOUR]), self.method.weight_cap)
                for ours, e in zip(columns[BEHAVIOUR], examples, strict=True)
            ]
        if TEACHER in self.objective.columns:
            params = lora.join(self.trainer.frozen, self.trainer.averaged)
            columns[TEACHER] = [
                _moved(own, taught, e)
                for own, taught, e in zip(
                    self._own(params, lesson.taught), lesson.taught, examples, strict=True
                )
            ]
        for name, values in columns.items():
            examples = [
                dataclasses.replace(
                    e, columns={**e.columns, name: np.where(e.mass > 0, own, 0).astype(np.float32)}
                )
                for e, own in zip(examples, values, strict=True)
            ]
        return examples

    # -- what is watched -----------------------------------------------------------------------
    def _success(self, groups: Sequence[Group]) -> dict[str, float]:
        shares = [float(np.mean([e.success for e in g.episodes])) for g in groups]
        low, high = self.stage.interval(shares)
        return {"success_low": low, "success_high": high}

    def _warn(self, measured: dict[str, float]) -> None:
        """A line for each sign of collapse that is new."""
        signs = watch.signs_of_collapse(measured, self.state.baseline)
        for kind, words in signs.items():
            if kind not in self.state.warned:
                remedy = self.method.remedies[kind]
                _LOG.warning(
                    "%s: iteration %d: %s: %s", self.method.name, self.state.iteration, words, remedy
                )  # fmt: skip
        self.state.warned = sorted(signs)

    def _log(
        self, number: int, measured: dict[str, float], rollouts: Rollouts, trained: float
    ) -> None:
        """Logs an iteration; `trained` is in tokens a second."""
        self.stage.log(number, measured)
        played = [e for g in (*rollouts.groups, *rollouts.dropped) for e in g.episodes]
        sampled = sum(e.budget.generated_tokens for e in played)
        speed = {"speed/trained_tokens_per_second": trained}
        if rollouts.seconds:
            speed["speed/sampled_tokens_per_second"] = sampled / rollouts.seconds
        self.stage.log(number, speed)
        names: tuple[str, ...] = ("reward", "success", "signal", "entropy")
        shown = {name: f"{measured[name]:.3g}" for name in names if name in measured}
        self.stage.progress(number + 1, self.config.iterations, shown)

    def _probe(self) -> None:
        """Pass@k on the held-out tasks; the best model so far is written."""
        stage, state, config = self.stage, self.state, self.config

        def measure(_: Any) -> list[Any]:
            stage.policy.engine.clear()
            found = evaluate(
                stage.policy, stage.env, stage.prompts, stage.probe, config.probe_samples,
                stage.probing, lambda: None,
            )  # fmt: skip
            return [stage.pass_at_k(found), dataclasses.asdict(found.budget)]

        values, budget = processes.together(
            f"{self.method.name}: probe", decide=measure, seconds=None
        )
        state.probe_budget.add(Budget(**budget))
        stage.log(state.iteration - 1, {f"probe/{name}": v for name, v in values.items()})
        if not state.best or values["pass_at_1"] > state.best["pass_at_1"]:
            state.best = {"iteration": state.iteration, "pass_at_1": values["pass_at_1"]}
            stage.export(self.trainer.params, "best")


def _moved(values: np.ndarray, taught: Example, example: Example) -> np.ndarray:
    """The values of the trained tokens of `taught`, at the places that they have in `example`."""
    found = np.zeros(len(example.ids), np.float32)
    found[example.mass > 0] = values[taught.mass > 0]
    return found


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(count).tolist()
