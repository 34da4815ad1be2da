"""The embedded model's tokenizer: whole phrases, names and words of its corpus, else bytes."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_STEP = (
    r"\[\d+\]"  # a step number is one token: what a small model has to copy, it copies in one go
)
_NUMBER = r" ?\d+"
_WORD = r" ?[A-Za-z']+| ?\d+|[^\sA-Za-z0-9]+|\s"


class Wording(Protocol):
    """How the texts of a game are made up; see envs.player.Player."""

    units: str
    spelt: str


def build_tokenizer(
    conversations: Iterable[list[dict]], min_count: int, wordings: Sequence[Wording]
):
    """A byte-level BPE tokenizer without merges: whole phrases and words of the corpus, else bytes.

    The phrases between units ("You arrive at", ", and a"), the units and the words of the rest
    become entries when they occur at least `min_count` times; any other text falls back to bytes, so
    every string can be encoded and decoded exactly.

    Args:
      conversations: the corpus; turns with a "text".
      min_count: least occurrences of an entry.
      wordings: of the games in it.

    Returns:
      A transformers tokenizer with the chat template and the special tokens set.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = collections.Counter(turn["text"] for turns in conversations for turn in turns)
    units = [wording.units for wording in wordings if wording.units]
    spelt = [wording.spelt for wording in wordings if wording.spelt]
    # The advice must be the same tokens where it is given and where it is written, so phrases do
    # not cross a line or the word that introduces it.
    between = re.compile("|".join([_STEP, *spelt, *units, _NUMBER, "\n", "Experience:"]))
    phrases = collections.Counter()
    for text, times in texts.items():
        for phrase in between.split(text):
            phrases[phrase] += times
    kept = sorted(
        (p for p, n in phrases.items() if n >= min_count and len(p.split()) > 1),
        key=lambda p: (-len(p), p),
    )
    heads = ["\nExperience:", "\nYour task is to:"]
    pattern = "|".join([_STEP, *map(re.escape, [*heads, *kept]), *units, _WORD])
    pieces = collections.Counter()
    find = re.compile(pattern)
    for text, times in texts.items():
        for piece in find.findall(text):
            pieces[piece] += times

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


def spelt_share(tokenizer, texts: Iterable[str]) -> float:
    """The share of tokens that are bytes of a word that has no entry of its own."""
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    known = tokenizer.get_vocab()
    spelt = total = 0
    for text, times in collections.Counter(texts).items():
        for piece, _ in split(text):
            size = 1 if piece in known else len(piece)  # one character a byte, in this alphabet
            total += times * size
            spelt += times * size * (piece not in known)
    return spelt / max(1, total)
