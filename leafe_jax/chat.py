"""Between text and token ids: the checkpoint's own tokenizer and chat template.

A conversation grows by appending ids. What was sampled stays as sampled: nothing is ever decoded
and tokenised again. `ChatFormat` renders each new user turn through the template once, as the text
that the template puts between the end of the last assistant turn and the next sampled token.

Some templates rewrite earlier turns: Qwen3's drops the thinking of every assistant turn but the last.
A growing conversation keeps it, since the model's cache and the training data hold what was sampled;
contexts that are rebuilt every step ("window") never show it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from leafe_jax.errors import UserError
from leafe_jax.models.hf_config import read_json

_USER, _ASSISTANT, _NEXT = "leafe-user-turn", "leafe-assistant-turn", "leafe-next-turn"
# Llama 3.2's template writes today's date into the prompt unless it is told one: the same run would
# have other tokens tomorrow. This is the date that the template of 3.1 falls back to.
_DATE = "26 Jul 2024"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class ChatFormat:
    """Turns user messages into token ids for one tokenizer.

    Args:
      tokenizer: a transformers tokenizer with a chat template and an EOS token.
      stop_ids: ids that end a reply beside the tokenizer's EOS (from `read_stop_ids`).
      enable_thinking: what templates that ask for it (Qwen3) are told.

    Raises:
      UserError: no chat template, no EOS token, or a template that does not repeat its messages.
    """

    def __init__(self, tokenizer, stop_ids: Sequence[int] = (), enable_thinking: bool = True):
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "model.path: the tokenizer has no chat template; name a file with one in"
                " model.chat_template"
            )
        if tokenizer.eos_token_id is None:
            raise UserError("model.path: the tokenizer has no EOS token")
        self.tokenizer = tokenizer
        self._template_args = {"enable_thinking": enable_thinking, "date_string": _DATE}
        # Templates may trim or rewrite turns, so the delta is cut out of a whole rendering.
        first = self._render([("user", f" {_USER} ")], prompt=True)
        turns = [("user", _USER), ("assistant", _ASSISTANT)]
        past = self._render(turns, prompt=False)
        grown = self._render([*turns, ("user", _NEXT)], prompt=True)
        if _USER not in first or _ASSISTANT not in grown or _NEXT not in grown:
            raise UserError("model.path: the chat template drops messages of a conversation")
        self._trims = f" {_USER} " not in first
        self._first = first.split(_USER if self._trims else f" {_USER} ", 1)
        tail = past.split(_ASSISTANT, 1)[1]  # e.g. "<|im_end|>\n"
        after = grown.split(_ASSISTANT, 1)[1]
        self.stop_ids = tuple(sorted({int(tokenizer.eos_token_id), *stop_ids}))
        # The sampled turn ends with a sampled stop token; only what follows has to be appended.
        self.turn_end = self._leading_stop(tail)
        if self.turn_end is not None:
            after = after[len(tokenizer.convert_ids_to_tokens(self.turn_end)) :]
        # What a reply that someone writes by hand (a scripted player's) ends with.
        self.reply_end = int(tokenizer.eos_token_id) if self.turn_end is None else self.turn_end
        self._next = after.split(_NEXT, 1)
        self._ids = functools.lru_cache(maxsize=65536)(self._encode)

    def _leading_stop(self, tail: str) -> int | None:
        """The stop token that the template puts after a reply."""
        for stop in self.stop_ids:
            if tail.startswith(self.tokenizer.convert_ids_to_tokens(stop)):
                return stop
        return None

    def _render(self, turns: list[tuple[str, str]], prompt: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, **self._template_args
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _turn(self, frame: list[str], content: str) -> tuple[int, ...]:
        return self._ids(frame[0] + (content.strip() if self._trims else content) + frame[1])

    def first_turn(self, content: str) -> tuple[int, ...]:
        """Ids of a conversation's first user turn, up to where the model starts sampling."""
        return self._turn(self._first, content)

    def next_turn(self, content: str, last_id: int) -> tuple[int, ...]:
        """Ids to append after a sampled turn for the next user turn.

        Args:
          content: the user's text.
          last_id: last sampled id; if it is not the template's end of a turn, that is appended here
            (and belongs to the prompt, so it is never trained on).
        """
        ids = self._turn(self._next, content)
        if self.turn_end is not None and last_id != self.turn_end:
            return (self.turn_end, *ids)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of sampled ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


