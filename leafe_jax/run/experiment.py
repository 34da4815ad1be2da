"""A run: phases over one workdir, each of which can be resumed and is done once.

    explore -> fit -> evaluate -> report        (and bootstrap, habits)

`explore` grows the trees of every search, `fit` fits every method, `evaluate` plays held-out tasks with
each method's agent. Every search, method and evaluation has a directory with a `phase.json`, which
holds the fields it depends on. What is finished is skipped; a changed field is refused by name. Work is
cut into blocks that are written when complete. A killed run repeats at most the block in flight; a
block always starts from the same state, so its results are the same.

Several processes run the same program: they divide blocks, train together on all devices, and each
samples on its own. The first one decides what all must do alike, and writes the shared files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from envs.base import Environment, Task
from envs.prompts import Prompts
from leafe_jax.agent.evaluate import evaluate
from leafe_jax.agent.policy import Encoder
from leafe_jax.errors import UserError
from leafe_jax.methods.ace import Ace
from leafe_jax.methods.base import Agent, FineTuned, Made, Method
from leafe_jax.methods.on_policy import OnPolicy
from leafe_jax.methods.playbook import Playbook
from leafe_jax.methods.search import explore
from leafe_jax.run import adapt, base_model, checks, practise
from leafe_jax.run.base_model import progress_bar
from leafe_jax.run.blocks import (
    Blocks,
    Trees,
    evaluation_blocks,
    read_evaluation,
    run_blocks,
    tree_blocks,
)
from leafe_jax.run.config import RunConfig
from leafe_jax.run.depends import closure
from leafe_jax.run.phase import Phase, finished
from leafe_jax.run.results import method_result, read_summary, run_report
from leafe_jax.run.validate import validate
from leafe_jax.run.weights import (
    Weights,
    base_model_path,
    chat_of,
    check_model,
    export,
    fine_tune,
    note_agent,
    note_model,
    trained_model,
)
from leafe_jax.run.workdir import opened
from leafe_jax.runtime import console, processes
from leafe_jax.runtime.files import fingerprint, make_directory, to_json, whole, write_json
from leafe_jax.runtime.metrics import Metrics
from leafe_jax.sampling.lm_policy import LMPolicy
from leafe_jax.training.start import Data
from leafe_jax.types import Example, Tree

_LOG = logging.getLogger("leafe_jax")
Log = Callable[[int, dict[str, float]], None]


class Experiment:
    """One run; it is the `run` that methods are given (leafe_jax.methods.base.Run).

    Args:
      config: all settings.
      env: the environment.
      workdir: absolute and locked.
      metrics: where scalars go.
    """

    def __init__(self, config: RunConfig, env: Environment, workdir: epath.Path, metrics: Metrics):
        self.config, self.env, self.workdir, self.metrics = config, env, workdir, metrics
        self.seed = config.seed
        self.prompts = Prompts(env, config.prompts)
        self.weights = Weights(config)
        self._made: set[str] = set()  # searches and methods that this run has made sure of

    def run(self) -> bool:
        """Runs all phases in order; False if there was nothing to do."""
        did = False
        if processes.first():
            self._save_prompts()
        for name in self.config.phases:
            did |= getattr(self, f"_run_{name}")()
        return did

    def _save_prompts(self) -> None:
        """Writes the prompt templates in use, for whoever reads the workdir later."""
        directory = self.workdir / "prompts"
        make_directory(directory)
        for name, text in self.prompts.sources().items():
            file = directory / f"{name}.jinja"
            if not file.is_file() or file.read_text() != text:
                with whole(file) as output:
                    output.write(text)

    def _run_bootstrap(self) -> bool:
        return base_model.make(self.config, self.workdir, self.logger("bootstrap"))

    def _run_habits(self) -> bool:
        agent = Agent(self.base_model(), self.prompts)
        return base_model.measure(
            self.config, self.env, agent, self.weights, self.workdir, self.metrics
        )

    def _run_explore(self) -> bool:
        """Grows all searches. One whose agent is a fitted method has that fitted first."""
        wanted = [part for s in self.config.search for part in closure(self.config, f"trees/{s}")]
        return self._make(wanted)

    def _run_fit(self) -> bool:
        wanted = [part for m in self.config.methods for part in closure(self.config, m)]
        return self._make([part for part in wanted if not part.startswith("trees/")])

    def _make(self, names: Iterable[str]) -> bool:
        did = False
        for name in names:
            if name not in self._made:
                self._made.add(name)
                kind, _, search = name.partition("/")
                did |= self._grow(search) if kind == "trees" else self.config.find(name).fit(self)
        return did

    def _run_evaluate(self) -> bool:
        did = False
        for method in self.config.methods:
            did |= self._evaluate(method)
        return did

    def _run_report(self) -> bool:
        return run_report(self.config, self.env, self.workdir)

    # -- what methods use ----------------------------------------------------------------------
    def base_model(self) -> Path:
        """The model that the run starts from."""
        return base_model_path(self.config, self.workdir)

    def trained_model(self, method: Method) -> Path:
        """The model that a method has trained, or the one it started from if there was no example.

        Raises:
          UserError: it is damaged.
        """
        phase = Phase(self.workdir, method.name, self.config)
        if _is_untrained(phase):
            return self.agent_of(method.config.start).model
        return trained_model(phase)

    def agent_of(self, method: str) -> Agent:
        """The agent that a method has left."""
        return self.config.find(method).agent(self)

    def policies(self, agent: Agent) -> Callable[[], LMPolicy]:
        """Loads an agent's model; the function gives a policy with an empty cache."""
        return self.weights.policies(agent)

    def adapt(self, method: Method) -> bool:
        """Grows the playbook of a method; False if that was done before."""
        assert isinstance(method, Ace)
        return adapt.grow_playbook(self, method, Phase(self.workdir, method.name, self.config))

    def playbook(self, method: Method) -> Playbook:
        """The playbook that a method has left."""
        return adapt.read_playbook(Phase(self.workdir, method.name, self.config))

    def encoder(self, method: str) -> Encoder:
        """Text as token ids, as the model of a method's agent reads it."""
        return chat_of(self.config.model, self.agent_of(method))

    def trees(self, search: str) -> Trees:
        """The trees of a search, read anew at each iteration.

        Raises:
          UserError: while iterating, names a block that is missing or damaged.
        """
        return Trees(tree_blocks(self.config, self.env, self.workdir, search))

    def practise(self, method: Method) -> bool:
        """Trains a method on its own rollouts; False if that was done before."""
        assert isinstance(method, OnPolicy)
        phase = Phase(self.workdir, method.name, self.config)
        left = practise.outputs(method, not _is_untrained(phase), read_summary)
        return practise.practise(self, method, phase, left)

    def is_evaluated(self, method: str) -> bool:
        """Whether this run plays the agent of a method after fitting it."""
        return "evaluate" in self.config.phases and method in self.config.methods

    def fine_tune(self, method: FineTuned) -> bool:
        """Trains the model of a method on the examples it makes; False if that was done before."""
        settings = method.config
        phase = Phase(self.workdir, method.name, self.config)
        blocks = tree_blocks(self.config, self.env, self.workdir, settings.trees)
        start = self.agent_of(settings.start).model
        note_model(self.config.model, phase, start)
        intact = phase.intact(_outputs(method, trained=not _is_untrained(phase)))
        begin, name = time.monotonic(), method.name
        if not intact:
            processes.together(
                f"{name}: trees", decide=lambda _: self._refuse_unfinished(name, settings.trees)
            )
        trees = processes.together(f"{name}: blocks", decide=lambda _: blocks.digest())
        if trees is not None:  # of a finished method they may be gone
            phase.made_of("trees", trees, f"trees/{settings.trees}")
        if intact:
            return False
        parts: list[Made] = []  # in the first process; the others read the file
        processes.together(
            f"{name}: examples",
            decide=lambda _: parts.append(method.training_examples(Trees(list(blocks)), self.seed)),
        )
        made = parts[0] if parts else Made([])
        trained = processes.together(f"{name}: any", decide=lambda _: len(made.examples) > 0)
        if trained:
            self._train(method, phase, start, made.examples)
        else:
            phase.begin()
            _LOG.warning(
                "%s: no example can be made from the trees of %r: its model stays that of %r",
                name, settings.trees, settings.start,
            )  # fmt: skip
        if processes.first():
            write_json(phase.directory / "summary.json", _summary(method, made))
        for output in _outputs(method, trained):
            phase.keep(output)
        phase.add_seconds(time.monotonic() - begin)
        phase.finish()
        return True

    def _train(self, method: FineTuned, phase: Phase, start: Path, examples: list[Example]) -> None:
        train, directory = method.config.train, Path(phase.directory)
        phase.begin()
        with progress_bar(1, "step", method.name) as bar:
            trained = fine_tune(
                start, Data(examples, method.named_weights), train, directory, self.seed,
                self.logger(method.name), bar.to,
            )  # fmt: skip
        params = export(directory, start, train, trained, self.config.model.chat_template)
        # Merged weights are on no device. Where adapters are trained there may be no room for two copies
        # of the model, so the sampler reads the file.
        if self.is_evaluated(method.name) and not train.lora.rank:
            self.weights.keep(directory / "model", params)

    def _refuse_unfinished(self, method: str, search: str) -> None:
        if not finished(self.workdir / "trees" / search):
            raise UserError(
                f"{method}: the search {search!r} of this workdir is not finished; put 'explore' into"
                " --config.phases"
            )

    # -- trees ---------------------------------------------------------------------------------
    def _grow(self, name: str) -> bool:
        """Grows the trees of a search; False if they are there."""
        config, settings = self.config, self.config.search[name]
        blocks = tree_blocks(config, self.env, self.workdir, name)
        phase, missing = blocks.phase, blocks.missing()
        agent = self.agent_of(settings.agent)
        note_agent(config.model, phase, agent)
        if phase.done and not missing:
            return False
        make_policy = self.weights.policies(agent)
        phase.begin()
        rollout = config.exploring(settings)

        def work(block: list[Task], final: epath.Path) -> None:
            with whole(final) as file:

                def keep(tree: Tree) -> None:
                    # Flushed tree by tree: what is finished can be read after a kill.
                    file.write(to_json(tree.to_json(), f"{final}, task {tree.task_id!r}") + "\n")
                    file.flush()
                    bar.update(1)

                policy = make_policy()
                explore(policy, self.env, agent.prompts, block, settings, rollout, keep)

        def log(number: int, path: epath.Path) -> None:
            if number > self.metrics.last_step(f"explore/{name}"):
                solved = [any(n.success for n in tree.nodes) for tree in Trees([path])]
                share = sum(solved) / len(solved)
                self.metrics.scalars(number, {f"explore/{name}/tasks_solved": share})

        total = sum(map(len, blocks.tasks))
        with progress_bar(total, "tree", f"explore {name}") as bar:
            run_blocks(blocks, missing, work, bar=bar, units=1, log=log)
        phase.finish()
        return True

    # -- evaluation ----------------------------------------------------------------------------
    def _evaluate(self, method: str) -> bool:
        config, settings = self.config, self.config.evaluate
        blocks = evaluation_blocks(config, self.env, self.workdir, method)
        phase, missing = blocks.phase, blocks.missing()
        agent = self.agent_of(method)
        note_agent(config.model, phase, agent)
        if phase.done and not missing:
            return False
        if not agent.model.exists() and method != "base":
            raise UserError(
                f"methods: {method!r} needs {agent.model}; put 'fit' into --config.phases"
            )
        make_policy = self.weights.policies(agent)
        phase.begin()
        rollout = config.evaluating()

        def work(block: list[Task], final: epath.Path) -> None:
            outcome = evaluate(
                make_policy(), self.env, agent.prompts, block, settings.num_samples, rollout,
                functools.partial(bar.update, 1),
            )  # fmt: skip
            write_json(final, dataclasses.asdict(outcome))

        total = sum(map(len, blocks.tasks)) * settings.num_samples
        with progress_bar(total, "episode", f"evaluate {method}") as bar:
            run_blocks(
                blocks, missing, work, bar=bar, units=settings.num_samples, log=lambda *_: None
            )  # fmt: skip
        phase.finish()
        if processes.first():
            self._log_evaluation(blocks, method)
        return True

    def _log_evaluation(self, blocks: Blocks, method: str) -> None:
        result = method_result(self.config, blocks)
        first = read_evaluation(blocks.files[0], self.config.evaluate.num_samples)
        sample = first["tasks"][0]["transcript"]
        text = "\n".join(f"{observation}\n> {reply}" for observation, reply in sample)
        self.metrics.text(0, f"eval/{method}/transcript", text)
        pass_at_1 = result["families"]["all"]["pass_at_k"]["1"]["value"]
        self.metrics.scalars(0, {f"eval/{method}/pass_at_1": pass_at_1})

    def logger(self, prefix: str) -> Log:
        """log(step, measurements), whose names get the prefix."""

        def log(step: int, measurements: dict[str, float]) -> None:
            self.metrics.scalars(step, {f"{prefix}/{k}": v for k, v in measurements.items()})

        return log


