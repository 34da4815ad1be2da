"""The `bootstrap` phase: makes the embedded base model from scripted players (docs/BASE_MODEL.md).

Corpus -> tokenizer -> model. The corpus is written by players with known bad habits
(envs/household_player.py): each is aware of a habit with a small, graded probability unless an
experience in its context tells it. So the model learns to act (often wrongly), to reflect (name the
first mistake and what to do instead) and to follow an experience it is given: it knows when told
what it does not do unasked, which is the condition that the paper's method lives off.
Only tasks of the "bootstrap" split are played; held-out and stage-1 rooms never appear here.
"""

from __future__ import annotations

import collections
import functools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs.base import stable_seed
from envs.household import FAMILIES, Household, make_room
from envs.household_player import ALL_AWARE, HABITS, Memory, advice, decide, diagnose
from envs.prompts import Prompts
from leafe_jax.chat import ChatFormat, load_chat
from leafe_jax.errors import UserError
from leafe_jax.models import hf
from leafe_jax.models.decoder import ModelConfig, init_params
from leafe_jax.seeds import seed_for
from leafe_jax.training.data import Example, ExampleFile, write_examples
from leafe_jax.training.loop import fit, place

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# A name with its number (` mug 2`) or a step number (`[7]`) is one token: what a small model has
# to copy, it can then copy in one step.
_NAME = r" ?[a-z]+ \d+"
_STEP = r"\[\d+\]"
_WORD = r" ?[A-Za-z']+| ?\d+|[^\sA-Za-z0-9]+|\s"

Conversation = list[dict[str, Any]]  # {"role", "text", "trained"}


# -- corpus ----------------------------------------------------------------------------------------
def _slip(room, state, rng: random.Random) -> str:
    """A harmless wrong turn, so that the model has seen histories that are not ideal."""
    place = rng.choice([r for r in room.receptacles if r != state.location])
    return rng.choice(("look", f"go to {place}"))


def write_conversation(env: Household, prompts: Prompts, task_id: str, config, rng) -> Conversation:
    """One scripted episode, as a conversation.

    A flawed player plays; if a level is drawn, its first mistake is diagnosed, the episode goes back
    to that step and goes on with the advice in the context (once or twice); finally the outcome may
    be reflected on. The mistakes themselves stay in the conversations of level 0.

    Args:
      env, prompts: the household and its prompts.
      task_id: a task of the "bootstrap" split.
      config: `config.bootstrap` (unaided_rates, rate_scale, levels, slip_rate, reflect_rate).
      rng: the conversation's own random.Random.
    """
    room = make_room(task_id)
    unaided = frozenset(
        h for h in HABITS if rng.random() < config.rate_scale * config.unaided_rates[h]
    )
    level = rng.choices(range(len(config.levels)), weights=config.levels)[0]
    told: dict[int, str] = {}
    actions: list[str] = []
    slips: set[int] = set()
    aware = unaided
    while True:
        actions, observations, success = _play(env, task_id, actions, slips, aware, config, rng)
        if success or len(told) == level:
            break
        mistake = diagnose(env, task_id, actions, told)
        if mistake is None or mistake[0] in told:
            break
        tau, habit = mistake
        told[tau] = advice(habit, room)
        aware = aware | {habit}
        actions = actions[: tau - 1]
        slips = {s for s in slips if s < tau}
    turns: Conversation = []
    # A failed tail repeats itself; most conversations stop soon after it starts.
    last = len(actions)
    if not success and rng.random() < 0.8:
        last = min(last, _first_repeat(actions) + rng.randrange(1, 4))
    reflect_at = None
    if not success and rng.random() < config.reflect_rate:
        reflect_at = rng.choice([len(actions), len(actions), last, rng.randrange(1, last + 1)])
        last = reflect_at
    for step in range(1, last + 1):
        text = prompts.observation(step, observations[step - 1], told.get(step))
        turns.append({"role": "user", "text": text, "trained": False})
        turns.append(
            {
                "role": "assistant",
                "text": prompts.format_action(actions[step - 1]),
                "trained": step not in slips,
            }
        )
    if reflect_at is not None:
        text = prompts.reflection(last + 1, observations[last])
        turns.append({"role": "user", "text": text, "trained": False})
        mistake = diagnose(env, task_id, actions[:last], told)
        reply = "no mistake."
        if mistake is not None:
            reply = prompts.format_reflection(mistake[0], advice(mistake[1], room))
        turns.append({"role": "assistant", "text": reply, "trained": True})
    return turns


