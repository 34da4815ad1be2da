"""The embedded model's tokenizer: phrases, names and words of its corpus are tokens, the rest is bytes."""

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
_STEP = r"\[\d+\]"  # a step number is one token, so that a small model can copy it in one step
_NUMBER = r" ?\d+"
_WORD = r" ?[A-Za-z']+| ?\d+|[^\sA-Za-z0-9]+|\s"


class Wording(Protocol):
    """Regular expressions that describe the texts of a game; see envs.player.Player."""

    units: str
    spelt: str


def build_tokenizer(
    conversations: Iterable[list[dict]], min_count: int, wordings: Sequence[Wording]
):
    """A transformers tokenizer for a corpus, with its chat template and special tokens.

    It is a byte-level BPE tokenizer without merges. Units, the phrases between them ("You arrive at",
    ", and a") and the words of the rest become tokens if they occur at least `min_count` times. Other
    text is split into bytes, so every string can be encoded and decoded exactly.

    Args:
      conversations: the corpus: lists of turns, each with a "text".
      min_count: occurrences that a token needs.
      wordings: of the games in the corpus.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = collections.Counter(turn["text"] for turns in conversations for turn in turns)
    units = [wording.units for wording in wordings if wording.units]
    spelt = [wording.spelt for wording in wordings if wording.spelt]
    # Advice must have the same tokens where it is given and where the model writes it, so no phrase
    # crosses a line break or the word that introduces advice.
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
    # With ignore_merges, as in Llama 3, a whole pre-token is looked up before it is split into bytes.
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
    """Share of tokens that are bytes of a word that is not a token itself."""
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    known = tokenizer.get_vocab()
    spelt = total = 0
    for text, times in collections.Counter(texts).items():
        for piece, _ in split(text):
            size = 1 if piece in known else len(piece)  # each character stands for one byte
            total += times * size
            spelt += times * size * (piece not in known)
    return spelt / max(1, total)
