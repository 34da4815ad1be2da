"""Which shapes are compiled, and how the rows of a call are laid out in one of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from leafe_jax.sampling.cache import Pages
from leafe_jax.sampling.prefix_tree import Match, common_length
from leafe_jax.sampling.programs import Program, num_targets

MEMBERS = 8  # rows of a group that shares its first pages
_MIN_SHARED = 16  # pages; with fewer a group gains less than another program takes to compile
_MIN_CONTEXT = 128  # positions; shorter contexts cost next to nothing
_PREFILL_TOKENS = 1024  # of a prefill call: enough to keep the matrix units busy
_CALL_TOKENS = 64  # a prefill call takes as much longer than its tokens do


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
      numbers: which of the rows stand in it.
      lines: the line of each of them.
      common: pages that each group of MEMBERS lines begins with; [] without groups.
    """

    program: Program
    numbers: list[int]
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
      weight_positions: reading the model's weights takes as long as attending to so many positions.
      token_positions: computing a prompt token, but for attention, as long as its attending to so many.
    """

    def __init__(
        self, *, num_rows: int, max_len: int, page_size: int, spare: int, prefill_chunk: int,
        turn_chunk: int, burst: int, goes_on: bool, gathered: bool, weight_positions: float,
        token_positions: float,
    ):  # fmt: skip
        self.num_rows, self.page_size, self.spare = num_rows, page_size, spare
        self.burst, self.weight_positions = burst, weight_positions
        self.token_positions = token_positions
        self.rows = [num_rows]
        while self.rows[0] > 8:
            self.rows.insert(0, max(8, -(-self.rows[0] // 4)))
        # A chunk is written whole, padding included: rows are longer than sessions may be.
        self.contexts = [-(-(max_len + max(turn_chunk, prefill_chunk)) // page_size)]
        # Steps of 0.7, wider ones where more than six sizes would come of it.
        ratio = min(0.7, (2 * _MIN_CONTEXT / (self.contexts[0] * page_size)) ** 0.2)
        while gathered and self.contexts[0] * page_size > 2 * _MIN_CONTEXT:
            self.contexts.insert(0, math.ceil(self.contexts[0] * ratio))
        # Of a group: what is its members' own is short, what they share is at most a session.
        self.own = sorted({-(-_MIN_CONTEXT // page_size), *self.contexts[:1]})
        self.shared = sorted({-(-max_len // page_size), *self.contexts[:-1]})
        self.turns = [turn_chunk, 1] if goes_on and turn_chunk > 1 else [turn_chunk]
        # Tokens of a prefill call's rows, and how many rows it may have: requests that come one by one
        # would be mostly padding in a wide call.
        chunks = {turn_chunk, prefill_chunk}
        if prefill_chunk >= 4 * turn_chunk:
            chunks.add(1 << (math.isqrt(turn_chunk * prefill_chunk) - 1).bit_length())
        self.prefills: dict[int, list[int]] = {}
        for chunk in sorted(chunks):
            most = max(1, min(num_rows, _PREFILL_TOKENS // chunk))
            self.prefills[chunk] = sorted({-(-most // 4), most})
        self._grouped = gathered and num_rows % MEMBERS == 0

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
        # A call writes all its tokens behind what a row has computed, so a context has room for them:
        # `_fit` never picks a smaller one, and XLA could not compile it.
        return [p for p in found if p.tokens <= p.pages * self.page_size]

    def _contexts(self, rows: int) -> list[int]:
        # The narrowest calls cost little, and every further program its compilation.
        return self.contexts if rows in self.rows[-2:] else self.contexts[-1:]

    def _prefill_contexts(self, chunk: int, rows: int) -> list[int]:
        return self.contexts if rows == self.prefills[chunk][-1] else self.contexts[::-2][::-1]

    def _fit(self, positions: int, contexts: Sequence[int]) -> int | None:
        return next((n for n in contexts if n * self.page_size >= positions), None)

    def lay_out_prefill(self, rows: Sequence[Row]) -> list[Layout]:
        """Calls that compute one chunk of each row's prompt: rows with little to do apart from those
        with much, contexts of similar length together, as wide as costs least."""
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
        """The cheapest way of cutting rows into calls.

        Args:
          ends: the position each row reaches, furthest first.
          widths: rows that a call may have, and the contexts that such calls may have.
          cost: of a call of so many rows and pages of context.

        Returns:
          (first row, width, pages) of each call.
        """
        # best[i]: (cost, width, pages) of the first call for the rows from i on.
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
        """The calls that cost least for rows that reach position `ends`: all together, apart by the
        length of their contexts, or in groups that share their first pages."""
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
        """Of a decoding step, in positions."""
        return self.weight_positions + pages * self.page_size

    def _in_groups(self, rows: Sequence[Row], ends: Sequence[int], tokens: int) -> Layout | None:
        """All rows in one call, those with common first pages side by side; None if they do not fit."""
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
            self.own,
        )
        if longest < _MIN_SHARED or own is None:
            return None
        shared = self._fit(size * longest, self.shared)
        program = Program("turn", self.num_rows, tokens, own, blocks, shared)
        return Layout(program, list(range(len(rows))), lines, common)

    def tables(self, layout: Layout, rows: Sequence[Row], reach: int) -> Pages:
        """Where the layout's rows read, and where they write the next `reach` positions."""
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
