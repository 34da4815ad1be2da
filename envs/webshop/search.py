"""Product search like WebShop's: Lucene's English analysis and BM25, in numpy.

WebShop uses pyserini 0.17, i.e. Anserini 0.14 with Lucene 8. This follows its DefaultEnglishAnalyzer
(Unicode word segmentation, no possessives, lower case, 33 stop words, Porter stems with Martin
Porter's later extensions) and BM25Similarity with k1 = 0.9 and b = 0.4. Equal scores are ordered by
id. Document lengths are rounded to one byte, as Lucene stores them; otherwise near neighbours would
change places.

BM25 itself is two dozen lines in `SearchIndex.search`. The libraries do not fit: importing bm25s runs
a JAX computation (environments must not start an accelerator), and it has exact lengths only; tantivy
has fixed k1 and b.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import regex

K1, B = np.float32(0.9), np.float32(0.4)
# Lucene EnglishAnalyzer.ENGLISH_STOP_WORDS_SET.
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then"
    " there these they this to was will with".split()
)
_MAX_TOKEN = 255  # StandardTokenizer cuts longer ones
_CHUNK = 2000  # documents counted at a time
_FORMAT = 1  # version of the cache file; increase it if analysis or layout changes

_log = logging.getLogger("envs.webshop.environment")

# Lucene's StandardTokenizer (Unicode UAX #29): one of : . ' between letters does not split a word, nor
# does one of , ; . ' between digits. Underscores join everything. `(?<!_)` changes no match; without it,
# a row of underscores would take quadratic time.
_ASCII_WORD = re.compile(
    r"(?<!_)(?=_*[A-Za-z0-9])\w+(?:(?:(?<=[A-Za-z])[:.'](?=[A-Za-z])|(?<=[0-9])[,;.'](?=[0-9]))\w+)*",
    re.ASCII,
)


def _unicode_word() -> regex.Pattern:
    # Lucene 8's Unicode 9 does not count skin tones among the extending characters.
    extend = r"(?:(?!\p{Emoji_Modifier})[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}])*"

    def unit(characters: str) -> str:
        return f"(?:{characters}{extend})"

    joiner = unit(r"\p{WB=ExtendNumLet}")
    letter = unit(r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}]")
    digit = unit(r"\p{WB=Numeric}")
    katakana = unit(r"\p{WB=Katakana}")
    mid_letter = unit(r"[\p{WB=MidLetter}\p{WB=MidNumLet}\p{WB=Single_Quote}]")
    mid_digit = unit(r"[\p{WB=MidNum}\p{WB=MidNumLet}\p{WB=Single_Quote}]")
    part = (
        f"(?:{katakana}(?:{joiner}*{katakana})*"
        f"|(?:{digit}(?:(?:{joiner}*|{mid_digit}){digit})*"
        f"|{letter}(?:(?:{joiner}*|{mid_letter}){letter})*)+)"
    )
    word = f"{joiner}*{part}(?:{joiner}+{part})*{joiner}*"
    alone = unit(r"[\p{Script=Han}\p{Script=Hiragana}]")  # each its own token
    asian = unit(r"\p{Line_Break=Complex_Context}") + "+"  # no spaces between words: a run
    # Emoji are tokens, too; skin tones and zero-width joiners continue one.
    face = r"(?:\p{Extended_Pictographic}\uFE0F?\p{Emoji_Modifier}?|\p{Emoji_Modifier})"
    emoji = r"(?:\p{Regional_Indicator}{2}|[0-9#*]\uFE0F?\u20E3"
    emoji += rf"|{face}(?:{extend}\u200D{face})*){extend}"
    return regex.compile(f"{emoji}|{word}|{alone}|{asian}")


_UNICODE_WORD = _unicode_word()


def _tokenize(text: str) -> list[str]:
    pattern = _ASCII_WORD if text.isascii() else _UNICODE_WORD
    tokens = pattern.findall(text)
    if len(text) > _MAX_TOKEN and any(len(token) > _MAX_TOKEN for token in tokens):
        tokens = [t[i : i + _MAX_TOKEN] for t in tokens for i in range(0, len(t), _MAX_TOKEN)]
    return tokens


@functools.cache
def _stemmer() -> Callable[[str, bool], str]:
    from nltk.stem.porter import PorterStemmer  # takes 1 to 2 s, since it imports SciPy

    return PorterStemmer(PorterStemmer.MARTIN_EXTENSIONS).stem


def _term(token: str) -> str:
    """The index term of a lower-case token; "" for a stop word."""
    if token[-2:] in ("'s", "\u2019s", "\uff07s"):
        token = token[:-2]
    return "" if token in STOP_WORDS else _stemmer()(token, False)


def analyze(text: str) -> list[str]:
    """The terms of a text, in order (Anserini's DefaultEnglishAnalyzer)."""
    return [term for term in map(_term, _tokenize(text.lower())) if term]


class _TermIds(dict):
    """token -> term id, -1 for stop words; each token is analysed once."""

    def __init__(self):
        self.terms: dict[str, int] = {}

    def __missing__(self, token: str) -> int:
        term = _term(token)
        number = self.terms.setdefault(term, len(self.terms)) if term else -1
        self[token] = number
        return number


def stored_length(lengths: np.ndarray) -> np.ndarray:
    """Lengths as rounded by Lucene's SmallFloat.intToByte4: exact below 40, then 4 bits."""
    above = np.maximum(lengths.astype(np.int64) - 24, 0)
    bits = np.frexp(above.astype(np.float64))[1]  # bit length of an integer, 0 for 0
    shift = np.maximum(bits - 4, 0)
    return np.where(lengths < 24, lengths, 24 + ((above >> shift) << shift))


class SearchIndex:
    """BM25 over texts; see the module docstring.

    Args:
      ids: one id a document, in document order; equal scores are ordered by them.
      texts: gives the documents' texts in that order; called twice when nothing is cached.
      cache: directory of index files, one for every content; None keeps nothing.
    """

    def __init__(
        self, ids: Sequence[str], texts: Callable[[], Iterable[str]], cache: Path | None = None
    ):
        order = sorted(range(len(ids)), key=ids.__getitem__)
        self._rank = np.empty(len(ids), np.int32)
        self._rank[order] = np.arange(len(ids), dtype=np.int32)
        path = cache and cache / f"bm25-{_fingerprint(texts())}.npz"
        loaded = path and _load(path)
        if loaded:
            terms, arrays = loaded
        else:
            terms, arrays = _build(texts())
            if path:
                _save(path, terms, arrays)
        self._terms = {term: number for number, term in enumerate(terms)}
        # Postings of term t are starts[t]:starts[t + 1], each a document and its saturation
        # freq / (k1 * (1 - b + b * length / average length)).
        self._starts, self._documents, self._saturation = arrays
        lengths = np.diff(self._starts)
        count = np.count_nonzero(np.bincount(self._documents)) if len(self._documents) else 0
        self._idf = np.log(1 + (count - lengths + 0.5) / (lengths + 0.5)).astype(np.float32)

    def search(self, query: str, limit: int = 50) -> list[int]:
        """Numbers of the best documents that share a term with the query, best first."""
        total = np.zeros(len(self._rank))  # like Lucene, adds float32 parts in float64
        for term, times in Counter(analyze(query)).items():
            number = self._terms.get(term)
            if number is None:
                continue
            span = slice(self._starts[number], self._starts[number + 1])
            weight = np.float32(times) * self._idf[number]
            total[self._documents[span]] += weight - weight / (1 + self._saturation[span])
        scores = total.astype(np.float32)
        hits = np.flatnonzero(scores)
        if len(hits) > limit:
            least = np.partition(scores[hits], len(hits) - limit)[len(hits) - limit]
            hits = hits[scores[hits] >= least]
        best = np.lexsort((self._rank[hits], -scores[hits]))[:limit]
        return hits[best].tolist()


def _build(texts: Iterable[str]) -> tuple[list[str], tuple[np.ndarray, ...]]:
    """Terms, and (starts [T + 1], documents [P], saturation [P]) of their P postings."""
    ids = _TermIds()
    lengths, documents, terms, counts = [], [], [], []
    chunk: list[np.ndarray] = []

    def flush() -> None:
        base = sum(map(len, lengths))
        sizes = np.array([len(row) for row in chunk])
        owner = np.repeat(np.arange(base, base + len(chunk)), sizes)
        keys, freq = np.unique((owner << 32) | np.concatenate(chunk), return_counts=True)
        lengths.append(sizes)
        documents.append((keys >> 32).astype(np.int32))
        terms.append((keys & 0xFFFFFFFF).astype(np.int32))
        counts.append(freq.astype(np.float32))
        chunk.clear()

    for text in texts:
        row = np.fromiter(map(ids.__getitem__, _tokenize(text)), np.int64)
        chunk.append(row[row >= 0])
        if len(chunk) == _CHUNK:
            flush()
    if chunk:
        flush()
    if not lengths:
        return [], (np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    length, document, term, count = map(np.concatenate, (lengths, documents, terms, counts))
    for part in (documents, terms, counts):
        part.clear()
    average = np.float32(length.sum() / max(np.count_nonzero(length), 1))
    stored = stored_length(length).astype(np.float32)
    norm = np.float32(1) / (K1 * ((np.float32(1) - B) + B * stored / max(average, 1e-9)))
    order = np.argsort(term, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(term, minlength=len(ids.terms)))])
    document, count = document[order], count[order]
    saturation = count * norm.astype(np.float32)[document]
    return list(ids.terms), (starts.astype(np.int64), document, saturation)


# -- cache -----------------------------------------------------------------------------------------
def cache_directory() -> Path:
    """The directory of index files: `$XDG_CACHE_HOME/leafe_jax/webshop`, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "leafe_jax" / "webshop"


def _fingerprint(texts: Iterable[str]) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {K1} {B}".encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"\n{len(data)} ".encode() + data)
    return digest.hexdigest()[:32]


def _load(path: Path) -> tuple[list[str], tuple[np.ndarray, ...]] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            terms = file["terms"].tobytes().decode("utf-8", "surrogatepass").split("\n")
            arrays = tuple(file[name] for name in ("starts", "documents", "saturation"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("webshop: index file %s is broken (%s); indexing anew", path, error)
        return None
    return terms[: len(arrays[0]) - 1], arrays


def _save(path: Path, terms: list[str], arrays: tuple[np.ndarray, ...]) -> None:
    """Writes a temporary file and renames it, so that readers see a complete file or none."""
    joined = np.frombuffer("\n".join(terms).encode("utf-8", "surrogatepass"), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                named = dict(zip(("starts", "documents", "saturation"), arrays, strict=True))
                np.savez(file, terms=joined, **named)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        _log.warning("webshop: index not kept in %s (%s)", path.parent, error)
