"""Between text and token ids: the checkpoint's own tokenizer and chat template.

A conversation grows by appending ids. What was sampled stays as sampled: nothing is ever decoded
and tokenised again. `ChatFormat` renders a conversation through the template once, and takes from it
what the template writes around a user turn.

Control tokens are the template's alone. The text of a message gives the ids that transformers'
apply_chat_template gives, except where it spells a control token: that stays text.

Some templates rewrite earlier turns: Qwen3's drops the thinking of every assistant turn but the last.
A growing conversation keeps it, since the model's cache and the training data hold what was sampled;
contexts that are rebuilt every step ("window") never show it.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from leafe_jax.agent.templates import TemplateError, chosen_template, read_template, render
from leafe_jax.agent.tokenizer import ControlTokens, first_line, load_tokenizer
from leafe_jax.errors import UserError
from leafe_jax.runtime.model_files import read_json, shown

_USER, _ASSISTANT, _NEXT = "leafe-user-turn", "leafe-assistant-turn", "leafe-next-turn"
# A message that shows whether the template changes what is said. The spaces come back or are stripped;
# what stands between must come back as it is.
_SAID = _USER + " <b title=\"x\">'&'</b>\n\n  {{ y }}\tÜ"
_LEFT, _RIGHT = "\n \n\t ", " \t\n \n"
_STRIPS: tuple[Callable[[str], str], ...] = (str, lambda text: text.strip("\n"), str.strip)
# Templates that write the date are told this one, which Llama 3.1's falls back to: the same run would
# have other tokens tomorrow. Those that ask the clock get the same day (see render_template).
_DATE = "26 Jul 2024"
_CACHE_BYTES = 2**26  # most memory of the prompts whose ids are kept
_SURROGATES = re.compile("[\ud800-\udfff]")


class PromptCache:
    """Keeps the ids of the latest prompts, up to a number of bytes.

    Args:
      max_bytes: of texts and ids together, as Python holds them.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._kept: collections.OrderedDict[tuple[bool, str], tuple[int, ...]]
        self._kept = collections.OrderedDict()

    @staticmethod
    def _size(key: tuple[bool, str], ids: tuple[int, ...]) -> int:
        # 8 bytes a place in the tuple and 32 a number; up to 4 a character; the entry itself.
        return 40 * len(ids) + 4 * len(key[1]) + 500

    def get(self, key: tuple[bool, str], make: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        """The ids of `key`, a frame and a message, made now if they are not there."""
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
    """Turns user messages into token ids for one tokenizer.

    Args:
      tokenizer: a transformers tokenizer with a chat template and an EOS token, or a
        SentencePieceTokenizer.
      stop_ids: ids that end a reply beside the tokenizer's EOS (from `read_stop_ids`).
      enable_thinking: what templates that ask for it (Qwen3) are told.

    Attributes:
      stop_ids: all ids that end a reply, ascending: those given, the tokenizer's EOS, and turn_end.
      turn_end: the token that the template writes at the end of a reply; None if it writes none.
      reply_end: what a reply that someone writes by hand (a scripted player's) ends with.

    Raises:
      UserError: no chat template, no EOS token, or a template that does not repeat its messages.
      TemplateError: the template cannot be rendered.
    """

    def __init__(self, tokenizer, stop_ids: Sequence[int] = (), enable_thinking: bool = True):
        template = chosen_template(tokenizer)
        if tokenizer.eos_token_id is None:
            raise UserError("model.path: the tokenizer has no EOS token")
        self.tokenizer = tokenizer
        eos = int(tokenizer.eos_token_id)
        names = {k: v if isinstance(v, str) else str(v) for k, v in _special_names(tokenizer)}
        past = [("user", _USER), ("assistant", _ASSISTANT)]
        first, probe, ended, grown = render(
            template,
            [
                ([("user", _USER)], True),
                ([("user", _LEFT + _SAID + _RIGHT)], True),
                (past, False),
                ([*past, ("user", _NEXT)], True),
            ],
            **{**names, "enable_thinking": enable_thinking, "date_string": _DATE},
        )
        self._first = _around(first, _USER)
        self._strip = _strip_of(probe, self._first)
        tail = _around(ended, _ASSISTANT)[1]  # e.g. "<|im_end|>\n"
        after = _around(grown, _ASSISTANT)[1]
        self.control = ControlTokens(tokenizer, (eos, *stop_ids), first + grown)
        # A reply ends with the sampled end of its turn, so only what follows that has to be appended.
        self.turn_end = None
        if (end := self.control.leading(tail.lstrip())) is not None:
            self.turn_end, _ = end
            _, after = self.control.leading(after.lstrip()) or end
        # An end that the template writes is an end, whether or not a file of the checkpoint says so.
        ends = {eos, *stop_ids} | ({self.turn_end} - {None})
        self.stop_ids = tuple(sorted(ends))
        self.reply_end = eos if self.turn_end is None else self.turn_end
        self._next = _around(after, _NEXT)
        self._cache = PromptCache(_CACHE_BYTES)
        # Control tokens that each frame has around any message.
        self._framing = {f: self.control.among(self._encode(f[0] + "x" + f[1])) for f in self._both}

    @property
    def _both(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return self._first, self._next

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _turn(self, frame: tuple[str, str], content: str) -> tuple[int, ...]:
        return self._cache.get((frame is self._first, content), lambda: self._ids(frame, content))

    def _ids(self, frame: tuple[str, str], content: str) -> tuple[int, ...]:
        # Tokenizers refuse half a surrogate pair, which JSON can hold and UTF-8 cannot.
        if not content.isascii():
            content = _SURROGATES.sub("\ufffd", content)
        content = self._strip(content)
        ids = self._encode(frame[0] + content + frame[1])
        if self.control.among(ids) == self._framing[frame]:
            return ids
        # The message spells a control token. It is encoded in pieces that spell none, and apart from
        # the template's control tokens; what still gives one is left out.
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
          last_id: last sampled id; if it is not the template's end of a turn, that is appended here
            (and belongs to the prompt, so it is never trained on).
        """
        ids = self._turn(self._next, content)
        if self.turn_end is None:
            # Where the token that begins a turn also ends a reply, the model has said it already.
            return ids[1:] if ids[:1] == (last_id,) and last_id in self.stop_ids else ids
        return ids if last_id == self.turn_end else (self.turn_end, *ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, without special tokens and otherwise as it was said."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def holds(self, string: str) -> Callable[[Sequence[int]], bool]:
        """Whether the text of ids holds `string`, which may spell control tokens."""
        spells = len(self.control.broken(string)) > 1

        def found(ids: Sequence[int]) -> bool:
            text = self.tokenizer.decode(
                ids, skip_special_tokens=not spells, clean_up_tokenization_spaces=False
            )
            return string in text

        return found


def _special_names(tokenizer) -> list[tuple[str, object]]:
    """(name, token) pairs that transformers shows to a template, e.g. bos_token."""
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
    """What the template does to the spaces around a message, found on the rendered probe."""
    for strip in _STRIPS:
        if probe == frame[0] + strip(_LEFT + _SAID + _RIGHT) + frame[1]:
            return strip
    raise UserError(
        "model.path: the chat template changes the text of messages: spaces around a message may be"
        " stripped, and nothing else"
    )


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
            tokenizer.chat_template = read_template(chat_template)
        except UserError as error:
            raise UserError(f"model.chat_template = {chat_template}: {error}") from error
    try:
        return ChatFormat(tokenizer, read_stop_ids(Path(path), vocab_size), enable_thinking)
    except TemplateError as error:
        raise UserError(
            f"model.path = {path}: the chat template cannot be used: {error}"
        ) from error
    except UserError:
        raise
    except BaseException as error:  # of the tokenizer, with words that it has never seen
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise UserError(
            f"model.path = {path}: the tokenizer cannot encode: {first_line(error)}"
        ) from error


def read_stop_ids(directory: Path, vocab_size: int) -> tuple[int, ...]:
    """All ids that end a reply by the checkpoint's files, e.g. three of them in Llama 3.1.

    As in transformers, generation_config.json says it, or config.json where that file is absent or
    names none.
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
