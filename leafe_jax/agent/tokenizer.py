"""The tokenizer of a model directory, and its control tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from leafe_jax.agent.templates import read_template
from leafe_jax.errors import UserError
from leafe_jax.runtime.model_files import check_directory, read_json, shown

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
# transformers reads these without checking them; the tokenizers library parses tokenizer.json.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# How chat models spell control tokens, flagged as special or not.
_CONTROL_NAME = re.compile(r"<[|｜][^<>\s]*[|｜]>")
# Tags that a reply may contain; a prompt may repeat them, so they are no control tokens.
_THOUGHT = re.compile(r"</?think(ing)?>")


class SentencePieceTokenizer:
    """A sentencepiece `tokenizer.model` without other files, encoded by sentencepiece itself.

    transformers 5 converts such a file without its normaliser, which gives other ids. Control pieces
    in the text (`</s>`) become their ids, and the text between two of them is encoded separately.

    Args:
      path: the model file.
      chat_template: Jinja text or None; the file itself has none.
    """

    def __init__(self, path: Path, chat_template: str | None = None):
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor(model_file=str(path))
        self.chat_template = chat_template
        eos, unknown = self._model.eos_id(), self._model.unk_id()
        self.eos_token_id = None if eos < 0 else eos
        self.unk_token_id = None if unknown < 0 else unknown
        self.control = {
            self._model.id_to_piece(i): i
            for i in range(self._model.vocab_size())
            if self._model.is_control(i)
        }
        self._split = _any_of(self.control)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Values of a chat template's variables bos_token and eos_token."""
        ids = {"bos_token": self._model.bos_id(), "eos_token": self._model.eos_id()}
        return {name: self._model.id_to_piece(i) if i >= 0 else "" for name, i in ids.items()}

    def get_vocab(self) -> dict[str, int]:
        return {self._model.id_to_piece(i): i for i in range(self._model.vocab_size())}

    def convert_ids_to_tokens(self, index: int) -> str:
        return self._model.id_to_piece(index)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`, without added special tokens."""
        assert not add_special_tokens, "the chat template writes the special tokens"
        ids: list[int] = []
        begin = 0
        for found in self._split.finditer(text):
            ids += self._model.encode(text[begin : found.start()])
            ids.append(self.control[found.group()])
            begin = found.end()
        return ids + self._model.encode(text[begin:])

    def decode(
        self,
        ids: Sequence[int],
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Text of ids; with `skip_special_tokens`, control pieces have no text."""
        assert not clean_up_tokenization_spaces
        if skip_special_tokens:
            return self._model.decode([int(i) for i in ids])
        names = {i: name for name, i in self.control.items()}
        parts: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if i in names:
                parts += [self._model.decode(run), names[i]]
                run = []
            else:
                run.append(i)
        return "".join([*parts, self._model.decode(run)])


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the texts, preferring longer ones; nothing if there are none."""
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


class ControlTokens:
    """The tokens that only the chat template may write.

    These are the tokens flagged as special, tokens spelt <|...|>, ids that end a reply, and added
    tokens that the template writes around a message. Other added tokens (<think>, <tool_call>) are
    text: a prompt contains them if its text spells them.

    Args:
      tokenizer: a transformers tokenizer, or a SentencePieceTokenizer.
      stop_ids: ids that end a reply.
      frame: all text that the template writes around messages.

    Attributes:
      ids: token text -> id of every control token.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], frame: str):
        vocabulary = tokenizer.get_vocab()
        self.ids = {name: i for name, i in vocabulary.items() if _CONTROL_NAME.fullmatch(name)}
        if isinstance(tokenizer, SentencePieceTokenizer):
            self.ids |= tokenizer.control
        else:
            special = set(tokenizer.all_special_tokens)
            for i, token in tokenizer.added_tokens_decoder.items():
                name = token.content
                framing = name in frame and not _THOUGHT.fullmatch(name)
                # An ordinary token that ends a reply, such as a newline, stays ordinary.
                if token.special or framing or name in special or i in stop_ids:
                    self.ids[name] = i
        # Text may give <unk> for an unknown character. Byte-level tokenizers have no unknown characters;
        # some name a control token as their unknown token.
        unknown = {tokenizer.unk_token_id} - set(stop_ids)
        self._never = {
            i for name, i in self.ids.items() if i not in unknown or _CONTROL_NAME.fullmatch(name)
        }
        self._pattern = _any_of(self.ids)

    def among(self, ids: Sequence[int]) -> list[int]:
        """The control tokens among `ids`, in order."""
        return list(filter(self._never.__contains__, ids))

    def leading(self, text: str) -> tuple[int, str] | None:
        """(the control token that `text` begins with, the rest of `text`), or None."""
        found = self._pattern.match(text)
        return None if found is None else (self.ids[found.group()], text[found.end() :])

    def around(self, frame: Sequence[str]) -> tuple[str, str, str, str]:
        """The texts before and after a message, each divided at the control token next to the message.

        Returns:
          (frame[0] up to the end of its last control token, the rest of frame[0], frame[1] up to its
          first control token, the rest of frame[1]).
        """
        ends = [found.end() for found in self._pattern.finditer(frame[0])]
        first = self._pattern.search(frame[1])
        left = ends[-1] if ends else 0
        right = first.start() if first else len(frame[1])
        return frame[0][:left], frame[0][left:], frame[1][:right], frame[1][right:]

    def broken(self, text: str) -> list[str]:
        """Pieces of `text`, none of which contains the text of a control token.

        Each such text is divided after its leading marks (`<|` and `im_end|>`), as a tokenizer
        without this token would divide it.
        """
        pieces, begin, at = [], 0, 0
        while (found := self._pattern.search(text, at)) is not None:
            name = found.group()
            marks = len(name) - len(name.lstrip("<|｜/[(")) or 1
            at = found.start() + min(marks, max(1, len(name) - 1))
            pieces.append(text[begin:at])
            begin = at
        return [*pieces, text[begin:]]


def load_tokenizer(path: str, vocab_size: int) -> Any:
    """The tokenizer of a checkpoint directory: AutoTokenizer's, or a SentencePieceTokenizer if the
    directory holds nothing but `tokenizer.model`. Never runs the directory's code or uses a network.

    Args:
      path: a Hugging Face model directory.
      vocab_size: rows of the model's embedding; every token id must be below it.

    Raises:
      UserError: there is no tokenizer, an id is not below `vocab_size`, or the tokenizer needs its
        own code or draws its ids at random.
    """
    directory = Path(path)
    found = [name for name in _FILES if (directory / name).exists()]
    if not found:
        raise UserError(
            f"model.path = {path}: no tokenizer there; expected one of {', '.join(_FILES)}"
        )
    check_directory(directory)
    for name in _SETTINGS:
        if (directory / name).exists():
            read_json(directory / name)
    try:
        tokenizer = _open(directory, found)
    except UserError:
        raise
    # tokenizers raises its panics as a BaseException; transformers whatever its parsers raise.
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason = "it needs custom code (auto_map in tokenizer_config.json), which is never run"
        raise UserError(f"model.path = {path}: the tokenizer cannot be read: {reason}") from error
    _check(tokenizer, path, vocab_size)
    return tokenizer


def _open(directory: Path, found: Sequence[str]) -> Any:
    if found == ["tokenizer.model"]:
        template = directory / "chat_template.jinja"
        return SentencePieceTokenizer(
            directory / "tokenizer.model", read_template(template) if template.exists() else None
        )
    from transformers import AutoTokenizer

    # Without trust_remote_code=False, transformers asks on the terminal whether to run the code.
    return AutoTokenizer.from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=False
    )


def _check(tokenizer: Any, path: str, vocab_size: int) -> None:
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise UserError(
            f"model.path = {path}: tokenizer has id {largest}, but the model's vocab_size is"
            f" {vocab_size}; tokenizer and model do not belong together"
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    dropout = getattr(getattr(backend, "model", None), "dropout", None)
    if dropout:
        raise UserError(
            f"model.path = {path}: tokenizer.json: dropout = {shown(dropout)}: must be null or 0,"
            " since the same text must always give the same ids"
        )


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
