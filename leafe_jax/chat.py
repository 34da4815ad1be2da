"""Between text and token ids: the checkpoint's own tokenizer and chat template.

A conversation grows by appending ids. What was sampled stays as sampled: nothing is ever decoded
and tokenised again. `ChatFormat` renders each new user turn through the template once, as the text
that the template puts between the end of the last assistant turn and the next sampled token.
"""

from __future__ import annotations

import functools
from pathlib import Path

from leafe_jax.errors import UserError

_USER, _ASSISTANT, _NEXT = "leafe-user-turn", "leafe-assistant-turn", "leafe-next-turn"


class ChatFormat:
    """Turns user messages into token ids for one tokenizer.

    Args:
      tokenizer: a transformers tokenizer with a chat template and an EOS token.

    Raises:
      UserError: no chat template, no EOS token, or a template that does not repeat its messages.
    """

    def __init__(self, tokenizer):
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("model.path: the tokenizer has no chat template")
        if tokenizer.eos_token_id is None:
            raise UserError("model.path: the tokenizer has no EOS token")
        self.tokenizer = tokenizer
        self.eos_id = int(tokenizer.eos_token_id)
        self.stop_ids = (self.eos_id,)
        # Templates may trim or rewrite turns, so the delta is cut out of a whole rendering.
        first = self._render([("user", _USER)], prompt=True)
        past = self._render([("user", _USER), ("assistant", _ASSISTANT)], prompt=False)
        grown = self._render(
            [("user", _USER), ("assistant", _ASSISTANT), ("user", _NEXT)], prompt=True
        )
        if _USER not in first or _ASSISTANT not in grown or _NEXT not in grown:
            raise UserError("model.path: the chat template drops messages of a conversation")
        self._first = first.split(_USER, 1)
        tail = past.split(_ASSISTANT, 1)[1]  # e.g. "<|im_end|>\n"
        after = grown.split(_ASSISTANT, 1)[1]
        eos = tokenizer.eos_token
        # The sampled turn ends with the sampled EOS; only what follows it has to be appended.
        self._ends_with_eos = tail.startswith(eos)
        if self._ends_with_eos:
            after = after[len(eos) :]
        self._next = after.split(_NEXT, 1)
        self._ids = functools.lru_cache(maxsize=65536)(self._encode)

    def _render(self, turns: list[tuple[str, str]], prompt: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def first_turn(self, content: str) -> tuple[int, ...]:
        """Ids of a conversation's first user turn, up to where the model starts sampling."""
        return self._ids(self._first[0] + content + self._first[1])

    def next_turn(self, content: str, last_id: int) -> tuple[int, ...]:
        """Ids to append after a sampled turn for the next user turn.

        Args:
          content: the user's text.
          last_id: last sampled id; if sampling stopped without EOS, the EOS is appended here (and
            belongs to the prompt, so it is never trained on).
        """
        ids = self._ids(self._next[0] + content + self._next[1])
        if self._ends_with_eos and last_id != self.eos_id:
            return (self.eos_id, *ids)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of sampled ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def load_tokenizer(path: str, vocab_size: int):
    """Opens the tokenizer of a checkpoint directory.

    Args:
      path: a Hugging Face model directory.
      vocab_size: rows of the model's embedding; every token id must be below it.

    Raises:
      UserError: no tokenizer there, or ids beyond the model's vocabulary.
    """
    from transformers import AutoTokenizer

    directory = Path(path)
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    if not any((directory / name).is_file() for name in names):
        raise UserError(
            f"model.path = {path}: no tokenizer there; expected one of {', '.join(names)}"
        )
    try:
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
