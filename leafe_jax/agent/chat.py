"""Token ids of user turns, made by the checkpoint's own tokenizer and chat template.

A conversation grows by appending ids. Sampled ids are never decoded and tokenised again. `ChatFormat`
renders a sample conversation once and takes from it what the template writes around a user turn.

Only the template writes control tokens. A message has the ids that transformers' apply_chat_template
gives it, with one exception: where it spells a control token, it has the ids of those characters.

Some templates rewrite earlier turns. Qwen3's drops the thinking of every assistant turn but the last.
A growing conversation keeps it, because the KV cache and the training data hold what was sampled.
Contexts that are rebuilt every step ("window") never show it.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leafe_jax.agent.templates import TemplateError, chosen_template, read_template, render
from leafe_jax.agent.tokenizer import ControlTokens, first_line, load_tokenizer
from leafe_jax.errors import UserError
from leafe_jax.runtime.model_files import read_json, shown

_USER, _ASSISTANT, _NEXT = "leafe-user-turn", "leafe-assistant-turn", "leafe-next-turn"
# A message that shows whether the template changes text. It may strip the whitespace around it, but
# nothing in between.
_SAID = _USER + " <b title=\"x\">'&'</b>\n\n  {{ y }}\tÜ"
_LEFT, _RIGHT = "\n \n\t ", " \t\n \n"
_STRIPS: tuple[Callable[[str], str], ...] = (str, lambda text: text.strip("\n"), str.strip)
# The date that templates are told; Llama 3.1's falls back to it. With today's date, the same run would
# have other tokens tomorrow. Templates that read the clock get the same day (see render_template).
_DATE = "26 Jul 2024"
_CACHE_BYTES = 2**26  # memory of the prompt cache
_SURROGATES = re.compile("[\ud800-\udfff]")


class PromptCache:
    """The ids of the most recently used prompts.

    Args:
      max_bytes: limit on the size of texts and ids together, as Python objects.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._kept: collections.OrderedDict[tuple[bool, str], tuple[int, ...]]
        self._kept = collections.OrderedDict()

    @staticmethod
    def _size(key: tuple[bool, str], ids: tuple[int, ...]) -> int:
        # 8 bytes per tuple element and 32 per integer, up to 4 per character, 500 for the entry.
        return 40 * len(ids) + 4 * len(key[1]) + 500

    def get(self, key: tuple[bool, str], make: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        """The ids of `key` (a frame and a message); calls `make` if the cache does not hold them."""
        ids = self._kept.get(key)
        if ids is not None:
            self._kept.move_to_end(key)
            return ids
        ids = make()
        self.num_bytes += self._size(key, ids)
        self._kept[key] = ids
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._size(*self._kept.popitem(last=False))
        return ids


class ChatFormat:
    """Token ids of user messages, for one tokenizer.

    Args:
      tokenizer: a transformers tokenizer with a chat template and an EOS token, or a
        SentencePieceTokenizer.
      stop_ids: ids that end a reply, in addition to the tokenizer's EOS (from `read_stop_ids`).
      enable_thinking: value of the variable of that name, which Qwen3's template reads.
      system: system message; "" gives none, so that the template's default applies.

    Attributes:
      stop_ids: all ids that end a reply, ascending: those given, the tokenizer's EOS, and turn_end.
      turn_end: the token that the template writes at the end of a reply; None if it writes none.
      reply_end: last token of a reply that was not sampled (a scripted player's).

    Raises:
      UserError: no chat template, no EOS token, a template that does not repeat its messages, or a
        system message that the template drops or that spells a control token.
      TemplateError: the template cannot be rendered.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_ids: Sequence[int] = (),
        enable_thinking: bool = True,
        system: str = "",
    ):
        template = chosen_template(tokenizer)
        if tokenizer.eos_token_id is None:
            raise UserError("model.path: the tokenizer has no EOS token")
        self.tokenizer = tokenizer
        eos = int(tokenizer.eos_token_id)
        names = {k: v if isinstance(v, str) else str(v) for k, v in _special_names(tokenizer)}
        head = [("system", system)] if system else []
        past = [*head, ("user", _USER), ("assistant", _ASSISTANT)]
        first, probe, ended, grown = render(
            template,
            [
                ([*head, ("user", _USER)], True),
                ([*head, ("user", _LEFT + _SAID + _RIGHT)], True),
                (past, False),
                ([*past, ("user", _NEXT)], True),
            ],
            **{**names, "enable_thinking": enable_thinking, "date_string": _DATE},
        )
        self._first = _around(first, _USER)
        self._strip = _strip_of(probe, self._first)
        tail = _around(ended, _ASSISTANT)[1]  # e.g. "<|im_end|>\n"
        after = _around(grown, _ASSISTANT)[1]
        written = (first + grown).replace(system.strip(), "")
        self.control = ControlTokens(tokenizer, (eos, *stop_ids), written)
        self._check_system(system, first)
        # A reply ends with the sampled end of its turn. Only what follows it has to be appended.
        self.turn_end: int | None = None
        if (end := self.control.leading(tail.lstrip())) is not None:
            self.turn_end, _ = end
            _, after = self.control.leading(after.lstrip()) or end
        # The template's end of a reply ends one, even if no file of the checkpoint says so.
        ends = {eos, *stop_ids} | (set() if self.turn_end is None else {self.turn_end})
        self.stop_ids = tuple(sorted(ends))
        self.reply_end = eos if self.turn_end is None else self.turn_end
        self._next = _around(after, _NEXT)
        self._cache = PromptCache(_CACHE_BYTES)
        # The control tokens that each frame writes around any message.
        self._framing = {f: self.control.among(self._encode(f[0] + "x" + f[1])) for f in self._both}

    def _check_system(self, system: str, rendered: str) -> None:
        if system.strip() not in rendered:
            raise UserError("prompts.system: the chat template drops or changes the system message")
        if len(self.control.broken(system)) > 1:
            raise UserError("prompts.system: the system message must not spell a control token")

    @property
    def _both(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return self._first, self._next

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _turn(self, frame: tuple[str, str], content: str) -> tuple[int, ...]:
        return self._cache.get((frame is self._first, content), lambda: self._ids(frame, content))

    def _ids(self, frame: tuple[str, str], content: str) -> tuple[int, ...]:
        # JSON can hold half a surrogate pair, UTF-8 cannot, and tokenizers refuse it.
        if not content.isascii():
            content = _SURROGATES.sub("\ufffd", content)
        content = self._strip(content)
        ids = self._encode(frame[0] + content + frame[1])
        if self.control.among(ids) == self._framing[frame]:
            return ids
        # The message spells a control token. So it is encoded apart from the template's control tokens,
        # in pieces that spell none. Ids that still are control tokens are left out.
        head, before, behind, tail = self.control.around(frame)
        pieces = [self._encode(p) for p in self.control.broken(before + content + behind)]
        text = [i for piece in pieces for i in piece]
        spelt = set(self.control.among(text))
        return (*self._encode(head), *(i for i in text if i not in spelt), *self._encode(tail))

    def first_turn(self, content: str) -> tuple[int, ...]:
        """Ids of a conversation's first user turn, up to where the model starts sampling."""
        return self._turn(self._first, content)

    def next_turn(self, content: str, last_id: int) -> tuple[int, ...]:
        """Ids to append after a sampled turn for the next user turn.

        Args:
          content: the user's text.
          last_id: last sampled id. If it is not `turn_end`, the result begins with `turn_end`, which
            belongs to the prompt and is never trained on.
        """
        ids = self._turn(self._next, content)
        if self.turn_end is None:
            # If the token that begins a turn also ends replies, the model may have sampled it already.
            return ids[1:] if ids[:1] == (last_id,) and last_id in self.stop_ids else ids
        return ids if last_id == self.turn_end else (self.turn_end, *ids)

    def turn(self, before: Sequence[int], text: str) -> tuple[int, ...]:
        """Ids of a user turn behind the ids `before`; of the first turn if there are none."""
        return self.next_turn(text, before[-1]) if before else self.first_turn(text)

    def reply(self, text: str) -> tuple[int, ...]:
        """Ids of a reply that was not sampled, with the token that ends it. Where the text spells a control
        token, it has the ids of those characters."""
        text = _SURROGATES.sub("\ufffd", text)
        ids = [i for piece in self.control.broken(text) for i in self._encode(piece)]
        spelt = set(self.control.among(ids))
        return (*(i for i in ids if i not in spelt), self.reply_end)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids without special tokens; spaces are kept."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def holds(self, string: str) -> Callable[[Sequence[int]], bool]:
        """A function that tells whether the text of ids contains `string`.

        `string` may spell control tokens.
        """
        spells = len(self.control.broken(string)) > 1

        def found(ids: Sequence[int]) -> bool:
            text = self.tokenizer.decode(
                ids, skip_special_tokens=not spells, clean_up_tokenization_spaces=False
            )
            return string in text

        return found


def _special_names(tokenizer: Any) -> list[tuple[str, object]]:
    """(name, token) pairs that transformers passes to a template, e.g. bos_token."""
    found = tokenizer.special_tokens_map.items()
    return [(name, value) for name, value in found if not isinstance(value, (list, tuple, dict))]


def _around(text: str, message: str) -> tuple[str, str]:
    """What the template writes before and after a message."""
    parts = text.split(message)
    if len(parts) != 2:
        what = "drops messages" if len(parts) < 2 else "repeats messages"
        raise UserError(f"model.path: the chat template {what} of a conversation")
    return parts[0], parts[1]


def _strip_of(probe: str, frame: tuple[str, str]) -> Callable[[str], str]:
    """What the template does to the whitespace around a message, by the rendered probe."""
    for strip in _STRIPS:
        if probe == frame[0] + strip(_LEFT + _SAID + _RIGHT) + frame[1]:
            return strip
    raise UserError(
        "model.path: the chat template changes the text of messages; it may only strip the whitespace"
        " around them"
    )


def load_chat(
    path: str,
    vocab_size: int,
    chat_template: str = "",
    enable_thinking: bool = True,
    system: str = "",
) -> ChatFormat:
    """The chat format of a checkpoint directory.

    Args:
      path: a Hugging Face model directory.
      vocab_size: rows of the model's embedding.
      chat_template: Jinja file that replaces the checkpoint's template; "" takes the checkpoint's.
      enable_thinking, system: see ChatFormat.

    Raises:
      UserError: see `load_tokenizer` and `ChatFormat`; a template file that cannot be read.
    """
    tokenizer = load_tokenizer(path, vocab_size)
    if chat_template:
        try:
            tokenizer.chat_template = read_template(chat_template)
        except UserError as error:
            raise UserError(f"model.chat_template = {chat_template}: {error}") from error
    try:
        stop_ids = read_stop_ids(Path(path), vocab_size)
        return ChatFormat(tokenizer, stop_ids, enable_thinking, system)
    except TemplateError as error:
        raise UserError(
            f"model.path = {path}: the chat template cannot be used: {error}"
        ) from error
    except UserError:
        raise
    except BaseException as error:  # the tokenizers library raises its panics as BaseException
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise UserError(
            f"model.path = {path}: the tokenizer cannot encode: {first_line(error)}"
        ) from error


def read_stop_ids(directory: Path, vocab_size: int) -> tuple[int, ...]:
    """All ids that end a reply according to the checkpoint's files; Llama 3.1 has three.

    As in transformers, they are read from generation_config.json, or from config.json if that file
    is absent or names none.

    Raises:
      UserError: an id is not below `vocab_size`.
    """
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        found = read_json(file).get("eos_token_id") if file.exists() else None
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
            raise UserError(
                f"{file}: eos_token_id = {shown(found)}: must be ids below the vocab_size"
                f" {vocab_size}"
            )
        if ids:
            return tuple(ids)
    return ()
