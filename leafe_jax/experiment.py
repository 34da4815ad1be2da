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
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

import envs
from envs.base import Environment, Task
from envs.prompts import STYLES, Prompts
from leafe_jax import bootstrap, distill, habits, passk, report
from leafe_jax.chat import load_chat
from leafe_jax.errors import NothingToLearn, UserError
from leafe_jax.evaluate import evaluate, merge_budgets
from leafe_jax.explore import ExploreConfig, explore
from leafe_jax.metrics import Metrics
from leafe_jax.models import hf
from leafe_jax.progress import Progress
from leafe_jax.rollout import RolloutConfig
from leafe_jax.sampling.policy import LMPolicy
from leafe_jax.sampling.replicas import make_engines
from leafe_jax.seeds import seed_for
from leafe_jax.training import lora
from leafe_jax.training.data import ExampleFile, write_examples
from leafe_jax.training.loop import fit
from leafe_jax.training.sharding import hand_over
from leafe_jax.types import Sampling, Tree

BASE_MODEL = Path(__file__).parent / "assets" / "base"
RESULTS_SCHEMA = 1
PHASES = ("bootstrap", "habits", "explore", "distill", "evaluate", "report")
METHODS = ("base", "leafe")

# The config sections that a phase's result depends on.
_SAMPLING = ("seed", "model", "env", "context", "sampler")
_DEPENDS = {
    "bootstrap": ("seed", "model", "sampler.max_len", "bootstrap"),
    "habits": (*_SAMPLING, "bootstrap", "explore.reflect_every", "evaluate"),
    "explore": (*_SAMPLING, "explore"),
    "distill": (*_SAMPLING, "explore", "distill"),
    "evaluate/base": (*_SAMPLING, "evaluate"),
    "evaluate/leafe": (*_SAMPLING, "explore", "distill", "evaluate"),
}

# Fields of a train section that leave the result alone, but for rounding.
_CHANGEABLE = (
    "mesh", "remat", "scan_layers", "checkpoint_every", "log_every", "notice_url",
)  # fmt: skip

# Weights of a model that this process has trained, until its sampler takes them: the same as in its
# directory, without the way through the file and the host.
_TRAINED: dict[Path, Any] = {}