def _is_untrained(phase: Phase) -> bool:
    """True if the method of `phase` is finished and had no example to train on."""

    def look(_: Any) -> bool:
        try:
            return (
                phase.done and read_summary(phase.directory / "summary.json")["target_tokens"] == 0
            )
        except UserError:  # it is missing or damaged, and made again
            return False

    return processes.together(f"{phase.name}: examples made", decide=look)


def _outputs(method: FineTuned, trained: bool) -> dict[str, Callable[[epath.Path], Any]]:
    """What a method leaves for others -> a check of it (see Phase.intact)."""
    outputs: dict[str, Callable[[epath.Path], Any]] = {"summary.json": read_summary}
    if trained:
        outputs["model"] = check_model
        if method.config.train.lora.rank:
            outputs["adapter"] = fingerprint
    return outputs


def _summary(method: FineTuned, made: Made) -> dict[str, Any]:
    counts = [sum(e.source == s for e in made.examples) for s in range(len(method.sources))]
    return {
        "examples": dict(zip(method.labels, counts, strict=True)),
        "duplicates": made.duplicates,
        "target_tokens": int(sum((e.mass > 0).sum() for e in made.examples)),
    }


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Runs the phases of `config` in `workdir`; the one entry point behind main.py.

    Raises:
      UserError: a bad field, file or checkpoint; finished work is kept.
    """
    settings = RunConfig.read(config)
    with contextlib.closing(validate(settings)) as env:
        checks.agree(settings, env)
        with opened(workdir) as root:
            checks.records(settings, epath.Path(root))
            checks.training(settings, epath.Path(root))
            with Metrics(Path(root), kept=processes.first()) as metrics:
                did = Experiment(settings, env, epath.Path(root), metrics).run()
            if not did and processes.first():
                console.say(f"{workdir}: every phase is complete for this config; nothing to do.")
            processes.together("end")
