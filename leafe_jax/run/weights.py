"""Models on disk and in the sampler: which one is taken, that it is the same one at every start, how it
gets into the sampler, how it is trained, and how a trained one is written."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

from leafe_jax.agent.chat import ChatFormat, load_chat
from leafe_jax.agent.seeds import seed_for
from leafe_jax.errors import UserError
from leafe_jax.methods.base import Agent
from leafe_jax.models import hf, lora
from leafe_jax.models.decoder import abstract_params
from leafe_jax.models.sharding import cast, hand_over, shardings_for, train_mesh
from leafe_jax.run.config import CheckpointConfig, RunConfig
from leafe_jax.run.phase import Phase
from leafe_jax.runtime import processes
from leafe_jax.runtime.files import checksum, fingerprint, remove
from leafe_jax.runtime.memory import DIVIDE, needed_for
from leafe_jax.sampling.lm_policy import LMPolicy
from leafe_jax.sampling.replicas import make_engines
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.training.objectives import sft
from leafe_jax.training.records import ExampleFile, write_examples
from leafe_jax.training.settings import TrainConfig
from leafe_jax.training.start import Data, Start
from leafe_jax.training.trainer import fit

BASE_MODEL = Path(__file__).parents[1] / "assets" / "base"
_SMALLER = "raise sampler.tensor, set model.dtype = 'bfloat16', or " + DIVIDE


def base_model_path(config: RunConfig, workdir: epath.Path) -> Path:
    """The model that the run starts from: the workdir's own, if it makes one or has made one."""
    made = (workdir / "bootstrap" / "phase.json").exists()
    if made or "bootstrap" in config.phases:
        return Path(workdir / "bootstrap" / "model")
    return given_model(config.model)


def given_model(model: CheckpointConfig) -> Path:
    """`model.path`, or the embedded model."""
    return Path(model.path).expanduser() if model.path else BASE_MODEL


def check_model(path: Path | epath.Path) -> None:
    """Raises UserError if a directory holds no model."""
    hf.read_config(str(path))
    if not any(Path(path).glob("*.safetensors")):
        raise UserError(f"{path}: no .safetensors file there")


def chat_of(model: CheckpointConfig, agent: Agent) -> ChatFormat:
    """The tokenizer and chat template of an agent.

    Raises:
      UserError: see `load_chat`.
    """
    return load_chat(
        str(agent.model), hf.read_config(str(agent.model)).vocab_size, model.chat_template,
        model.enable_thinking, agent.prompts.system,
    )  # fmt: skip


def note_agent(model: CheckpointConfig, phase: Phase, agent: Agent) -> None:
    """Refuses a model, chat template or prompts whose content differs from what the phase began with."""
    note_model(model, phase, agent.model)
    phase.made_of("prompts", agent.prompts.digest(), "the prompt templates")


def note_model(model: CheckpointConfig, phase: Phase, path: Path) -> None:
    """Refuses a model or chat template whose content differs from what the phase began with."""
    template = model.chat_template

    def look(_: Any) -> dict[str, str]:
        digests = {"model": fingerprint(path)} if path.is_dir() else {}  # it may have gone since
        if template and Path(template).is_file():
            digests["chat_template"] = checksum(template)
        return digests

    digests = processes.together(f"{phase.name}: model", decide=look)
    for source, digest in digests.items():
        phase.made_of(source, digest, str(path) if source == "model" else template)


def trained_model(phase: Phase) -> Path:
    """The model that the method of `phase` has left, whole.

    Raises:
      UserError: it has left none, or what is there now is damaged.
    """
    path = phase.directory / "model"

    def look(_: Any) -> None:
        problem = phase.problem("model", check_model) if phase.done else None
        if problem is not None and path.exists():
            raise UserError(f"{problem}; put 'fit' into --config.phases to make it again")
        if not path.exists():
            raise UserError(f"methods: {phase.name!r} needs {path}; run the phase 'fit' first")

    processes.together(f"{phase.name}: trained model", decide=look)
    return Path(path)