# -- config ----------------------------------------------------------------------------------------
def _flatten(config, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in sorted(config.items()):
        if hasattr(value, "items"):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _relevant(config, phase: str) -> dict[str, Any]:
    """The fields a phase depends on. Which methods are evaluated is not one of them, nor is what a
    training run may change between two starts, such as its mesh."""
    sections = _DEPENDS[phase]
    return {
        name: value
        for name, value in _flatten(config).items()
        if any(name == s or name.startswith(s + ".") for s in sections)
        and name != "evaluate.methods"
        and not re.search(rf"\.train\.({'|'.join(_CHANGEABLE)})(\.|$)", name)
    }


def make_environment(config) -> Environment:
    """The environment of `config.env`."""
    return envs.make(config.env.name, horizon=config.env.horizon, **config.env.options.to_dict())


def _explore_config(config) -> ExploreConfig:
    names = [f.name for f in dataclasses.fields(ExploreConfig)]
    return ExploreConfig(**{name: config.explore[name] for name in names})


def _distill_config(config) -> distill.DistillConfig:
    names = [f.name for f in dataclasses.fields(distill.DistillConfig)]
    return distill.DistillConfig(**{name: config.distill[name] for name in names})


def _sampling(config, temperature: float) -> Sampling:
    s = config.sampler
    bias = tuple((i, float(value)) for i, value in s.logit_bias)
    return Sampling(
        temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty, bias, tuple(s.stop_ids),
        tuple(s.stop_strings),
    )  # fmt: skip


def _rollout_config(config, purpose: str, temperature: float) -> RolloutConfig:
    return RolloutConfig(
        mode=config.context.mode,
        window=config.context.window,
        experience_span=config.explore.experience_span,
        sampling=_sampling(config, temperature),
        max_action_tokens=config.sampler.max_action_tokens,
        max_reflection_tokens=config.sampler.max_reflection_tokens,
        seed=config.seed,
        purpose=purpose,
    )


def validate(config) -> Environment:
    """Checks every field that can be checked without work; UserError names the first bad one.

    Returns:
      The environment of `config.env`; whoever calls closes it.
    """
    choices = [
        ("env.prompt_style", config.env.prompt_style, STYLES),
        ("context.mode", config.context.mode, ("dialogue", "window")),
        ("explore.experience_span", config.explore.experience_span, ("branch", "step")),
        ("distill.normalisation", config.distill.normalisation, ("example", "token")),
        ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
    ]
    choices += [("phases", phase, PHASES) for phase in config.phases]
    choices += [("evaluate.methods", method, METHODS) for method in config.evaluate.methods]
    for name, value, allowed in choices:
        if value not in allowed:
            raise UserError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")
    at_least = [
        ("explore.block_size", config.explore.block_size, 1),
        ("explore.num_tasks", config.explore.num_tasks, 0),
        ("evaluate.block_size", config.evaluate.block_size, 1),
        ("evaluate.num_tasks", config.evaluate.num_tasks, 0),
        ("evaluate.num_samples", config.evaluate.num_samples, 1),
        ("evaluate.num_resamples", config.evaluate.num_resamples, 1),
        ("evaluate.temperature", config.evaluate.temperature, 0),
        ("sampler.max_action_tokens", config.sampler.max_action_tokens, 1),
        ("sampler.max_reflection_tokens", config.sampler.max_reflection_tokens, 1),
        ("context.window", config.context.window, 0),
        ("distill.counterfactual_weight", config.distill.counterfactual_weight, 0),
        ("distill.beta", config.distill.beta, 0),
    ]
    for name, value, least in at_least:
        if not value >= least:
            raise UserError(f"{name} = {value!r}: must be at least {least}")
    if config.distill.counterfactual_weight == 0 and config.distill.beta == 0:
        raise UserError(
            "distill.beta = 0 and distill.counterfactual_weight = 0: nothing to train on"
        )
    _sampling(config, config.sampler.temperature)
    _explore_config(config)
    _distill_config(config)
    env = make_environment(config)
    splits = {"explore.split": config.explore.split, "evaluate.split": config.evaluate.split}
    if "explore" in config.phases and splits["explore.split"] == splits["evaluate.split"]:
        raise UserError(
            f"explore.split = {config.explore.split!r}: must not be the split that is evaluated"
        )
    wanted = {"explore": "explore.split", "evaluate": "evaluate.split", "habits": "evaluate.split"}
    for phase, field in wanted.items():
        if phase in config.phases:
            if not env.list_tasks(splits[field]):
                raise UserError(f"{field} = {splits[field]!r}: this split has no task")
    return env


# -- phases ----------------------------------------------------------------------------------------
class Phase:
    """A phase's directory and its record.

    Args:
      workdir: the run's directory.
      name: e.g. "evaluate/base".
      config: the whole config.

    Raises:
      UserError: the directory was made with another config.
    """

    def __init__(self, workdir: epath.Path, name: str, config):
        self.name, self.directory = name, workdir / name
        self.record_path = self.directory / "phase.json"
        relevant = json.loads(json.dumps(_relevant(config, name)))
        self.record = {"phase": name, "done": False, "config": relevant, "seconds": 0.0}
        if self.record_path.exists():
            self.record = json.loads(self.record_path.read_text())
            self._refuse_changes(relevant)

    def begin(self) -> None:
        """Claims the directory for this config; called once everything it needs has been loaded."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write()

    def _refuse_changes(self, config: dict[str, Any]) -> None:
        known = self.record["config"]
        for field in sorted({*known, *config}):
            if known.get(field) != config.get(field):
                raise UserError(
                    f"{field} = {config.get(field)!r}, but phase {self.name!r} of this workdir was"
                    f" made with {known.get(field)!r}: use that value or another --workdir"
                )

    def _write(self) -> None:
        write_json(self.record_path, self.record)

    @property
    def done(self) -> bool:
        return self.record["done"]

    def add_seconds(self, seconds: float) -> None:
        """Books wall time of a finished part (what a killed run spent on an unfinished one is lost)."""
        self.record["seconds"] += seconds
        self._write()

    def finish(self) -> None:
        self.record["done"] = True
        self._write()


def write_json(path: epath.Path, data: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of one."""
    temporary = path.parent / (path.name + ".partial")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    temporary.replace(path)


def _blocks(tasks: list[Task], size: int) -> Iterator[tuple[int, list[Task]]]:
    for number, begin in enumerate(range(0, len(tasks), size)):
        yield number, tasks[begin : begin + size]


def _first_tasks(env: Environment, split: str, number: int, field: str) -> list[Task]:
    tasks = list(env.list_tasks(split))
    if number > len(tasks):
        raise UserError(f"{field} = {number}: split {split!r} has {len(tasks)} tasks")
    return tasks[:number] if number else tasks


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
        options=not _sampling(config, 1.0).plain,
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
    tasks = _first_tasks(
        env, config.evaluate.split, config.evaluate.num_tasks, "evaluate.num_tasks"
    )
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
        _rollout_config(config, "habits", config.evaluate.temperature),
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
    tasks = _first_tasks(env, config.explore.split, config.explore.num_tasks, "explore.num_tasks")
    make_policy = policy_factory(config, base_model_path(config, workdir))
    phase.begin()
    directory = phase.directory / "trees"
    directory.mkdir(parents=True, exist_ok=True)
    with Progress(len(tasks), "tree", "explore") as bar:
        for number, block in _blocks(tasks, config.explore.block_size):
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
                    make_policy(), env, prompts, block, _explore_config(config),
                    _rollout_config(config, "explore", config.sampler.temperature),
                    config.sampler.num_slots, finished,
                )  # fmt: skip
            partial.replace(final)
            phase.add_seconds(time.time() - begin)
            metrics.scalars(number, {"explore/tasks_solved": solved / len(block)})
    phase.finish()
    return True