def _first_repeat(actions: list[str]) -> int:
    """Index of the first action equal to its predecessor, or the length."""
    for index in range(1, len(actions)):
        if actions[index] == actions[index - 1]:
            return index
    return len(actions)


def _play(env, task_id, prefix, slips, aware, config, rng) -> tuple[list[str], list[str], bool]:
    """Replays `prefix` and goes on as a player aware of `aware`; slips are added to `slips`."""
    room = make_room(task_id)
    state, observation = env.reset(task_id)
    memory, actions, observations = Memory(), [], [observation]
    while not state.done:
        if len(actions) < len(prefix):
            action = prefix[len(actions)]
        else:
            action, _ = decide(room, state, memory, aware)
            _, habit = decide(room, state, memory, ALL_AWARE)
            # A slip where a habit decides would be indistinguishable from the habit.
            if habit is None and rng.random() < config.slip_rate:
                action = _slip(room, state, rng)
                slips.add(len(actions) + 1)
        state, result = env.step(state, action)
        memory.update(room, state)
        actions.append(action)
        observations.append(result.observation)
    return actions, observations, state.success


def write_corpus(config, seed: int) -> Iterator[Conversation]:
    """`config.bootstrap.num_conversations` conversations, each seeded by its number."""
    weights = [config.bootstrap.family_weights[family] for family in FAMILIES]
    env = Household(horizon=config.env.horizon)
    prompts = Prompts(env.description, config.env.prompt_style, env.name)
    tasks = env.list_tasks("bootstrap")
    for number in range(config.bootstrap.num_conversations):
        rng = random.Random(stable_seed(seed, "bootstrap", number))
        family = rng.choices(FAMILIES, weights)[0]
        pick = rng.randrange(len(tasks) // len(FAMILIES))
        task = tasks[pick * len(FAMILIES) + FAMILIES.index(family)]
        yield write_conversation(env, prompts, task.task_id, config.bootstrap, rng)


# -- tokenizer -------------------------------------------------------------------------------------
def build_tokenizer(conversations: Iterable[Conversation], min_count: int):
    """A byte-level BPE tokenizer without merges: whole phrases and words of the corpus, else bytes.

    The phrases between names ("You arrive at", ", and a") and the words of the rest become entries
    when they occur at least `min_count` times; any other text falls back to bytes, so every string
    can be encoded and decoded exactly.

    Args:
      conversations: the corpus.
      min_count: least occurrences of an entry.

    Returns:
      A transformers tokenizer with the chat template and the special tokens set.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = [turn["text"] for turns in conversations for turn in turns]
    # The advice must be the same tokens where it is given and where it is written, so phrases do
    # not cross a line or the word that introduces it; goals are read word by word, so that new
    # ones can be read.
    phrases = collections.Counter()
    for text in texts:
        phrases.update(re.split(f"{_NAME}|{_STEP}|\n|Experience:|Your task is to:.*", text))
    kept = sorted(
        (p for p, n in phrases.items() if n >= min_count and len(p.split()) > 1),
        key=lambda p: (-len(p), p),
    )
    kept = ["\nExperience:", "\nYour task is to:", *kept]
    pattern = "|".join([_STEP, *[re.escape(p) for p in kept], _NAME, _WORD])
    pieces = collections.Counter()
    for text in texts:
        pieces.update(re.findall(pattern, text))

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: index for index, token in enumerate([PAD, USER, ASSISTANT, END, *alphabet])
    }
    for piece, count in sorted(pieces.items(), key=lambda item: (-item[1], item[0])):
        token = to_bytes.pre_tokenize_str(piece)[0][0]
        if count >= min_count and token not in vocabulary:
            vocabulary[token] = len(vocabulary)
    # ignore_merges looks a pre-token up whole before splitting it into bytes (as Llama 3's does).
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), to_bytes]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in (PAD, USER, ASSISTANT, END)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# -- examples --------------------------------------------------------------------------------------
def to_example(turns: Conversation, chat: ChatFormat, observation_mass: float) -> Example:
    """Token ids and loss mass of a conversation: 1 on replies, `observation_mass` on the rest."""
    ids: list[int] = []
    mass: list[float] = []
    for turn in turns:
        if turn["role"] == "user":
            text = turn["text"]
            new = chat.next_turn(text, ids[-1]) if ids else chat.first_turn(text)
            mass += [observation_mass] * len(new)
        else:
            new = (*chat.tokenizer.encode(turn["text"], add_special_tokens=False), chat.reply_end)
            mass += [float(turn["trained"])] * len(new)
        ids += new
    mass[0] = 0.0
    return Example(np.asarray(ids, np.int32), np.asarray(mass, np.float32), 0)


# -- the phase -------------------------------------------------------------------------------------
def _fresh_model(config, tokenizer):
    """A model with random weights, shaped as `config.bootstrap.model` says."""
    model_config = ModelConfig(
        model_type="llama",  # docs/BASE_MODEL.md says why not qwen2
        vocab_size=len(tokenizer),
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        **config.bootstrap.model,
    )
    key = jax.random.key(seed_for(config.seed, "bootstrap", "init"))
    return model_config, init_params(model_config, key)


def run(
    config, start_from: Path | None, directory: Path, log: Callable, progress: Callable
) -> None:
    """Writes `directory`/corpus.jsonl and trains `directory`/model (HF format).

    Args:
      config: the whole config, with its `bootstrap` section.
      start_from: a model to train on from, with its tokenizer; None starts with random weights and
        makes a tokenizer.
      directory: of the phase.
      log: log(step, measurements).
      progress: progress(step, total).

    Raises:
      UserError: the corpus does not fit the context.
    """
    conversations = list(write_corpus(config, config.seed))
    with open(directory / "corpus.jsonl", "w") as file:
        for turns in conversations:
            file.write(json.dumps(turns) + "\n")
    if start_from is None:
        tokenizer = build_tokenizer(conversations, config.bootstrap.min_count)
        model_config, params = _fresh_model(config, tokenizer)
        load_params = place(params)
        chat = ChatFormat(tokenizer)
    else:
        model_config = hf.read_config(start_from)
        load_params = functools.partial(hf.load_params, start_from, model_config)
        model = config.model
        chat = load_chat(
            str(start_from), model_config.vocab_size, model.chat_template, model.enable_thinking
        )
    examples = [to_example(t, chat, config.bootstrap.observation_mass) for t in conversations]
    longest = max(len(e.ids) for e in examples)
    if longest > config.sampler.max_len:
        raise UserError(
            f"sampler.max_len = {config.sampler.max_len}: the corpus has conversations of {longest}"
        )
    records = directory / "examples.array_record"
    write_examples(records, examples)
    params = fit(
        model_config=model_config,
        load_params=load_params,
        examples=ExampleFile(records),
        train_config=config.bootstrap.train,
        sources=("corpus",),
        source_weights=(1.0,),
        directory=directory / "checkpoints",
        seed=seed_for(config.seed, "bootstrap", "data"),
        log=log,
        progress=progress,
    )
    files = {"tokenizer": chat.tokenizer}
    if start_from is not None:
        files = {"source": start_from, "chat_template": config.model.chat_template}
    hf.save(directory / "model", model_config, params, **files)
