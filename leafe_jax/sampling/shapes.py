"""Which shapes are compiled, and how the rows of a call are laid out in one of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from leafe_jax.sampling.pages import Match, common_length
from leafe_jax.sampling.programs import Program, num_targets
from leafe_jax.sampling.storage import Pages

MEMBERS = 8  # rows of a group that shares its first pages
_MIN_SHARED = 16  # pages; with fewer a group gains less than another program takes to compile
_MIN_CONTEXT = 128  # positions; shorter contexts cost next to nothing


@dataclasses.dataclass(eq=False)
class Row:
    """A sequence in flight.

    Attributes:
      ids: all of its ids that are known.
      match: what the tree held of it when it was admitted, pinned.
      pages: index of a page within the sequence -> the page that takes it.
      done: positions computed so far.
    """

    ids: list[int]
    match: Match
    pages: dict[int, int]
    done: int

    @property
    def rest(self) -> int:
        """Known ids that are not computed."""
        return len(self.ids) - self.done

    def pages_held(self, size: int) -> list[int]:
        """Pages of the computed positions: those found, and from the first written on those written."""
        held = [node.page for node in self.match.nodes]
        if self.done > self.match.length:
            first = self.match.length // size
            held[first:] = [self.pages[i] for i in range(first, -(-self.done // size))]
        return held


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the rows of a call stand.

    Attributes:
      program: the shape.
      lines: the line of each row.
      common: pages that each group of MEMBERS lines begins with; [] without groups.
    """

    program: Program
    lines: list[int]
    common: list[list[int]]


class Shapes:
    """The shapes of an engine.

    Args:
      num_rows: rows computed together.
      max_len: tokens of a session.
      page_size, spare: of the pool; `spare` is the page that nobody reads.
      prefill_chunk, turn_chunk: T of the programs.
      burst: most tokens that a turn samples.
      goes_on: a reply may take more than one burst, whose prompt is then a single token.
      gathered: contexts are gathered, so shorter ones are cheaper and shared ones too; pages that are
        read in place need one table size only.
    """

    def __init__(
        self, *, num_rows: int, max_len: int, page_size: int, spare: int, prefill_chunk: int,
        turn_chunk: int, burst: int, goes_on: bool, gathered: bool,
    ):  # fmt: skip
        self.num_rows, self.page_size, self.spare = num_rows, page_size, spare
        self.burst, self.goes_on = burst, goes_on
        self.rows = [num_rows]
        while self.rows[0] > 8:
            self.rows.insert(0, max(8, -(-self.rows[0] // 4)))
        # A chunk is written whole, padding included: rows are longer than sessions may be.
        self.contexts = [-(-(max_len + max(turn_chunk, prefill_chunk)) // page_size)]
        # Steps of 0.7, wider ones where more than six sizes would come of it.
        ratio = min(0.7, (2 * _MIN_CONTEXT / (self.contexts[0] * page_size)) ** 0.2)
        while gathered and self.contexts[0] * page_size > 2 * _MIN_CONTEXT:
            self.contexts.insert(0, math.ceil(self.contexts[0] * ratio))
        self.turns = [turn_chunk, 1] if goes_on and turn_chunk > 1 else [turn_chunk]
        self.prefill_chunk = prefill_chunk
        self._grouped = gathered and num_rows % MEMBERS == 0

    def listed(self) -> list[Program]:
        """All programs that `lay_out` may ask for, likeliest first."""
        found = []
        for rows in reversed(self.rows):
            for pages in reversed(self._contexts(rows)):
                found += [Program("turn", rows, t, pages) for t in self.turns]
                found.append(Program("prefill", rows, self.prefill_chunk, pages))
        if self._grouped:
            groups = self.num_rows // MEMBERS
            found += [
                Program("turn", self.num_rows, t, own, groups, shared)
                for t in self.turns
                for shared in self.contexts
                for own in self.contexts[:2]
                if shared >= _MIN_SHARED
            ]
        return found

    def _contexts(self, rows: int) -> list[int]:
        # The narrowest calls cost little, and every further program its compilation.
        return self.contexts if rows in self.rows[-2:] else self.contexts[-1:]

    def _fit(self, positions: int, contexts: Sequence[int]) -> int | None:
        return next((n for n in contexts if n * self.page_size >= positions), None)

    def lay_out(self, kind: str, rows: Sequence[Row], ends: Sequence[int], tokens: int) -> Layout:
        """The smallest shape for rows that reach position `ends`."""
        width = next(n for n in self.rows if n >= len(rows))
        pages = self._fit(max(ends), self._contexts(width))
        plain = Layout(Program(kind, width, tokens, pages), list(range(len(rows))), [])
        if kind != "turn" or width != self.num_rows or not self._grouped or len(rows) < MEMBERS:
            return plain
        return self._in_groups(plain, rows, ends) or plain

    def _in_groups(self, plain: Layout, rows: Sequence[Row], ends: Sequence[int]) -> Layout | None:
        """The same rows, those with common first pages side by side; None where that gains little."""
        size, blocks = self.page_size, self.num_rows // MEMBERS
        # Only pages that are full: the row's own begin at a page's beginning.
        full = [row.pages_held(size)[: row.done // size] for row in rows]
        groups: list[tuple[list[int], list[int]]] = []  # members, common pages
        for number in sorted(range(len(rows)), key=lambda i: full[i]):
            if groups and len(groups[-1][0]) < MEMBERS:
                members, common = groups[-1]
                length = common_length(common, full[number])
                # Worth it as long as no member has much more that the others lack.
                if 4 * length >= 3 * max(len(common), len(full[number])):
                    groups[-1] = ([*members, number], common[:length])
                    continue
            groups.append(([number], full[number]))
        if len(groups) > blocks:
            return None
        lines = [0] * len(rows)
        for block, (members, _) in enumerate(groups):
            for place, number in enumerate(members):
                lines[number] = block * MEMBERS + place
        common = [pages for _, pages in groups]
        longest = max(map(len, common))
        own = self._fit(
            max(end - size * len(common[i // MEMBERS]) for end, i in zip(ends, lines, strict=True)),
            self.contexts[:2],
        )
        if longest < _MIN_SHARED or own is None:
            return None
        shared = self._fit(size * longest, self.contexts)
        if blocks * shared + self.num_rows * own > 0.7 * self.num_rows * plain.program.pages:
            return None
        program = dataclasses.replace(plain.program, pages=own, groups=blocks, shared=shared)
        return Layout(program, lines, common)

    def tables(self, layout: Layout, rows: Sequence[Row], reach: int) -> Pages:
        """Where the rows read, and where they write the next `reach` positions."""
        program, size = layout.program, self.page_size
        shared = np.full((program.groups or program.rows, program.shared), self.spare, np.int32)
        base = np.zeros(program.rows, np.int32)
        for block, common in enumerate(layout.common):
            shared[block, : len(common)] = common
            base[block * MEMBERS : (block + 1) * MEMBERS] = size * len(common)
        start = base.copy()
        table = np.full((program.rows, program.pages), self.spare, np.int32)
        target = np.full((program.rows, num_targets(reach, size)), self.spare, np.int32)
        for row, line in zip(rows, layout.lines, strict=True):
            start[line] = row.done
            held = row.pages_held(size)[base[line] // size :]
            table[line, : len(held)] = held
            for index, page in row.pages.items():
                column = index - row.done // size
                if 0 <= column < target.shape[1]:
                    target[line, column] = page
        return Pages(shared, base, table, start, target)