class Weights:
    """Models on their way from training to the sampler, within one process."""

    def __init__(self, config: RunConfig):
        self._config = config
        # Trained weights, in the sampler's dtype and sharded as in training. They are kept on the
        # devices so that the sampler need not read them from disk.
        self._trained: dict[Path, Any] = {}

    def policies(self, agent: Agent, alone: bool = False) -> Callable[[], LMPolicy]:
        """Loads an agent's model once.

        Args:
          agent: whose model it is.
          alone: only this process calls it; otherwise all do.

        Returns:
          A function that gives a policy with an empty cache. All its policies share one engine, so
          only the last one may be in use.
        """
        config, sampler, path = self._config, self._config.sampler, agent.model
        model_config = hf.read_config(str(path))
        chat = chat_of(config.model, agent)
        load_params: Callable[[Any], Any] = functools.partial(
            hf.load_params, str(path), model_config, config.model.dtype
        )
        trained = self._trained.pop(path, None)
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
            max_new_tokens=max(sampler.max_action_tokens, config.prompts.reflection_tokens),
            stop_ids=chat.stop_ids,
            attention=sampler.attention,
            options=config.needs_options,
            memory_share=sampler.memory_share,
        )
        engine = make_engines(
            model_config, load_params, settings, copies=sampler.copies, tensor=sampler.tensor,
            alone=alone,
        )  # fmt: skip
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

    def keep(self, path: Path, params: Any) -> None:
        """Keeps the parameters of the model that was written to `path` for the sampler."""
        tensor = self._config.sampler.tensor
        if jax.local_device_count() % tensor:
            return
        with needed_for("keeping the trained weights for the sampler", _SMALLER):
            self._trained[path] = cast(params, self._config.model.dtype)


def fine_tune(
    start: Path,
    data: Data,
    train: TrainConfig,
    directory: Path,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
    progress: Callable[[int, int], None],
) -> Any:
    """Trains a model on examples, resumably; returns what was trained (see training.trainer.fit).

    Args:
      start: directory of the model that training begins with.
      data: the examples. In a run of several processes, those of the first one are taken.
      train: settings.
      directory: gets `examples.array_record` and `checkpoints`.
      seed: of the run.
      log, progress: see training.trainer.fit.

    Raises:
      UserError, OSError, SystemExit: see training.trainer.fit.
    """
    model_config = hf.read_config(str(start))
    records = directory / "examples.array_record"
    write_examples(records, data.examples)
    return fit(
        Start(model_config, functools.partial(hf.load_params, start, model_config)),
        Data(ExampleFile(records), data.weights),
        train,
        sft(),
        directory=directory / "checkpoints",
        # One name for all methods: their differences are not those of the data's order.
        seed=seed_for(seed, "distill"),
        log=log,
        progress=progress,
    )


def export(
    directory: Path, start: Path, train: TrainConfig, trained: Any, chat_template: str = ""
) -> Any:
    """Writes `directory`/model and, if adapters were trained, `directory`/adapter.

    Args:
      directory: of the method.
      start: the model that training began with.
      train: how it was trained.
      trained: parameters or adapters, as `fine_tune` returns them.
      chat_template: Jinja file that replaces the template of `start`; "" keeps that.

    Returns:
      The model's parameters, adapters merged.
    """
    model_config, params = hf.read_config(str(start)), trained
    for name in ("model", "model.partial", "adapter", "adapter.partial"):
        place = directory / name
        if processes.first() and (place.is_symlink() or not place.is_dir()):
            remove(place)  # the directory could not take the place of a file, a link or a FIFO
    if train.lora.rank:
        adapted = lora.with_adapters(model_config, train.lora)
        lora.save_adapter(directory / "adapter", adapted, trained, str(start))
        places = shardings_for(abstract_params(model_config), train_mesh(train.mesh))
        unread = hf.unread_params(start, model_config, "float32", places)
        params = lora.merge(adapted, unread, trained)
    with needed_for("writing the trained model", DIVIDE):
        hf.save(
            directory / "model", model_config, params, source=start, chat_template=chat_template
        )
    return params