class SentencePieceTokenizer:
    """A bare sentencepiece `tokenizer.model`, encoded by sentencepiece itself.

    transformers 5 converts such a file without its normaliser, which gives other ids. Control pieces
    that stand in the text (`</s>`) become their ids; each stretch between two is encoded alone.

    Args:
      path: the model file.
      chat_template: Jinja text or None; the file itself has none.
    """

    def __init__(self, path: Path, chat_template: str | None = None):
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor(model_file=str(path))
        self.chat_template = chat_template
        eos = self._model.eos_id()
        self.eos_token_id = None if eos < 0 else eos
        self._control = {
            self._model.id_to_piece(i): i
            for i in range(self._model.vocab_size())
            if self._model.is_control(i)
        }
        pieces = sorted(self._control, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, pieces)) or r"(?!)")

    def get_vocab(self) -> dict[str, int]:
        return {self._model.id_to_piece(i): i for i in range(self._model.vocab_size())}

    def convert_ids_to_tokens(self, index: int) -> str:
        return self._model.id_to_piece(index)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`; nothing is added to it."""
        assert not add_special_tokens, "the chat template says which special tokens there are"
        ids: list[int] = []
        begin = 0
        for found in self._split.finditer(text):
            ids += self._model.encode(text[begin : found.start()])
            ids.append(self._control[found.group()])
            begin = found.end()
        return ids + self._model.encode(text[begin:])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; control pieces have none."""
        assert skip_special_tokens
        return self._model.decode([int(i) for i in ids])

    def apply_chat_template(self, messages, *, tokenize: bool, **arguments) -> str:
        """The conversation as text; see transformers' method of the same name."""
        from transformers.utils.chat_template_utils import render_jinja_template

        assert not tokenize
        names = {"bos_token": self._model.bos_id(), "eos_token": self._model.eos_id()}
        tokens = {k: self._model.id_to_piece(i) if i >= 0 else "" for k, i in names.items()}
        texts, _ = render_jinja_template(
            conversations=[messages], chat_template=self.chat_template, **tokens, **arguments
        )
        return texts[0]


def load_chat(
    path: str, vocab_size: int, chat_template: str = "", enable_thinking: bool = True
) -> ChatFormat:
    """The chat format of a checkpoint directory.

    Args:
      path: a Hugging Face model directory.
      vocab_size: rows of the model's embedding.
      chat_template: Jinja file to use in place of the checkpoint's own template; "" for its own.
      enable_thinking: see ChatFormat.

    Raises:
      UserError: see `load_tokenizer` and `ChatFormat`; a template file that cannot be read.
    """
    tokenizer = load_tokenizer(path, vocab_size)
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"model.chat_template = {chat_template}: {error}") from error
    try:
        return ChatFormat(tokenizer, read_stop_ids(Path(path), vocab_size), enable_thinking)
    except UserError:
        raise
    except Exception as error:  # jinja raises whatever the template makes it raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model.path = {path}: the chat template cannot be used: {reason}"
        ) from error


def read_stop_ids(directory: Path, vocab_size: int) -> tuple[int, ...]:
    """All ids that end a reply by generation_config.json, e.g. three of them in Llama 3.1."""
    file = directory / "generation_config.json"
    if not file.is_file():
        return ()
    found = read_json(file).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(i, int) and 0 <= i < vocab_size for i in ids):
        raise UserError(
            f"{file}: eos_token_id = {found!r}: must be ids below the vocab_size {vocab_size}"
        )
    return tuple(ids)


def load_tokenizer(path: str, vocab_size: int):
    """Opens the tokenizer of a checkpoint directory: whatever AutoTokenizer opens, or a bare
    sentencepiece `tokenizer.model`.

    Args:
      path: a Hugging Face model directory.
      vocab_size: rows of the model's embedding; every token id must be below it.

    Raises:
      UserError: no tokenizer there, or ids beyond the model's vocabulary.
    """
    from transformers import AutoTokenizer

    directory = Path(path)
    found = [name for name in _TOKENIZER_FILES if (directory / name).is_file()]
    if not found:
        raise UserError(
            f"model.path = {path}: no tokenizer there; expected one of"
            f" {', '.join(_TOKENIZER_FILES)}"
        )
    try:
        if found == ["tokenizer.model"]:
            template = directory / "chat_template.jinja"
            tokenizer = SentencePieceTokenizer(
                directory / "tokenizer.model",
                template.read_text(encoding="utf-8") if template.is_file() else None,
            )
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # transformers raises whatever its parsers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model.path = {path}: the tokenizer cannot be read: {reason}") from error
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise UserError(
            f"model.path = {path}: tokenizer has id {largest}, but the model's vocab_size is"
            f" {vocab_size}; tokenizer and model do not belong together"
        )
    return tokenizer
