"""Chooses which shapes are compiled, and lays out the rows of a call in one of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from leafe_jax.sampling.cache import Pages
from leafe_jax.sampling.prefix_tree import Match, common_length
from leafe_jax.sampling.programs import Program, num_targets

MEMBERS = 8  # rows in a group that shares its first pages
_MIN_SHARED = 16  # pages; sharing fewer saves less time than the extra program takes to compile
_MIN_CONTEXT = 128  # positions; shorter contexts cost next to nothing
_PREFILL_TOKENS = 1024  # tokens of a prefill call: enough to keep the matrix units busy
_CALL_TOKENS = 64  # fixed cost of a prefill call, in units of one token's compute


@dataclasses.dataclass(eq=False)
class Row:
    """A sequence in flight.

    Attributes:
      ids: all of its token ids so far.
      match: the part that the prefix tree held when the sequence was admitted; its nodes are pinned.
      pages: index of a page within the sequence -> page of the pool to write it to.
      done: positions computed so far.
    """

    ids: list[int]
    match: Match
    pages: dict[int, int]
    done: int

    @property
    def rest(self) -> int:
        """Number of ids whose keys and values are not computed yet."""
        return len(self.ids) - self.done

    def pages_held(self, size: int) -> list[int]:
        """Pages of the computed positions, in order: those from the tree, then those written."""
        held = [node.page for node in self.match.nodes]
        if self.done > self.match.length:
            first = self.match.length // size
            held[first:] = [self.pages[i] for i in range(first, -(-self.done // size))]
        return held


@dataclasses.dataclass(frozen=True)
class Layout:
    """One call, and which sequence is in which of its rows.

    Attributes:
      program: the program that the call runs.
      numbers: indices of the sequences in the call.
      lines: the call's row for each of them.
      common: for each group of MEMBERS consecutive lines, the pages it shares; [] without groups.
    """

    program: Program
    numbers: list[int]
    lines: list[int]
    common: list[list[int]]


@dataclasses.dataclass(kw_only=True, eq=False)
class Shapes:
    """The shapes of an engine.

    Attributes:
      num_rows: rows computed together.
      max_len: most tokens in a session.
      page_size: positions per page.
      spare: a page of the pool that nobody reads.
      prefill_chunk, turn_chunk: prompt tokens per row (T) of prefill and turn programs.
      burst: most tokens that a turn samples per row.
      goes_on: True if a reply may take more than one burst. Later bursts have a prompt of one token.
      gathered: True if contexts are gathered, which makes shorter and shared contexts cheaper. Pages that
        are read in place need only one context size.
      weight_positions: cost of reading the model's weights, expressed as a number of attended positions.
      token_positions: non-attention cost of one prompt token, expressed as a number of attended positions.
    """

    num_rows: int
    max_len: int
    page_size: int
    spare: int
    prefill_chunk: int
    turn_chunk: int
    burst: int
    goes_on: bool
    gathered: bool
    weight_positions: float
    token_positions: float

    def __post_init__(self) -> None:
        chunk, size = max(self.turn_chunk, self.prefill_chunk), self.page_size
        self.rows = [self.num_rows]
        while self.rows[0] > 8:
            self.rows.insert(0, max(8, -(-self.rows[0] // 4)))
        # A chunk is written whole, padding included, so contexts are longer than sessions.
        self.contexts = [-(-(self.max_len + chunk) // size)]
        # Sizes shrink by a factor of 0.7, or by a smaller one where that would give more than six.
        ratio = min(0.7, (2 * _MIN_CONTEXT / (self.contexts[0] * size)) ** 0.2)
        while self.gathered and self.contexts[0] * size > 2 * _MIN_CONTEXT:
            self.contexts.insert(0, math.ceil(self.contexts[0] * ratio))
        # In a group, a member's own context is short, and the shared one is at most a session long.
        self.own = sorted({-(-_MIN_CONTEXT // size), *self.contexts[:1]})
        self.shared = sorted({-(-self.max_len // size), *self.contexts[:-1]})
        self.turns = (
            [self.turn_chunk, 1] if self.goes_on and self.turn_chunk > 1 else [self.turn_chunk]
        )
        # Chunk of a prefill call -> the numbers of rows it may have. A wide call would be mostly padding
        # for requests that arrive one by one.
        chunks = {self.turn_chunk, self.prefill_chunk}
        if self.prefill_chunk >= 4 * self.turn_chunk:
            chunks.add(1 << (math.isqrt(self.turn_chunk * self.prefill_chunk) - 1).bit_length())
        self.prefills: dict[int, list[int]] = {}
        for chunk in sorted(chunks):
            most = max(1, min(self.num_rows, _PREFILL_TOKENS // chunk))
            self.prefills[chunk] = sorted({-(-most // 4), most})
        self._grouped = self.gathered and self.num_rows % MEMBERS == 0

    def listed(self) -> list[Program]:
        """All programs that `lay_out` may ask for, likeliest first."""
        found = []
        for rows in reversed(self.rows):
            for pages in reversed(self._contexts(rows)):
                found += [Program("turn", rows, t, pages) for t in self.turns]
        for chunk, widths in self.prefills.items():
            for rows in reversed(widths):
                found += [
                    Program("prefill", rows, chunk, n) for n in self._prefill_contexts(chunk, rows)
                ]
        if self._grouped:
            groups = self.num_rows // MEMBERS
            found += [
                Program("turn", self.num_rows, t, own, groups, shared)
                for t in self.turns
                for shared in self.shared
                for own in self.own
                if shared >= _MIN_SHARED
            ]
        # A call writes all its tokens after what a row has computed, so a context must have room for
        # them. `_fit` never picks a smaller one, and XLA could not compile it.
        return [p for p in found if p.tokens <= p.pages * self.page_size]

    def _contexts(self, rows: int) -> list[int]:
        # Narrow calls cost little, which does not justify compiling a program for each context.
        return self.contexts if rows in self.rows[-2:] else self.contexts[-1:]

    def _prefill_contexts(self, chunk: int, rows: int) -> list[int]:
        return self.contexts if rows == self.prefills[chunk][-1] else self.contexts[::-2][::-1]

    def _fit(self, positions: int, contexts: Sequence[int]) -> int | None:
        return next((n for n in contexts if n * self.page_size >= positions), None)

    def lay_out_prefill(self, rows: Sequence[Row]) -> list[Layout]:
        """The cheapest calls that compute one chunk of each row's prompt.

        Rows that need different chunk sizes get different calls. Within a chunk size, contexts of similar
        length share a call.
        """
        chunks: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            fits = [chunk for chunk in self.prefills if row.rest - 1 <= chunk]
            chunks.setdefault(min(fits, default=max(self.prefills)), []).append(number)
        layouts = []
        for chunk, order in sorted(chunks.items()):
            order.sort(key=lambda i: -rows[i].done)
            parts = self._divide(
                [rows[i].done + chunk for i in order],
                [(width, self._prefill_contexts(chunk, width)) for width in self.prefills[chunk]],
                lambda width, pages, chunk=chunk: (
                    (_CALL_TOKENS + width * chunk) * (self.token_positions + pages * self.page_size)
                ),
            )
            for begin, width, pages in parts:
                numbers = order[begin : begin + width]
                program = Program("prefill", width, chunk, pages)
                layouts.append(Layout(program, numbers, list(range(len(numbers))), []))
        return layouts

    def _divide(
        self,
        ends: Sequence[int],
        widths: Sequence[tuple[int, Sequence[int]]],
        cost: Callable[[int, int], float],
    ) -> list[tuple[int, int, int]]:
        """The cheapest division of rows into calls: (first row, width, pages) of each call.

        Args:
          ends: position that each row reaches, furthest first.
          widths: (number of rows, contexts in pages) that a call may have.
          cost: (rows, pages of context) -> cost of a call.
        """
        # best[i]: (total cost, width, pages) of the first call, for the rows from i on.
        best: list[tuple[float, int, int]] = [(0.0, 0, 0)] * (len(ends) + 1)
        for begin in range(len(ends) - 1, -1, -1):
            options = []
            for width, contexts in widths:
                pages = self._fit(ends[begin], contexts)
                rest = best[min(begin + width, len(ends))][0]
                options.append((rest + cost(width, pages), width, pages))
            best[begin] = min(options)
        parts, begin = [], 0
        while begin < len(ends):
            _, width, pages = best[begin]
            parts.append((begin, width, pages))
            begin += width
        return parts

    def lay_out_turn(self, rows: Sequence[Row], ends: Sequence[int], tokens: int) -> list[Layout]:
        """The cheapest calls for rows that reach position `ends`: one call, several by length of context,
        or one with groups of rows that share their first pages."""
        order = sorted(range(len(rows)), key=lambda i: -ends[i])
        parts = self._divide(
            [ends[i] for i in order],
            [(width, self._contexts(width)) for width in self.rows],
            lambda width, pages: self._cost(width * pages),
        )
        layouts = []
        for begin, width, pages in parts:
            numbers = sorted(order[begin : begin + width])
            program = Program("turn", width, tokens, pages)
            layouts.append(Layout(program, numbers, list(range(len(numbers))), []))
        if self._grouped and MEMBERS <= len(rows) <= self.num_rows:
            grouped = self._in_groups(rows, ends, tokens)
            if grouped is not None:
                p = grouped.program
                apart = sum(self._cost(width * pages) for _, width, pages in parts)
                if self._cost(p.groups * p.shared + p.rows * p.pages) < 0.9 * apart:
                    return [grouped]
        return layouts

    def _cost(self, pages: int) -> float:
        """Cost of a decode step with `pages` pages of context, in attended positions."""
        return self.weight_positions + pages * self.page_size

    def _in_groups(self, rows: Sequence[Row], ends: Sequence[int], tokens: int) -> Layout | None:
        """All rows in one call, with rows that share their first pages next to each other.

        Returns None if the rows do not fit into groups, or if they share too little.
        """
        size, blocks = self.page_size, self.num_rows // MEMBERS
        # Only full pages can be shared, because a row's own context begins at a page boundary.
        full = [row.pages_held(size)[: row.done // size] for row in rows]
        groups: list[tuple[list[int], list[int]]] = []  # members, common pages
        for number in sorted(range(len(rows)), key=lambda i: full[i]):
            if groups and len(groups[-1][0]) < MEMBERS:
                members, common = groups[-1]
                length = common_length(common, full[number])
                # Sharing pays off only if no member has much beyond the shared pages.
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
            self.own,
        )
        if longest < _MIN_SHARED or own is None:
            return None
        shared = self._fit(size * longest, self.shared)
        program = Program("turn", self.num_rows, tokens, own, blocks, shared)
        return Layout(program, list(range(len(rows))), lines, common)

    def tables(self, layout: Layout, rows: Sequence[Row], reach: int) -> Pages:
        """Which pages the layout's rows read, and to which they write the next `reach` positions."""
        program, size = layout.program, self.page_size
        shared = np.full((program.groups or program.rows, program.shared), self.spare, np.int32)
        base = np.zeros(program.rows, np.int32)
        for block, common in enumerate(layout.common):
            shared[block, : len(common)] = common
            base[block * MEMBERS : (block + 1) * MEMBERS] = size * len(common)
        start = base.copy()
        table = np.full((program.rows, program.pages), self.spare, np.int32)
        target = np.full((program.rows, num_targets(reach, size)), self.spare, np.int32)
        for number, line in zip(layout.numbers, layout.lines, strict=True):
            row = rows[number]
            start[line] = row.done
            held = row.pages_held(size)[base[line] // size :]
            table[line, : len(held)] = held
            for index, page in row.pages.items():
                column = index - row.done // size
                if 0 <= column < target.shape[1]:
                    target[line, column] = page
        return Pages(shared, base, table, start, target)
