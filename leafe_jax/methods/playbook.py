"""ACE's playbook: bullets of advice in sections, with counters, in ACE's own text format.

    ## STRATEGIES & INSIGHTS
    [sai-00001] helpful=2 harmful=0 :: look into the drawer before you search elsewhere.

What models say becomes bullets here, so their text is hostile: a bullet is one line of at most
MAX_BULLET_CHARS characters without control characters, its counters are numbers that this module counts,
and its id is given here. Whatever it spells, it is text in a prompt and no control token (agent/chat.py).
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from leafe_jax.errors import UserError

# Slug of a bullet's id -> title of its section (github.com/ace-agent/ace).
SECTIONS = {
    "sai": "STRATEGIES & INSIGHTS",
    "calc": "FORMULAS & CALCULATIONS",
    "code": "CODE SNIPPETS & TEMPLATES",
    "err": "COMMON MISTAKES TO AVOID",
    "prob": "PROBLEM-SOLVING HEURISTICS",
    "ctx": "CONTEXT CLUES & INDICATORS",
    "misc": "OTHERS",
}
TAGS = ("helpful", "harmful", "neutral")
MAX_BULLET_CHARS = 400
_MAX_REPLY_CHARS = 20_000  # of a reply that is searched for JSON
_MAX_OPERATIONS = 20  # of one reply
_BULLET = re.compile(r"\[([a-z]+)-(\d{5,9})\] helpful=(\d{1,9}) harmful=(\d{1,9}) :: (.+)")


@dataclasses.dataclass(frozen=True)
class Bullet:
    """One line of a playbook.

    Attributes:
      slug: of its section.
      number: unique within the playbook.
      content: one line.
      helpful, harmful: how often it was tagged so.
    """

    slug: str
    number: int
    content: str
    helpful: int = 0
    harmful: int = 0

    @property
    def id(self) -> str:
        return f"{self.slug}-{self.number:05d}"

    @property
    def text(self) -> str:
        counters = f"helpful={self.helpful} harmful={self.harmful}"
        return f"[{self.id}] {counters} :: {self.content}"


@dataclasses.dataclass(frozen=True)
class Playbook:
    """Bullets in the order in which they were added; a value, which changes never.

    Attributes:
      bullets: the bullets.
      last: the last number that was given.
    """

    bullets: tuple[Bullet, ...] = ()
    last: int = 0

    @property
    def text(self) -> str:
        """In ACE's format: sections that have bullets, in the order of SECTIONS."""
        parts = []
        for slug, title in SECTIONS.items():
            own = [bullet.text for bullet in self.bullets if bullet.slug == slug]
            if own:
                parts.append("\n".join([f"## {title}", *own]))
        return "\n\n".join(parts)

    @classmethod
    def parse(cls, text: str, last: int) -> Playbook:
        """Inverse of `text`; the bullets are then in the order of their numbers.

        Raises:
          UserError: a line is neither a heading nor a bullet.
        """
        bullets = []
        for line in filter(None, text.split("\n")):
            found = _BULLET.fullmatch(line)
            if found and found[1] in SECTIONS:
                slug, number, helpful, harmful, content = found.groups()
                bullets.append(Bullet(slug, int(number), content, int(helpful), int(harmful)))
            elif line.removeprefix("## ") not in SECTIONS.values():
                raise UserError(f"playbook: {line[:80]!r}: must be a heading or a bullet")
        return cls(tuple(sorted(bullets, key=lambda b: b.number)), last)

    def tagged(self, tags: Sequence[tuple[str, str]]) -> Playbook:
        """With the counters of (id, tag) pairs; ids that are not there are ignored."""
        bullets = list(self.bullets)
        for i, bullet in enumerate(bullets):
            for name, tag in tags:
                if name == bullet.id and tag in ("helpful", "harmful"):
                    bullet = dataclasses.replace(bullet, **{tag: getattr(bullet, tag) + 1})
            bullets[i] = bullet
        return dataclasses.replace(self, bullets=tuple(bullets))

    def add(
        self, slug: str, content: str, budget: int, count: Callable[[str], int], similar: float
    ) -> tuple[Playbook, str]:
        """A playbook with one bullet more, and what became of it.

        Args:
          slug: of the section.
          content: what a model said.
          budget: most tokens of the playbook's text.
          count: tokens of a text.
          similar: shared words over all words of two bullets, from which on they are duplicates.

        Returns:
          The playbook, and "added", "empty", "duplicate" (nothing is added; the older bullet stays) or
          "full" (it would exceed the budget).
        """
        content = clean(content)
        if not any(map(str.isalnum, content)):
            return self, "empty"
        if any(_similarity(content, bullet.content) >= similar for bullet in self.bullets):
            return self, "duplicate"
        made = Playbook((*self.bullets, Bullet(slug, self.last + 1, content)), self.last + 1)
        return (self, "full") if count(made.text) > budget else (made, "added")


