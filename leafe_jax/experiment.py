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
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

from envs.base import Environment, Task
from envs.prompts import Prompts
from leafe_jax import bootstrap, console, distill, habits, processes, sources
from leafe_jax.chat import load_chat
from leafe_jax.errors import NothingToLearn, UserError
from leafe_jax.evaluate import evaluate
from leafe_jax.explore import explore
from leafe_jax.metrics import Metrics
from leafe_jax.models import hf
from leafe_jax.models.decoder import abstract_params
from leafe_jax.phase import Phase, finished, run_blocks, write_json
from leafe_jax.progress import Progress
from leafe_jax.results import Trees, method_result, run_report, tree_files
from leafe_jax.sampling.policy import LMPolicy
from leafe_jax.sampling.replicas import make_engines
from leafe_jax.seeds import seed_for
from leafe_jax.settings import (
    DEPENDS,
    distill_config,
    explore_config,
    first_tasks,
    flatten,
    rollout_config,
    sampling,
    validate,
)
from leafe_jax.training import lora
from leafe_jax.training.data import Example, ExampleFile, write_examples
from leafe_jax.training.loop import check, fit
from leafe_jax.training.memory import DIVIDE, needed_for
from leafe_jax.training.sharding import cast, hand_over, shardings_for, train_mesh
from leafe_jax.types import Tree

