"""The tokenizer of a model directory, and which of its tokens are control tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from leafe_jax.agent.templates import read_template
from leafe_jax.errors import UserError
from leafe_jax.runtime.model_files import check_directory, read_json, shown

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
# Read by transformers without a look at them; tokenizer.json is parsed by the tokenizers library.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# What the families of chat models call a control token, whether or not it is flagged as special.
_CONTROL_NAME = re.compile(r"<[|｜][^<>\s]*[|｜]>")
# Tags of a reply's own structure: a reply may say them, and a prompt may repeat what it said.
_THOUGHT = re.compile(r"</?think(ing)?>")


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
        """What a chat template calls bos_token and eos_token."""
        ids = {"bos_token": self._model.bos_id(), "eos_token": self._model.eos_id()}
        return {name: self._model.id_to_piece(i) if i >= 0 else "" for name, i in ids.items()}

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
            ids.append(self.control[found.group()])
            begin = found.end()
        return ids + self._model.encode(text[begin:])

    def decode(
        self,
        ids: Sequence[int],
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Text of ids. Control pieces have none, unless `skip_special_tokens` is False."""
        assert not clean_up_tokenization_spaces
        if skip_special_tokens:
            return self._model.decode([int(i) for i in ids])
        names = {i: name for name, i in self.control.items()}
        parts: list[str] = []
        run: list[int] = []
        for i in [*map(int, ids), None]:
            if i is not None and i not in names:
                run.append(i)
                continue
            parts += [self._model.decode(run), names.get(i, "")]
            run = []
        return "".join(parts)


def _any_of(texts) -> re.Pattern[str]:
    """Finds the texts, the longest first; nothing where there are none."""
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


class ControlTokens:
    """The tokens that only the chat template may write.

    These are: tokens flagged as special, tokens spelt <|...|>, ids that end a reply, and added tokens
    with which the template frames a message. Other added tokens (<think>, <tool_call>) are text: a
    prompt has them wherever its text spells them.

    Args:
      tokenizer: a transformers tokenizer, or a SentencePieceTokenizer.
      stop_ids: ids that end a reply.
      frame: all text that the template writes around messages.

    Attributes:
      ids: token text -> id, of every control token.
    """

    def __init__(self, tokenizer, stop_ids: Sequence[int], frame: str):
        vocabulary = tokenizer.get_vocab()
        self.ids = {name: i for name, i in vocabulary.items() if _CONTROL_NAME.fullmatch(name)}
        if isinstance(tokenizer, SentencePieceTokenizer):
            self.ids |= tokenizer.control
        else:
            special = set(tokenizer.all_special_tokens)
            for i, token in tokenizer.added_tokens_decoder.items():
                name = token.content
                framing = name in frame and not _THOUGHT.fullmatch(name)
                # An end of a reply that is an ordinary token, such as a newline, stays one.
                if token.special or framing or name in special or i in stop_ids:
                    self.ids[name] = i
        # Ordinary text rightly gives <unk> for an unknown character. Byte-level tokenizers have no such
        # character, and call some control token their unknown one.
        unknown = {tokenizer.unk_token_id} - set(stop_ids)
        self._never = {
            i for name, i in self.ids.items() if i not in unknown or _CONTROL_NAME.fullmatch(name)
        }
        self._pattern = _any_of(self.ids)

    def among(self, ids: Sequence[int]) -> list[int]:
        """Those of `ids` that are control tokens, in order."""
        return list(filter(self._never.__contains__, ids))

    def leading(self, text: str) -> tuple[int, str] | None:
        """(control token that `text` begins with, what follows it), or None."""
        found = self._pattern.match(text)
        return None if found is None else (self.ids[found.group()], text[found.end() :])

    def around(self, frame: Sequence[str]) -> tuple[str, str, str, str]:
        """The two texts around a message, each divided at the control token next to it.

        Returns:
          (up to the last control token of frame[0], the text after it, frame[1] up to its first
          control token, the rest).
        """
        ends = [found.end() for found in self._pattern.finditer(frame[0])]
        first = self._pattern.search(frame[1])
        left = ends[-1] if ends else 0
        right = first.start() if first else len(frame[1])
        return frame[0][:left], frame[0][left:], frame[1][:right], frame[1][right:]

    def broken(self, text: str) -> list[str]:
        """Pieces of `text` none of which holds the text of a control token.

        Each such text is divided after its leading marks (`<|` and `im_end|>`), where tokenizers that
        do not know it divide it, too.
        """
        pieces, begin, at = [], 0, 0
        while (found := self._pattern.search(text, at)) is not None:
            name = found.group()
            marks = len(name) - len(name.lstrip("<|｜/[(")) or 1
            at = found.start() + min(marks, max(1, len(name) - 1))
            pieces.append(text[begin:at])
            begin = at
        return [*pieces, text[begin:]]


def load_tokenizer(path: str, vocab_size: int):
    """Opens the tokenizer of a checkpoint directory: whatever AutoTokenizer opens, or a bare
    sentencepiece `tokenizer.model`. Code of the directory is never run, and no hub is asked.

    Args:
      path: a Hugging Face model directory.
      vocab_size: rows of the model's embedding; every token id must be below it.

    Raises:
      UserError: no tokenizer there, ids beyond the model's vocabulary, or a tokenizer that needs its
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


def _open(directory: Path, found: Sequence[str]):
    if found == ["tokenizer.model"]:
        template = directory / "chat_template.jinja"
        return SentencePieceTokenizer(
            directory / "tokenizer.model", read_template(template) if template.exists() else None
        )
    from transformers import AutoTokenizer

    # Said outright: left open, it asks on the terminal whether the directory's code may run.
    return AutoTokenizer.from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=False
    )


def _check(tokenizer, path: str, vocab_size: int) -> None:
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
    """What an exception of somebody else's says, on one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
