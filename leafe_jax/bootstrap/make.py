"""The `bootstrap` phase: makes the embedded base model from scripted players (docs/BASE_MODEL.md).

Corpus (corpus.py) -> tokenizer (vocabulary.py) -> model. The corpus is written by players with known
bad habits (envs/player.py), so the model learns to act (often wrongly), to reflect (name the first
mistake and what to do instead) and to follow an experience it is given: it knows when told what it
does not do unasked, which is the condition that the paper's method lives off.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import jax

from leafe_jax.agent.chat import ChatFormat, load_chat
from leafe_jax.agent.seeds import seed_for
from leafe_jax.bootstrap.corpus import Game, Turn, open_games, write_corpus
from leafe_jax.bootstrap.examples import MAX_POSITIONS, to_example
from leafe_jax.bootstrap.vocabulary import build_tokenizer
from leafe_jax.errors import UserError
from leafe_jax.models import hf
from leafe_jax.models.decoder import ModelConfig, init_params
from leafe_jax.runtime import processes
from leafe_jax.runtime.files import read_json_lines, whole
from leafe_jax.runtime.memory import DIVIDE, needed_for
from leafe_jax.runtime.progress import Progress
from leafe_jax.runtime.settings import build
from leafe_jax.training.objectives import sft
from leafe_jax.training.records import ExampleFile, write_examples
from leafe_jax.training.settings import TrainConfig
from leafe_jax.training.trainer import Data, Start, check, fit, place

_ANY_VOCABULARY = 4096  # for checks before there is a tokenizer


# -- examples --------------------------------------------------------------------------------------


# -- the phase -------------------------------------------------------------------------------------
def _shape(config, vocab_size: int) -> ModelConfig:
    hidden, heads = config.bootstrap.model.hidden_size, config.bootstrap.model.num_heads
    if heads < 1 or hidden % heads:
        raise UserError(
            f"bootstrap.model.hidden_size = {hidden}: must be a multiple of num_heads = {heads};"
            " transformers opens no other model"
        )
    return ModelConfig(
        model_type="llama",  # docs/BASE_MODEL.md says why not qwen2
        vocab_size=vocab_size,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        max_position_embeddings=MAX_POSITIONS,
        **config.bootstrap.model,
    )


def _write(path: Path, config, games: list[Game]) -> None:
    """The corpus of a run, unless it is there already: half the games take their time."""
    if path.exists():
        try:
            if len(_read(path)) == config.bootstrap.num_conversations:
                return
            problem = f"{path}: cut short"
        except UserError as error:
            problem = str(error)
        logging.getLogger("leafe_jax").warning("bootstrap: %s; it is made again", problem)
    with (
        whole(path) as file,
        Progress(config.bootstrap.num_conversations, "conversation", "bootstrap") as bar,
    ):
        for game, turns in write_corpus(config, games, config.seed):
            file.write(json.dumps({"game": game.name, "turns": turns}) + "\n")
            bar.update(1)


def _read(path: Path) -> list[list[Turn]]:
    """The conversations of a corpus; UserError names a line that is none."""
    conversations = []
    for number, line in enumerate(read_json_lines(path), start=1):
        turns = line.get("turns") if isinstance(line, dict) else None
        if not isinstance(turns, list) or not all(
            isinstance(turn, dict) and {"role", "text"} <= turn.keys() for turn in turns
        ):
            raise UserError(f"{path}, line {number}: not a conversation")
        conversations.append(turns)
    return conversations


def run(
    config,
    start_from: Path | None,
    directory: Path,
    begin: Callable[[], None],
    log: Callable,
    progress: Callable,
) -> None:
    """Writes `directory`/corpus.jsonl, once, and trains `directory`/model (HF format).

    Args:
      config: the whole config, with its `bootstrap` section.
      start_from: a model to train on from, with its tokenizer; None starts with random weights and
        makes a tokenizer.
      directory: of the phase.
      begin: called before anything is written, when every field has been checked.
      log: log(step, measurements).
      progress: progress(step, total).

    Raises:
      UserError: a field of `bootstrap.games` or `bootstrap.train` is wrong, or `sampler.max_len`.
      EnvDataError: an option of a game is.
    """
    corpus = directory / "corpus.jsonl"
    max_len, seq_len = config.sampler.max_len, config.bootstrap.train.seq_len
    if not 1 <= max_len <= seq_len:
        raise UserError(
            f"sampler.max_len = {max_len}: must be 1 to bootstrap.train.seq_len = {seq_len}, for"
            " conversations are as long"
        )
    model_config = (
        _shape(config, _ANY_VOCABULARY) if start_from is None else hf.read_config(start_from)
    )
    train = build(TrainConfig, config.bootstrap.train, "bootstrap.train")
    check(train, model_config)
    with open_games(config) as games:
        begin()
        processes.together(
            "bootstrap: corpus", decide=lambda _: _write(corpus, config, games), seconds=None
        )
    conversations = _read(corpus)
    if start_from is None:
        tokenizer = build_tokenizer(conversations, config.bootstrap.min_count, games)
        model_config = _shape(config, len(tokenizer))
        key = jax.random.key(seed_for(config.seed, "bootstrap", "init"))
        load_params = place(init_params(model_config, key))
        chat = ChatFormat(tokenizer)
    else:
        model_config = hf.read_config(start_from)
        load_params = functools.partial(hf.load_params, start_from, model_config)
        model = config.model
        chat = load_chat(
            str(start_from), model_config.vocab_size, model.chat_template, model.enable_thinking
        )
    mass = config.bootstrap.observation_mass
    records = directory / "examples.array_record"
    write_examples(records, [to_example(turns, chat, mass, max_len) for turns in conversations])
    params = fit(
        Start(model_config, load_params),
        Data(ExampleFile(records), {"corpus": 1.0}),
        train,
        sft(),
        directory=directory / "checkpoints",
        seed=seed_for(config.seed, "bootstrap", "data"),
        log=log,
        progress=progress,
    )
    files = {"tokenizer": chat.tokenizer}
    if start_from is not None:
        files = {"source": start_from, "chat_template": config.model.chat_template}
    with needed_for("writing the trained model", DIVIDE):
        hf.save(directory / "model", model_config, params, **files)