def read_trees(workdir: epath.Path) -> list[Tree]:
    """All finished trees of the explore phase."""
    trees = []
    for path in sorted((workdir / "explore" / "trees").glob("*.jsonl")):
        for number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
            try:
                trees.append(Tree.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a tree: {error}") from error
    return trees


def run_distill(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    phase = Phase(workdir, "distill", config)
    if phase.done:
        return False
    begin = time.time()
    examples = distill.make_examples(read_trees(workdir), _distill_config(config), config.seed)
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
    tasks = _first_tasks(env, settings.split, settings.num_tasks, "evaluate.num_tasks")
    make_policy = policy_factory(config, _model_path(config, workdir, method))
    phase.begin()
    with Progress(len(tasks) * settings.num_samples, "episode", f"evaluate {method}") as bar:
        for number, block in _blocks(tasks, settings.block_size):
            final = phase.directory / f"{number:04d}.json"
            if final.exists():
                bar.update(len(block) * settings.num_samples)
                continue
            begin = time.time()
            records, budget = evaluate(
                make_policy(), env, prompts, block, settings.num_samples,
                # The same keys for every method: differences are the weights' and not the dice's.
                _rollout_config(config, "evaluate", settings.temperature),
                config.sampler.num_slots, functools.partial(bar.update, 1),
            )  # fmt: skip
            write_json(final, {"tasks": records, "budget": dataclasses.asdict(budget)})
            phase.add_seconds(time.time() - begin)
    phase.finish()
    sample = json.loads((phase.directory / "0000.json").read_text())["tasks"][0]["transcript"]
    text = "\n".join(f"{observation}\n> {reply}" for observation, reply in sample)
    metrics.text(0, f"eval/{method}/transcript", text)
    metrics.scalars(0, {f"eval/{method}/pass_at_1": _method_result(config, workdir, method)[
        "families"]["all"]["pass_at_k"]["1"]["value"]})  # fmt: skip
    return True


# -- results ---------------------------------------------------------------------------------------
def _method_result(config, workdir: epath.Path, method: str) -> dict[str, Any]:
    directory = workdir / "evaluate" / method
    parts = [
        json.loads(path.read_text())
        for path in sorted(directory.glob("*.json"))
        if path.name != "phase.json"
    ]
    records = [record for part in parts for record in part["tasks"]]
    return {
        "families": passk.summarise(
            {r["task_id"]: r["successes"] for r in records},
            {r["task_id"]: r["family"] for r in records},
            config.evaluate.num_resamples,
            seed_for(config.seed, "bootstrap-interval"),
        ),
        "budget": merge_budgets([part["budget"] for part in parts]),
        "seconds": _seconds(directory),
    }


def _seconds(directory: epath.Path) -> float:
    return json.loads((directory / "phase.json").read_text())["seconds"]


def _explore_result(workdir: epath.Path) -> dict[str, Any]:
    trees = read_trees(workdir)
    nodes = [(tree, node) for tree in trees for node in tree.nodes]
    statuses: dict[str, int] = {}
    for _, node in nodes:
        for reflection in node.reflections:
            statuses[reflection.status] = statuses.get(reflection.status, 0) + 1
    branches = [(tree, node) for tree, node in nodes if node.parent is not None]
    return {
        "tasks": len(trees),
        "solved_tasks": sum(any(n.success for n in tree.nodes) for tree in trees),
        "episodes": len(nodes),
        "success_episodes": sum(node.success for _, node in nodes),
        "reflections": dict(sorted(statuses.items())),
        "branches": len(branches),
        "branches_successful": sum(node.success for _, node in branches),
        "budget": merge_budgets([dataclasses.asdict(tree.budget) for tree in trees]),
        "seconds": _seconds(workdir / "explore"),
    }


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def run_report(config, env: Environment, workdir: epath.Path, metrics: Metrics) -> bool:
    """results.json, the plots and the page, from what lies in the workdir."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "grain")
    flat = _flatten(config)
    results = {
        "schema": RESULTS_SCHEMA,
        "commit": _commit(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "config_hash": hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:12],
        "config": flat,
        "seed": config.seed,
        # Tells readers on other machines whether they played the same tasks.
        "split_hash": env.split_hash(config.evaluate.split),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "methods": {
            method: _method_result(config, workdir, method)
            for method in METHODS
            if (workdir / "evaluate" / method / "phase.json").exists()
        },
    }
    if (workdir / "explore" / "phase.json").exists():
        results["explore"] = _explore_result(workdir)
    if (workdir / "distill" / "summary.json").exists():
        summary = json.loads((workdir / "distill" / "summary.json").read_text())
        results["distill"] = {**summary, "seconds": _seconds(workdir / "distill")}
    write_json(workdir / "results.json", results)
    report.write_report(Path(workdir))
    print(report.console_table(results))
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
            if part in _DEPENDS and (root / part / "phase.json").exists():
                Phase(root, part, config)
    did = False
    with Metrics(Path(root)) as metrics:
        for name in config.phases:
            if name == "report" and not did and (root / "report" / "index.html").exists():
                continue
            did |= _RUN[name](config, env, root, metrics)
    if not did:
        print(f"{workdir}: every phase is complete for this config; nothing to do.")
