"""The phase `bootstrap`: makes the embedded base model from scripted players (docs/BASE_MODEL.md).

Corpus (corpus.py) -> tokenizer (vocabulary.py) -> model. Players with known bad habits (envs/player.py)
write the corpus. From it the model learns to act, often wrongly; to reflect, that is to name the first
mistake and what to do instead; and to follow an experience. So it can do with advice what it does not do
unaided, which is what the paper's method relies on.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from leafe_jax.agent.chat import ChatFormat, load_chat
from leafe_jax.agent.seeds import seed_for
from leafe_jax.bootstrap.config import BootstrapConfig, ShapeConfig
from leafe_jax.bootstrap.corpus import Game, Turn, open_games, write_corpus
from leafe_jax.bootstrap.examples import MAX_POSITIONS, to_example
from leafe_jax.bootstrap.vocabulary import build_tokenizer
from leafe_jax.errors import UserError
from leafe_jax.models import hf
from leafe_jax.models.decoder import ModelConfig, init_params
from leafe_jax.models.sharding import cast
from leafe_jax.runtime import processes
from leafe_jax.runtime.files import read_json_lines, whole
from leafe_jax.runtime.memory import DIVIDE, needed_for
from leafe_jax.runtime.progress import Progress
from leafe_jax.training.objectives import sft
from leafe_jax.training.records import ExampleFile, write_examples
from leafe_jax.training.start import Data, Start, check, place
from leafe_jax.training.trainer import fit

_ANY_VOCABULARY = 4096  # vocabulary size for checks that run before there is a tokenizer


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model to continue training from, with its tokenizer.

    Attributes:
      path: directory in Hugging Face format.
      chat_template: Jinja file that replaces the checkpoint's template; "" keeps that.
      enable_thinking: given to templates that ask for it.
    """

    path: Path
    chat_template: str
    enable_thinking: bool


def _shape(shape: ShapeConfig, vocab_size: int) -> ModelConfig:
    hidden, heads = shape.hidden_size, shape.num_heads
    if heads < 1 or hidden % heads:
        raise UserError(
            f"bootstrap.model.hidden_size = {hidden}: must be a multiple of num_heads = {heads};"
            " transformers cannot open other models"
        )
    return ModelConfig(
        model_type="llama",  # docs/BASE_MODEL.md says why not qwen2
        vocab_size=vocab_size,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        max_position_embeddings=MAX_POSITIONS,
        **dataclasses.asdict(shape),
    )


def _write(path: Path, config: BootstrapConfig, games: list[Game], seed: int) -> None:
    """Writes a run's corpus unless the file already holds it: some of the games are slow to play."""
    if path.exists():
        try:
            if len(_read(path, games)) == config.num_conversations:
                return
            problem = f"{path}: incomplete"
        except UserError as error:
            problem = str(error)
        logging.getLogger("leafe_jax").warning("bootstrap: %s; writing it again", problem)
    with (
        whole(path) as file,
        Progress(config.num_conversations, "conversation", "bootstrap") as bar,
    ):
        for game, turns in write_corpus(config, games, seed):
            file.write(json.dumps({"game": game.name, "turns": turns}) + "\n")
            bar.update(1)


def _read(path: Path, games: list[Game]) -> list[tuple[str, list[Turn]]]:
    """(game, conversation) pairs of a corpus. A line that is not a conversation raises a UserError."""
    names, conversations = {game.name for game in games}, []
    for number, line in enumerate(read_json_lines(path), start=1):
        turns = line.get("turns") if isinstance(line, dict) else None
        known = isinstance(turns, list) and line.get("game") in names
        if not known or not all(
            isinstance(turn, dict) and {"role", "text"} <= turn.keys() for turn in turns
        ):
            raise UserError(f"{path}, line {number}: not a conversation")
        conversations.append((line["game"], turns))
    return conversations


def run(
    config: BootstrapConfig,
    seed: int,
    max_len: int,
    start: Checkpoint | None,
    directory: Path,
    begin: Callable[[], None],
    log: Callable[[int, dict[str, float]], None],
    progress: Callable[[int, int], None],
) -> None:
    """Writes `directory`/corpus.jsonl if it is not there yet, and trains `directory`/model (Hugging Face
    format).

    Args:
      config: corpus, shape and training.
      seed: of the run.
      max_len: tokens of the longest conversation.
      start: the model to continue training from; None starts from random weights and makes a tokenizer.
      directory: of the phase.
      begin: called once all fields are checked, before anything is written.
      log: log(step, measurements).
      progress: progress(step, total).

    Raises:
      UserError: a field of `bootstrap.games` or `bootstrap.train`, or `sampler.max_len`, is invalid.
      EnvDataError: an option of a game is invalid.
    """
    corpus = directory / "corpus.jsonl"
    seq_len = config.train.seq_len
    if not 1 <= max_len <= seq_len:
        raise UserError(
            f"sampler.max_len = {max_len}: must be from 1 to bootstrap.train.seq_len = {seq_len}, the"
            " longest conversation that training takes"
        )
    model_config = (
        _shape(config.model, _ANY_VOCABULARY) if start is None else hf.read_config(start.path)
    )
    check(config.train, model_config)
    with open_games(config) as games:
        begin()
        processes.together(
            "bootstrap: corpus", decide=lambda _: _write(corpus, config, games, seed), seconds=None
        )
    conversations = _read(corpus, games)
    if start is None:
        tokenizer = build_tokenizer([turns for _, turns in conversations], config.min_count, games)
        model_config = _shape(config.model, len(tokenizer))
        key = jax.random.key(seed_for(seed, "bootstrap", "init"))
        load_params = place(init_params(model_config, key))
        open_chat = functools.partial(ChatFormat, tokenizer)
    else:
        model_config = hf.read_config(start.path)
        load_params = functools.partial(hf.load_params, start.path, model_config)
        open_chat = functools.partial(
            load_chat, str(start.path), model_config.vocab_size, start.chat_template,
            start.enable_thinking,
        )  # fmt: skip
    chats = {game.name: open_chat(system=game.prompts.system) for game in games}
    mass = config.observation_mass
    records = directory / "examples.array_record"
    write_examples(
        records, [to_example(turns, chats[game], mass, max_len) for game, turns in conversations]
    )
    params = fit(
        Start(model_config, load_params),
        Data(ExampleFile(records), {"corpus": 1.0}),
        config.train,
        sft(),
        directory=directory / "checkpoints",
        seed=seed_for(seed, "bootstrap", "data"),
        log=log,
        progress=progress,
    )
    files: dict[str, Any]
    if start is None:
        files = {"tokenizer": tokenizer}
    else:
        files = {"source": start.path, "chat_template": start.chat_template}
    with needed_for("writing the trained model", DIVIDE):
        hf.save(directory / "model", model_config, cast(params, config.dtype), **files)