def clean(text: str) -> str:
    """A text as the content of a bullet: one line, single spaces, no control or format characters."""
    kept = "".join(" " if c.isspace() else c for c in text[: 4 * MAX_BULLET_CHARS])
    # C: controls, formats such as the marks that turn text round, surrogates, unassigned.
    kept = "".join(c for c in kept if unicodedata.category(c)[0] != "C")
    return " ".join(kept.split())[:MAX_BULLET_CHARS].rstrip()


def _similarity(one: str, other: str) -> float:
    words, others = (set(re.findall(r"\w+", text.casefold())) for text in (one, other))
    return len(words & others) / len(words | others) if words | others else float(one == other)


# -- what models reply -----------------------------------------------------------------------------
def _objects(reply: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a reply, behind its thought."""
    text = reply.rpartition("</think>")[2][:_MAX_REPLY_CHARS]
    decoder, at = json.JSONDecoder(), text.find("{")
    for _ in range(_MAX_OPERATIONS):
        if at < 0:
            return
        try:
            found, _ = decoder.raw_decode(text, at)
            yield found
        except (ValueError, RecursionError):
            pass
        at = text.find("{", at + 1)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


@dataclasses.dataclass(frozen=True)
class Review:
    """A reflector's reply.

    Attributes:
      insight: its key_insight, cleaned; never empty.
      fields: all its texts, cleaned, for the curator.
      tags: (id of a bullet, tag) pairs.
    """

    insight: str
    fields: Mapping[str, str]
    tags: tuple[tuple[str, str], ...] = ()


_FIELDS = (
    "reasoning", "error_identification", "root_cause_analysis", "correct_approach", "key_insight",
)  # fmt: skip


def read_review(reply: str) -> Review | None:
    """A reflector's review; None if the reply has none."""
    for found in _objects(reply):
        fields = {name: clean(_text(found.get(name))) for name in _FIELDS}
        if not any(map(str.isalnum, fields["key_insight"])):
            continue
        listed = found.get("bullet_tags")
        pairs = [
            (_text(tag.get("id")), _text(tag.get("tag")))
            for tag in (listed if isinstance(listed, list) else [])[:200]
            if isinstance(tag, dict)
        ]
        tags = {name: tag for name, tag in pairs if tag in TAGS}  # one vote a bullet
        return Review(fields["key_insight"], fields, tuple(tags.items()))
    return None


def read_operations(reply: str) -> list[tuple[str, str]] | None:
    """(slug, content) of a curator's ADD operations; None if the reply has no list of operations.

    Operations other than ADD are ignored, as in ACE. A section that does not exist is OTHERS.
    """
    slugs = {_words(title): slug for slug, title in SECTIONS.items()}
    for found in _objects(reply):
        listed = found.get("operations")
        if not isinstance(listed, list):
            continue
        return [
            (slugs.get(_words(_text(o.get("section"))), "misc"), _text(o.get("content")))
            for o in listed[:_MAX_OPERATIONS]
            if isinstance(o, dict) and _text(o.get("type")).upper() == "ADD"
        ]
    return None


def _words(title: str) -> str:
    """A section's title, however it is spelt: common_mistakes_to_avoid, Strategies and Insights."""
    words = re.findall(r"[a-z]+", title.casefold()[:200])
    return " ".join(word for word in words if word != "and")
