"""A run is a list of phases; each reads and writes the workdir, can be resumed, and is done once.

    explore -> distill -> evaluate -> report        (and bootstrap, habits)

Every phase has a directory with a `phase.json` that holds the part of the config it depends on. A
finished phase is skipped; a phase whose config changed is refused by the field's name. Work is cut
into blocks that are written when complete; a killed run repeats at most the block in flight, and
since a block always starts from the same state, its results are the same.

Several processes run the same program: they divide blocks, train together on all devices, and
each samples on its own. The first one decides what all have to do alike, and writes what there is
one of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

from envs.base import Environment, Task
from envs.prompts import Prompts
from leafe_jax.agent.chat import load_chat
from leafe_jax.agent.evaluate import evaluate
from leafe_jax.agent.seeds import seed_for
from leafe_jax.bootstrap import habits
from leafe_jax.bootstrap import make as bootstrap
from leafe_jax.errors import NothingToLearn, UserError
from leafe_jax.methods import leafe as distill
from leafe_jax.methods.search import explore
from leafe_jax.models import hf, lora
from leafe_jax.models.decoder import abstract_params
from leafe_jax.models.sharding import cast, hand_over, shardings_for, train_mesh
from leafe_jax.run.blocks import (
    Blocks,
    Trees,
    evaluation_blocks,
    read_evaluation,
    run_blocks,
    tree_blocks,
)
from leafe_jax.run.config import (
    DEPENDS,
    distill_config,
    explore_config,
    first_tasks,
    flatten,
    rollout_config,
    sampling,
    validate,
)
from leafe_jax.run.phase import Phase, finished
from leafe_jax.run.results import REPORTED, method_result, read_summary, run_report
from leafe_jax.run.weights import (
    base_model_path,
    check_model,
    given_model,
    note_model,
    trained_model,
)
from leafe_jax.run.workdir import opened
from leafe_jax.runtime import console, processes, sources
from leafe_jax.runtime.files import fingerprint, make_directory, remove, to_json, whole, write_json
from leafe_jax.runtime.memory import DIVIDE, needed_for
from leafe_jax.runtime.metrics import Metrics
from leafe_jax.runtime.progress import Progress
from leafe_jax.runtime.settings import build
from leafe_jax.sampling.lm_policy import LMPolicy
from leafe_jax.sampling.replicas import make_engines
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.training.objectives import sft
from leafe_jax.training.records import ExampleFile, write_examples
from leafe_jax.training.settings import TrainConfig
from leafe_jax.training.trainer import Data, Start, check, fit
from leafe_jax.types import Example, Tree

# Weights of a model that this run has trained, in the sampler's dtype and divided over the devices as
# in training, until the sampler takes them: the same as in its directory, without the way through the
# file and the host.
_TRAINED: dict[Path, Any] = {}
_SMALLER = "raise sampler.tensor, set model.dtype = 'bfloat16', or " + DIVIDE


def policy_factory(config, path: Path) -> Callable[[], LMPolicy]:
    """Loads a checkpoint once; the returned function gives policies with an empty cache."""
    model_config = hf.read_config(str(path))
    model = config.model
    chat = load_chat(str(path), model_config.vocab_size, model.chat_template, model.enable_thinking)
    sampler = config.sampler
    load_params = functools.partial(hf.load_params, str(path), model_config, model.dtype)
    trained = _TRAINED.pop(Path(path), None)
    if trained is not None:
        with needed_for("handing the trained weights to the sampler", _SMALLER):
            load_params = hand_over(trained, sampler.tensor)
        del trained  # a second copy
    # Made here, so that wrong sizes are refused before any directory is claimed.
    settings = EngineConfig(
        num_slots=sampler.num_slots,
        page_size=sampler.page_size,
        num_pages=sampler.num_pages,
        max_len=sampler.max_len,
        turn_chunk=sampler.turn_chunk,
        prefill_chunk=sampler.prefill_chunk,
        max_new_tokens=max(sampler.max_action_tokens, sampler.max_reflection_tokens),
        stop_ids=chat.stop_ids,
        attention=sampler.attention,
        options=not sampling(config, 1.0).plain,
    )
    engine = make_engines(
        model_config, load_params, settings, copies=sampler.copies, tensor=sampler.tensor
    )
    for one in getattr(engine, "engines", [engine]):
        programs = one.programs
        logging.getLogger("leafe_jax").info(
            "sampler: %d programs, %s", len(programs.listed),
            "compiled ahead" if sampler.compile_ahead else "compiled when first used",
        )  # fmt: skip
        if sampler.compile_ahead:
            programs.compile_ahead()

    def make() -> LMPolicy:
        engine.clear()
        return LMPolicy(engine, chat)

    return make


def run_bootstrap(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    phase = Phase(workdir, "bootstrap", config)
    if phase.intact({"model": check_model}):
        return False
    begin = time.monotonic()
    start_from = None if config.bootstrap.from_scratch else given_model(config)
    with _progress(1, "step", "bootstrap") as bar:
        bootstrap.run(
            config, start_from, Path(phase.directory), phase.begin,
            _logger(metrics, "bootstrap"), _sft_progress(bar),
        )  # fmt: skip
    phase.keep("model")
    phase.add_seconds(time.monotonic() - begin)
    phase.finish()
    return True


def run_habits(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    phase = Phase(workdir, "habits", config)
    did = not phase.intact({"habits.json": habits.read_table})
    if did:
        processes.together(
            "habits", decide=lambda _: _measure_habits(config, env, workdir, metrics, phase)
        )
        phase.keep("habits.json")
        phase.finish()
    if "bootstrap" in config:  # a model that misses the gate is refused at every start
        table = habits.read_table(phase.directory / "habits.json")
        misses = habits.gate_misses(table, config.bootstrap.gate)
        if misses:
            raise UserError(f"bootstrap.gate: the base model misses it: {'; '.join(misses)}")
    return did


def _measure_habits(config, env, workdir: epath.Path, metrics: Metrics, phase: Phase) -> None:
    begin = time.monotonic()
    tasks = first_tasks(env, config.evaluate.split, config.evaluate.num_tasks, "evaluate.num_tasks")
    prompts = Prompts(env.description, config.env.prompt_style, env.name)
    make_policy = policy_factory(config, base_model_path(config, workdir))
    phase.begin()
    table = habits.measure(
        make_policy,
        env,
        prompts,
        tasks,
        config.evaluate.num_samples,
        config.explore.reflect_every,
        rollout_config(config, "habits", config.evaluate.temperature),
        make_policy().num_slots,
        _progress,
    )
    write_json(phase.directory / "habits.json", table)
    console.say(habits.console_table(table))
    measured = {k: v for k, v in table["all"].items() if v is not None}
    metrics.scalars(0, {f"habits/{k}": v for k, v in measured.items()})
    phase.add_seconds(time.monotonic() - begin)


def run_explore(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    blocks = tree_blocks(config, env, workdir)
    phase, missing = blocks.phase, blocks.missing()
    path = base_model_path(config, workdir)
    note_model(config, phase, path)
    if phase.done and not missing:
        return False
    prompts = Prompts(env.description, config.env.prompt_style, env.name)
    make_policy = policy_factory(config, path)
    phase.begin()
    make_directory(phase.directory / "trees")
    search = explore_config(config)
    rollout = rollout_config(config, "explore", config.sampler.temperature)

    def work(block: list[Task], final: epath.Path) -> None:
        with whole(final) as file:

            def keep(tree: Tree) -> None:
                # Flushed tree by tree: what was finished can be read after a kill.
                file.write(to_json(tree.to_json(), f"{final}, task {tree.task_id!r}") + "\n")
                file.flush()
                bar.update(1)

            policy = make_policy()
            explore(policy, env, prompts, block, search, rollout, policy.num_slots, keep)

    def log(number: int, path: epath.Path) -> None:
        if number > metrics.last_step("explore"):
            solved = [any(n.success for n in tree.nodes) for tree in Trees([path])]
            metrics.scalars(number, {"explore/tasks_solved": sum(solved) / len(solved)})

    total = sum(map(len, blocks.tasks))
    with _progress(total, "tree", "explore") as bar:
        run_blocks(blocks, missing, work, bar=bar, units=1, log=log)
    phase.finish()
    return True


def _make_examples(config, blocks: Blocks) -> list[Example]:
    examples = distill.make_examples(Trees(list(blocks)), distill_config(config), config.seed)
    weights = _source_weights(config)
    examples = [e for e in examples if weights[e.source] > 0]
    if not examples:
        raise NothingToLearn(
            "distill: stage 1 left nothing to learn from (no qualifying branch and no successful"
            " trajectory); explore more tasks or raise explore.max_attempts"
        )
    return examples


def _refuse_unfinished(workdir: epath.Path) -> None:
    if not finished(workdir / "explore"):
        raise UserError(
            "distill: the phase 'explore' of this workdir is not finished; put it into --config.phases"
        )


def _source_weights(config) -> tuple[float, float]:
    return config.distill.counterfactual_weight, config.distill.beta


def run_distill(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    phase = Phase(workdir, "distill", config)
    blocks = tree_blocks(config, env, workdir)
    path = base_model_path(config, workdir)
    note_model(config, phase, path)
    intact = phase.intact(_distill_outputs(config))
    begin = time.monotonic()
    if not intact:
        processes.together("distill: trees", decide=lambda _: _refuse_unfinished(workdir))
    trees = processes.together("distill: blocks", decide=lambda _: blocks.digest())
    if trees is not None:  # of a finished phase they may have gone
        phase.made_of("trees", trees, "explore/trees")
    if intact:
        return False
    examples: list[Example] = []  # in the first process; the others read the file
    processes.together(
        "distill: examples", decide=lambda _: examples.extend(_make_examples(config, blocks))
    )
    model_config = hf.read_config(str(path))
    load_params = functools.partial(hf.load_params, path, model_config)
    phase.begin()
    records = phase.directory / "examples.array_record"
    write_examples(records, examples)
    with _progress(1, "step", "distill") as bar:
        params = fit(
            Start(model_config, load_params),
            Data(
                ExampleFile(records),
                dict(zip(distill.SOURCES, _source_weights(config), strict=True)),
            ),
            build(TrainConfig, config.distill.train, "distill.train"),
            sft(),
            directory=Path(phase.directory / "checkpoints"),
            seed=seed_for(config.seed, "distill"),
            log=_logger(metrics, "distill"),
            progress=_sft_progress(bar),
        )
    _export(config, Path(phase.directory), path, params)
    if processes.first():
        counts = [sum(e.source == s for e in examples) for s in range(len(distill.SOURCES))]
        write_json(
            phase.directory / "summary.json",
            {
                "counterfactual_examples": counts[distill.COUNTERFACTUAL],
                "rehearsal_examples": counts[distill.REHEARSAL],
                "target_tokens": int(sum((e.mass > 0).sum() for e in examples)),
            },
        )
    for name in _distill_outputs(config):
        phase.keep(name)
    phase.add_seconds(time.monotonic() - begin)
    phase.finish()
    return True


def _distill_outputs(config) -> dict[str, Callable[[epath.Path], Any]]:
    """What the phase leaves for others -> a check of it (see Phase.intact)."""
    outputs = {"model": check_model, "summary.json": read_summary}
    return outputs | ({"adapter": fingerprint} if config.distill.train.lora.rank else {})


def _export(config, directory: Path, base: Path, trained: Any) -> None:
    """Writes `directory`/model, and `directory`/adapter where adapters were trained."""
    train = build(TrainConfig, config.distill.train, "distill.train")
    model_config = hf.read_config(str(base))
    params = trained
    for name in ("model", "model.partial", "adapter", "adapter.partial"):
        place = directory / name
        if processes.first() and (place.is_symlink() or not place.is_dir()):
            remove(place)  # the directory could not take the place of a file, a link or a FIFO
    if train.lora.rank:
        adapted = lora.with_adapters(model_config, train.lora)
        lora.save_adapter(directory / "adapter", adapted, trained, str(base))
        places = shardings_for(abstract_params(model_config), train_mesh(train.mesh))
        unread = hf.unread_params(base, model_config, "float32", places)
        params = lora.merge(adapted, unread, trained)
    with needed_for("writing the trained model", DIVIDE):
        hf.save(
            directory / "model", model_config, params,
            source=base, chat_template=config.model.chat_template,
        )  # fmt: skip
    sampled = "evaluate" in config.phases and "leafe" in config.evaluate.methods
    # Merged weights are on no device: where adapters are trained there may be no room for two copies
    # of the model, and the sampler reads the file.
    if train.lora.rank or not sampled or jax.local_device_count() % config.sampler.tensor:
        return
    with needed_for("keeping the trained weights for the sampler", _SMALLER):
        _TRAINED[directory / "model"] = cast(params, config.model.dtype)


def _progress(total: int, unit: str, label: str) -> Progress:
    return Progress(total, unit, label, shown=processes.first())


def _logger(metrics: Metrics, prefix: str) -> Callable[[int, dict[str, float]], None]:
    def log(step: int, measurements: dict[str, float]) -> None:
        metrics.scalars(step, {f"{prefix}/{name}": v for name, v in measurements.items()})

    return log


def _sft_progress(bar: Progress) -> Callable[[int, int], None]:
    return lambda step, total: bar.to(step, total)


def run_evaluate(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    did = False
    for method in config.evaluate.methods:
        did |= _evaluate_method(config, env, workdir, metrics, method)
    return did


def _evaluate_method(
    config, env: Environment, workdir: epath.Path, metrics: Metrics, method: str
) -> bool:
    blocks = evaluation_blocks(config, env, workdir, method)
    phase, missing = blocks.phase, blocks.missing()
    path = base_model_path(config, workdir) if method == "base" else trained_model(config, workdir)
    note_model(config, phase, path)
    if phase.done and not missing:
        return False
    if not path.exists() and method == "leafe":
        raise UserError(f"evaluate.methods: 'leafe' needs {path}; run the phase 'distill' first")
    prompts = Prompts(env.description, config.env.prompt_style, env.name)
    settings = config.evaluate
    make_policy = policy_factory(config, path)
    phase.begin()
    # The same keys for every method: differences are the weights' and not the dice's.
    rollout = rollout_config(config, "evaluate", settings.temperature)

    def work(block: list[Task], final: epath.Path) -> None:
        policy = make_policy()
        records, budget = evaluate(
            policy, env, prompts, block, settings.num_samples, rollout,
            policy.num_slots, functools.partial(bar.update, 1),
        )  # fmt: skip
        write_json(final, {"tasks": records, "budget": dataclasses.asdict(budget)})

    total = sum(map(len, blocks.tasks)) * settings.num_samples
    with _progress(total, "episode", f"evaluate {method}") as bar:
        run_blocks(
            blocks, missing, work, bar=bar, units=settings.num_samples, log=lambda *_: None
        )  # fmt: skip
    phase.finish()
    if processes.first():
        _log_evaluation(config, blocks, metrics, method)
    return True


def _log_evaluation(config, blocks: Blocks, metrics: Metrics, method: str) -> None:
    result = method_result(config, blocks)
    first = read_evaluation(blocks.files[0], config.evaluate.num_samples)
    sample = first["tasks"][0]["transcript"]
    text = "\n".join(f"{observation}\n> {reply}" for observation, reply in sample)
    metrics.text(0, f"eval/{method}/transcript", text)
    pass_at_1 = result["families"]["all"]["pass_at_k"]["1"]["value"]
    metrics.scalars(0, {f"eval/{method}/pass_at_1": pass_at_1})


# The phases whose results a phase takes up, beside what it makes itself.
_READS = {"distill": ("explore",), "report": REPORTED}

_RUN = {
    "bootstrap": run_bootstrap,
    "habits": run_habits,
    "explore": run_explore,
    "distill": run_distill,
    "evaluate": run_evaluate,
    "report": run_report,
}


def run(config, workdir: str) -> None:
    """Runs the phases of `config` in `workdir`; the one entry point behind main.py.

    Raises:
      UserError: a bad field, file or checkpoint; nothing that was finished is lost.
    """
    with contextlib.closing(validate(config)) as env:
        _agree(config, env)
        with opened(workdir) as root:
            _run(config, env, epath.Path(root), workdir)


def _agree(config, env: Environment) -> None:
    """All processes must run the same thing: a host with other code or data would spoil the numbers."""
    if jax.process_count() == 1:
        return
    splits = {"explore": ("explore",), "evaluate": ("evaluate", "habits")}
    facts = flatten(config) | sources.facts()
    for section, phases in splits.items():
        if any(name in config.phases for name in phases):
            facts[f"the tasks of {section}.split"] = env.split_hash(config[section].split)

    def compare(all_facts: list[dict[str, Any]]) -> None:
        ours = all_facts[0]
        for number, theirs in enumerate(all_facts):
            for name in sorted({*ours, *theirs}):
                if ours.get(name) != theirs.get(name):
                    raise UserError(
                        f"{name} = {theirs.get(name)!r} in process {number}, {ours.get(name)!r} in"
                        " process 0: all need the same config, code and data"
                    )

    processes.together("config", facts, compare)


def _check_training(config, root: epath.Path) -> None:
    """Refuses before stage 1 what would be refused after it."""
    path = base_model_path(config, root)
    if "distill" not in config.phases or Phase(root, "distill", config).done:
        return
    if path.exists():
        train = build(TrainConfig, config.distill.train, "distill.train")
        check(train, hf.read_config(str(path)))


def _check_record(config, root: epath.Path) -> None:
    """Refuses changed fields before any work: those of the phases that are asked for, and of the phases
    that these read from."""
    evaluations = [f"evaluate/{method}" for method in config.evaluate.methods]
    for name in config.phases:
        parts = evaluations if name == "evaluate" else [name]
        before = set(_READS.get(name, ()))
        if name == "evaluate" and "leafe" in config.evaluate.methods:
            before |= {"explore", "distill"}
        for part in DEPENDS:
            if part in parts or part in before:
                Phase(root, part, config)


def _run(config, env: Environment, root: epath.Path, workdir: str) -> None:
    _check_record(config, root)
    _check_training(config, root)
    did = False
    with Metrics(Path(root), kept=processes.first()) as metrics:
        for name in config.phases:
            did |= _RUN[name](config, env, root, metrics)
    if not did and processes.first():
        console.say(f"{workdir}: every phase is complete for this config; nothing to do.")
    processes.together("end")