BASE_MODEL = Path(__file__).parent / "assets" / "base"


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
    engine = make_engines(
        model_config,
        load_params,
        copies=sampler.copies,
        tensor=sampler.tensor,
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


def base_model_path(config, workdir: epath.Path) -> Path:
    """The model that the run starts from: the workdir's own, where it makes or has made one."""
    made = (workdir / "bootstrap" / "phase.json").exists()
    if made or "bootstrap" in config.phases:
        return Path(workdir / "bootstrap" / "model")
    return Path(config.model.path) if config.model.path else BASE_MODEL


def _model_path(config, workdir: epath.Path, method: str) -> Path:
    if method == "leafe":
        path = workdir / "distill" / "model"
        if not path.exists():
            raise UserError(
                f"evaluate.methods: 'leafe' needs {path}; run the phase 'distill' first"
            )
        return Path(path)
    return base_model_path(config, workdir)


def run_bootstrap(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    phase = Phase(workdir, "bootstrap", config)
    if phase.done:
        return False
    begin = time.monotonic()
    start_from = None
    if not config.bootstrap.from_scratch:
        start_from = Path(config.model.path) if config.model.path else BASE_MODEL
    with _progress(1, "step", "bootstrap") as bar:
        bootstrap.run(
            config, start_from, Path(phase.directory), phase.begin,
            _logger(metrics, "bootstrap"), _sft_progress(bar),
        )  # fmt: skip
    phase.add_seconds(time.monotonic() - begin)
    phase.finish()
    return True


def run_habits(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    phase = Phase(workdir, "habits", config)
    did = not phase.done
    if did:
        processes.together(
            "habits", decide=lambda _: _measure_habits(config, env, workdir, metrics, phase)
        )
        phase.finish()
    if "bootstrap" in config:  # a model that misses the gate is refused at every start
        table = json.loads((phase.directory / "habits.json").read_text())
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
    metrics.scalars(0, {f"habits/{k}": v for k, v in table["all"].items()})
    phase.add_seconds(time.monotonic() - begin)


def run_explore(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    phase = Phase(workdir, "explore", config)
    if phase.done:
        return False
    prompts = Prompts(env.description, config.env.prompt_style, env.name)
    tasks = first_tasks(env, config.explore.split, config.explore.num_tasks, "explore.num_tasks")
    make_policy = policy_factory(config, base_model_path(config, workdir))
    phase.begin()
    (phase.directory / "trees").mkdir(parents=True, exist_ok=True)
    search = explore_config(config)
    rollout = rollout_config(config, "explore", config.sampler.temperature)

    def work(block: list[Task], final: epath.Path) -> None:
        partial = final.parent / (final.name + ".partial")
        with partial.open("w") as file:

            def keep(tree: Tree) -> None:
                # Flushed tree by tree: what was finished can be read after a kill.
                file.write(json.dumps(tree.to_json()) + "\n")
                file.flush()
                bar.update(1)

            policy = make_policy()
            explore(policy, env, prompts, block, search, rollout, policy.num_slots, keep)
        partial.replace(final)

    def log(number: int, path: epath.Path) -> None:
        if number > metrics.last_step("explore"):
            solved = [any(n.success for n in tree.nodes) for tree in Trees([path])]
            metrics.scalars(number, {"explore/tasks_solved": sum(solved) / len(solved)})

    with _progress(len(tasks), "tree", "explore") as bar:
        run_blocks(
            phase, tasks, config.explore.block_size, "trees/{:04d}.jsonl", work,
            bar=bar, units=1, log=log,
        )  # fmt: skip
    phase.finish()
    return True


def _make_examples(config, workdir: epath.Path) -> list[Example]:
    examples = distill.make_examples(
        Trees(tree_files(workdir)), distill_config(config), config.seed
    )
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
    if phase.done:
        return False
    begin = time.monotonic()
    processes.together("distill: trees", decide=lambda _: _refuse_unfinished(workdir))
    examples: list[Example] = []  # in the first process; the others read the file
    processes.together(
        "distill: examples", decide=lambda _: examples.extend(_make_examples(config, workdir))
    )
    path = base_model_path(config, workdir)
    model_config = hf.read_config(str(path))
    load_params = functools.partial(hf.load_params, path, model_config)
    phase.begin()
    records = phase.directory / "examples.array_record"
    write_examples(records, examples)
    train = config.distill.train
    with _progress(1, "step", "distill") as bar:
        params = fit(
            model_config=model_config,
            load_params=load_params,
            examples=ExampleFile(records),
            train_config=train,
            sources=distill.SOURCES,
            source_weights=_source_weights(config),
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
    phase.add_seconds(time.monotonic() - begin)
    phase.finish()
    return True


def _export(config, directory: Path, base: Path, trained: Any) -> None:
    """Writes `directory`/model, and `directory`/adapter where adapters were trained."""
    train, model_config = config.distill.train, hf.read_config(str(base))
    params = trained
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
    phase = Phase(workdir, f"evaluate/{method}", config)
    if phase.done:
        return False
    prompts = Prompts(env.description, config.env.prompt_style, env.name)
    settings = config.evaluate
    tasks = first_tasks(env, settings.split, settings.num_tasks, "evaluate.num_tasks")
    make_policy = policy_factory(config, _model_path(config, workdir, method))
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

    total = len(tasks) * settings.num_samples
    with _progress(total, "episode", f"evaluate {method}") as bar:
        run_blocks(
            phase, tasks, settings.block_size, "{:04d}.json", work,
            bar=bar, units=settings.num_samples, log=lambda *_: None,
        )  # fmt: skip
    phase.finish()
    if processes.first():
        _log_evaluation(config, workdir, metrics, method)
    return True


def _log_evaluation(config, workdir: epath.Path, metrics: Metrics, method: str) -> None:
    first = json.loads((workdir / "evaluate" / method / "0000.json").read_text())
    sample = first["tasks"][0]["transcript"]
    text = "\n".join(f"{observation}\n> {reply}" for observation, reply in sample)
    metrics.text(0, f"eval/{method}/transcript", text)
    metrics.scalars(0, {f"eval/{method}/pass_at_1": method_result(config, workdir, method)[
        "families"]["all"]["pass_at_k"]["1"]["value"]})  # fmt: skip


# The phases whose results a phase takes up, beside what it makes itself.
_READS = {
    "distill": ("explore",),
    "report": ("explore", "distill", "evaluate/base", "evaluate/leafe"),
}

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
        _run(config, env, workdir)


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


def _open_workdir(root: epath.Path, workdir: str) -> None:
    """Makes the workdir and checks that all processes write to the same."""
    if "://" in workdir:
        raise UserError(
            f"--workdir={workdir}: must be a directory; a bucket has to be mounted (docs/TPU.md)"
        )
    index = jax.process_index()
    probe = root / f".writable{index or ''}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error

    def compare(written: list[int]) -> None:
        apart = [n for n in written if not (root / f".writable{n or ''}").exists()]
        if apart:
            raise UserError(
                f"--workdir={workdir}: process {apart[0]} writes elsewhere than process 0: all need"
                " the same directory, e.g. on a network file system"
            )

    try:
        processes.together("workdir", index, compare)
    finally:
        probe.unlink(missing_ok=True)


def _check_training(config, root: epath.Path) -> None:
    """Refuses before stage 1 what would be refused after it."""
    path = base_model_path(config, root)
    if "distill" not in config.phases or Phase(root, "distill", config).done:
        return
    if path.exists():
        check(config.distill.train, hf.read_config(str(path)))


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


def _stale(root: epath.Path) -> bool:
    """Whether a phase has been finished since the report was written."""
    results, page = root / "results.json", root / "report" / "index.html"
    if not (results.exists() and page.exists()):
        return True
    written = results.stat().mtime
    records = [root / part / "phase.json" for part in _READS["report"]]
    return any(record.exists() and record.stat().mtime > written for record in records)


def _run(config, env: Environment, workdir: str) -> None:
    root = epath.Path(workdir)
    _open_workdir(root, workdir)
    _check_record(config, root)
    _check_training(config, root)
    did = False
    with Metrics(Path(root), kept=processes.first()) as metrics:
        for name in config.phases:
            if name == "report" and not did:
                if not processes.together("report", decide=lambda _: _stale(root)):
                    continue
            did |= _RUN[name](config, env, root, metrics)
    if not did and processes.first():
        console.say(f"{workdir}: every phase is complete for this config; nothing to do.")
    processes.together("end")
