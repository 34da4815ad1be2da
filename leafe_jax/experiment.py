"""A run is a list of phases; each reads and writes the workdir, can be resumed, and is done once.

    explore -> distill -> evaluate -> report        (and bootstrap, habits)

Every phase has a directory with a `phase.json` that holds the part of the config it depends on. A
finished phase is skipped; a phase whose config changed is refused by the field's name. Work is cut
into blocks that are written when complete; a killed run repeats at most the block in flight, and
since a block always starts from the same state, its results are the same.
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

from envs.base import Environment
from envs.prompts import Prompts
from leafe_jax import bootstrap, distill, habits
from leafe_jax.chat import load_chat
from leafe_jax.errors import NothingToLearn, UserError
from leafe_jax.evaluate import evaluate
from leafe_jax.explore import explore
from leafe_jax.metrics import Metrics
from leafe_jax.models import hf
from leafe_jax.phase import Phase, blocks, first_tasks, write_json
from leafe_jax.progress import Progress
from leafe_jax.results import method_result, read_trees, run_report
from leafe_jax.sampling.policy import LMPolicy
from leafe_jax.sampling.replicas import make_engines
from leafe_jax.seeds import seed_for
from leafe_jax.settings import (
    DEPENDS,
    distill_config,
    explore_config,
    rollout_config,
    sampling,
    validate,
)
from leafe_jax.training import lora
from leafe_jax.training.data import ExampleFile, write_examples
from leafe_jax.training.loop import fit
from leafe_jax.training.sharding import hand_over
from leafe_jax.types import Tree

BASE_MODEL = Path(__file__).parent / "assets" / "base"


# Weights of a model that this process has trained, until its sampler takes them: the same as in its
# directory, without the way through the file and the host.
_TRAINED: dict[Path, Any] = {}


def policy_factory(config, path: Path) -> Callable[[], LMPolicy]:
    """Loads a checkpoint once; the returned function gives policies with an empty cache."""
    model_config = hf.read_config(str(path))
    model = config.model
    chat = load_chat(str(path), model_config.vocab_size, model.chat_template, model.enable_thinking)
    params = _TRAINED.pop(Path(path), None)
    if params is None:
        params = hf.load_params(str(path), model_config, model.dtype)
    sampler = config.sampler
    # Made here, so that wrong sizes are refused before any directory is claimed.
    engine = make_engines(
        model_config,
        params,
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
    """The model that the run starts from."""
    if "bootstrap" in config.phases:
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
    begin = time.time()
    phase.begin()
    start_from = None
    if not config.bootstrap.from_scratch:
        start_from = Path(config.model.path) if config.model.path else BASE_MODEL
    with Progress(1, "step", "bootstrap") as bar:
        bootstrap.run(
            config, start_from, Path(phase.directory), _logger(metrics, "bootstrap"),
            _sft_progress(bar),
        )  # fmt: skip
    phase.add_seconds(time.time() - begin)
    phase.finish()
    return True


def run_habits(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    phase = Phase(workdir, "habits", config)
    if phase.done:
        return False
    begin = time.time()
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
        config.sampler.num_slots,
    )
    write_json(phase.directory / "habits.json", table)
    print(habits.console_table(table))
    metrics.scalars(0, {f"habits/{k}": v for k, v in table["all"].items()})
    phase.add_seconds(time.time() - begin)
    phase.finish()
    if "bootstrap" in config:
        misses = habits.gate_misses(table, config.bootstrap.gate)
        if misses:
            raise UserError(f"bootstrap.gate: the base model misses it: {'; '.join(misses)}")
    return True


def run_explore(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    phase = Phase(workdir, "explore", config)
    if phase.done:
        return False
    prompts = Prompts(env.description, config.env.prompt_style, env.name)
    tasks = first_tasks(env, config.explore.split, config.explore.num_tasks, "explore.num_tasks")
    make_policy = policy_factory(config, base_model_path(config, workdir))
    phase.begin()
    directory = phase.directory / "trees"
    directory.mkdir(parents=True, exist_ok=True)
    with Progress(len(tasks), "tree", "explore") as bar:
        for number, block in blocks(tasks, config.explore.block_size):
            final = directory / f"{number:04d}.jsonl"
            if final.exists():
                bar.update(len(block))
                continue
            begin = time.time()
            partial = directory / f"{number:04d}.jsonl.partial"
            solved = 0
            with partial.open("w") as file:

                def finished(tree: Tree, file=file) -> None:
                    nonlocal solved
                    solved += any(n.success for n in tree.nodes)
                    # Flushed tree by tree: what was finished can be read after a kill.
                    file.write(json.dumps(tree.to_json()) + "\n")
                    file.flush()
                    bar.update(1)

                explore(
                    make_policy(), env, prompts, block, explore_config(config),
                    rollout_config(config, "explore", config.sampler.temperature),
                    config.sampler.num_slots, finished,
                )  # fmt: skip
            partial.replace(final)
            phase.add_seconds(time.time() - begin)
            metrics.scalars(number, {"explore/tasks_solved": solved / len(block)})
    phase.finish()
    return True


def run_distill(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    phase = Phase(workdir, "distill", config)
    if phase.done:
        return False
    begin = time.time()
    examples = distill.make_examples(read_trees(workdir), distill_config(config), config.seed)
    weights = (config.distill.counterfactual_weight, config.distill.beta)
    examples = [e for e in examples if weights[e.source] > 0]
    if not examples:
        raise NothingToLearn(
            "distill: stage 1 left nothing to learn from (no qualifying branch and no successful"
            " trajectory); explore more tasks or raise explore.max_attempts"
        )
    path = base_model_path(config, workdir)
    model_config = hf.read_config(str(path))
    load_params = functools.partial(hf.load_params, path, model_config)
    phase.begin()
    records = phase.directory / "examples.array_record"
    write_examples(records, examples)
    train = config.distill.train
    with Progress(1, "step", "distill") as bar:
        params = fit(
            model_config=model_config,
            load_params=load_params,
            examples=ExampleFile(records),
            train_config=train,
            sources=distill.SOURCES,
            source_weights=weights,
            directory=Path(phase.directory / "checkpoints"),
            seed=seed_for(config.seed, "distill"),
            log=_logger(metrics, "distill"),
            progress=_sft_progress(bar),
        )
    if train.lora.rank:
        adapted = lora.with_adapters(model_config, train.lora)
        lora.save_adapter(phase.directory / "adapter", adapted, params, str(path))
        params = lora.merge(adapted, load_params("float32"), params)
    hf.save(
        str(phase.directory / "model"), model_config, params,
        source=path, chat_template=config.model.chat_template,
    )  # fmt: skip
    if jax.process_count() == 1 and "evaluate" in config.phases:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        _TRAINED[Path(phase.directory / "model")] = hand_over(params, config.model.dtype, device)
    counts = [sum(e.source == s for e in examples) for s in range(len(distill.SOURCES))]
    write_json(
        phase.directory / "summary.json",
        {
            "counterfactual_examples": counts[distill.COUNTERFACTUAL],
            "rehearsal_examples": counts[distill.REHEARSAL],
            "target_tokens": int(sum((e.mass > 0).sum() for e in examples)),
        },
    )
    phase.add_seconds(time.time() - begin)
    phase.finish()
    return True


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
    with Progress(len(tasks) * settings.num_samples, "episode", f"evaluate {method}") as bar:
        for number, block in blocks(tasks, settings.block_size):
            final = phase.directory / f"{number:04d}.json"
            if final.exists():
                bar.update(len(block) * settings.num_samples)
                continue
            begin = time.time()
            records, budget = evaluate(
                make_policy(), env, prompts, block, settings.num_samples,
                # The same keys for every method: differences are the weights' and not the dice's.
                rollout_config(config, "evaluate", settings.temperature),
                config.sampler.num_slots, functools.partial(bar.update, 1),
            )  # fmt: skip
            write_json(final, {"tasks": records, "budget": dataclasses.asdict(budget)})
            phase.add_seconds(time.time() - begin)
    phase.finish()
    sample = json.loads((phase.directory / "0000.json").read_text())["tasks"][0]["transcript"]
    text = "\n".join(f"{observation}\n> {reply}" for observation, reply in sample)
    metrics.text(0, f"eval/{method}/transcript", text)
    metrics.scalars(0, {f"eval/{method}/pass_at_1": method_result(config, workdir, method)[
        "families"]["all"]["pass_at_k"]["1"]["value"]})  # fmt: skip
    return True


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
        _run(config, env, workdir)


def _run(config, env: Environment, workdir: str) -> None:
    root = epath.Path(workdir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error
    for name in config.phases:  # changed fields are refused before any work
        for part in (
            [f"evaluate/{m}" for m in config.evaluate.methods] if name == "evaluate" else [name]
        ):
            if part in DEPENDS and (root / part / "phase.json").exists():
                Phase(root, part, config)
    did = False
    with Metrics(Path(root)) as metrics:
        for name in config.phases:
            if name == "report" and not did and (root / "report" / "index.html").exists():
                continue
            did |= _RUN[name](config, env, root, metrics)
    if not did:
        print(f"{workdir}: every phase is complete for this config; nothing to do.")
