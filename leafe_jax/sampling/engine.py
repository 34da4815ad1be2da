"""The sampler: token sessions that fork and rewind over one pool of KV pages, jitted prefill and decode.

A session is a list of token ids and nothing else. What has been computed lies in pages that a prefix tree
over token ids finds again (`leafe_jax.sampling.pages`): forks, branches from an earlier step, the
reflection call, samples of one task and prompts that are rebuilt every step share what they have in
common, whoever computed it. What is not there is computed, so running out of pages costs time, never
correctness. The engine knows token ids only; text is `leafe_jax.chat`'s and
`leafe_jax.sampling.policy`'s business.

Static shapes (`leafe_jax.sampling.programs`): a `turn` program (one chunk of prompt tokens, then decoding
until every row has stopped) and a `prefill` program for longer prompts, each for a few numbers of rows
and of context pages. Nothing else is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling import methods, programs
from leafe_jax.sampling.pages import Match, PageTree, common_length
from leafe_jax.types import Sampling


@dataclasses.dataclass(eq=False)
class Session:
    """One token sequence.

    Attributes:
      ids: all tokens so far, sampled ones included.
    """

    ids: list[int] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Request:
    """Append `new_ids` to `session`, then sample.

    Attributes:
      session: the session to extend; it must occur once in a batch.
      new_ids: prompt tokens to append.
      max_new_tokens: most tokens to sample, at least 1.
      sampling: how tokens are drawn.
      seed: 32-bit seed; the key of the token at absolute position p is fold_in(seed, p), so a
        request's tokens depend neither on its slot nor on its neighbours.
    """

    session: Session
    new_ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int


@dataclasses.dataclass(frozen=True)
class Generation:
    """What was sampled for one request.

    Attributes:
      ids: sampled tokens, the stop token included.
      logprobs: log-probability of each under the model (temperature 1, all tokens).
      sampled_logprobs: the same under the distribution it was drawn from (0 where greedy).
      finish_reason: "stop", "length" (max_new_tokens) or "context" (no room left; ids may be empty).
      prefilled: prompt tokens computed for this request.
      cached: prompt tokens whose keys and values were already there.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    sampled_logprobs: tuple[float, ...]
    finish_reason: str
    prefilled: int
    cached: int


_MEMBERS = 8  # rows of a group that shares its first pages
_MIN_SHARED = 16  # pages; with fewer a group gains less than another program takes to compile


@dataclasses.dataclass(eq=False)
class _Row:
    """A sequence in flight.

    Attributes:
      ids: all of its ids that are known.
      match: what the tree holds of it, pinned.
      pages: index of a page within the sequence -> the page that takes it.
      done: positions computed so far.
    """

    ids: list[int]
    match: Match
    pages: dict[int, int]
    done: int

    def pages_held(self, size: int) -> list[int]:
        """Pages of the computed positions: those found, and from the first written on those written."""
        held = [node.page for node in self.match.nodes]
        if self.done > self.match.length:
            first = self.match.length // size
            held[first:] = [self.pages[i] for i in range(first, -(-self.done // size))]
        return held


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Shape of a call.

    Attributes:
      lines: the line of each row.
      width, pages: lines, and context pages of each.
      common: pages that each group of _MEMBERS lines begins with; [] without groups.
      shared: room for them, in pages.
    """

    lines: list[int]
    width: int
    pages: int
    common: list[list[int]]
    shared: int


class Engine:
    """Sessions over one pool of pages.

    Args:
      config, params: the model; the dtype of the parameters is the compute dtype.
      num_slots: sequences computed together.
      max_len: most tokens a session can have.
      turn_chunk: prompt tokens handled in the same program as decoding.
      prefill_chunk: prompt tokens a prefill call handles.
      max_new_tokens: most tokens a request may ask for.
      stop_ids: token ids that end a reply.
      page_size: positions of a page.
      num_pages: of the pool; 0 makes room for num_slots sessions of max_len tokens.

    Raises:
      UserError: sizes out of range.
    """

    def __init__(
        self,
        config: ModelConfig,
        params,
        *,
        num_slots: int,
        max_len: int,
        turn_chunk: int,
        prefill_chunk: int,
        max_new_tokens: int,
        stop_ids: tuple[int, ...],
        page_size: int = 16,
        num_pages: int = 0,
    ):
        for name, value in (
            ("num_slots", num_slots),
            ("turn_chunk", turn_chunk),
            ("prefill_chunk", prefill_chunk),
            ("max_new_tokens", max_new_tokens),
            ("page_size", page_size),
        ):
            if value < 1:
                raise UserError(f"sampler.{name} = {value}: must be at least 1")
        if not turn_chunk + max_new_tokens <= max_len <= config.max_position_embeddings:
            raise UserError(
                f"sampler.max_len = {max_len}: must be at least turn_chunk + max_new_tokens ="
                f" {turn_chunk + max_new_tokens} and at most the model's"
                f" {config.max_position_embeddings} positions"
            )
        # One more than the tokens need: a page that is read in part is written anew.
        longest = -(-max_len // page_size) + 1
        num_pages = num_pages or num_slots * longest
        if num_pages < longest:
            raise UserError(
                f"sampler.num_pages = {num_pages}: one session of sampler.max_len = {max_len} tokens"
                f" needs {longest}"
            )
        self.config, self.params = config, params
        self.num_slots, self.max_len, self.max_new_tokens = num_slots, max_len, max_new_tokens
        self.turn_chunk, self.prefill_chunk, self.stop_ids = turn_chunk, prefill_chunk, stop_ids
        self.tree = PageTree(num_pages, page_size)
        self.shapes = self._shapes()
        # The last page takes what nobody wants.
        shape = (num_pages + 1, config.num_kv_heads, page_size, config.head_dim)
        dtype = jax.tree.leaves(params)[0].dtype
        self._pool = programs.KVCache(
            tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)),
            tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)),
        )

    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(numbers of rows, numbers of context pages) that programs are compiled for."""
        rows = [self.num_slots]
        while rows[0] > 8:
            rows.insert(0, max(8, -(-rows[0] // 4)))
        # A chunk is written whole, padding included: rows are longer than sessions may be.
        longest = self.max_len + max(self.turn_chunk, self.prefill_chunk)
        pages = [-(-longest // self.tree.page_size)]
        while pages[0] * self.tree.page_size > 2 * 64:
            pages.insert(0, -(-pages[0] * 7 // 10))
        return tuple(rows), tuple(pages)

    # -- sessions ------------------------------------------------------------------------------
    def start(self) -> Session:
        """An empty session."""
        return Session()

    def fork(self, session: Session, length: int | None = None) -> Session:
        """A new session with the first `length` ids of `session`; shares no state with it."""
        length = len(session) if length is None else length
        if not 0 <= length <= len(session):
            raise ValueError(f"fork length {length}: the session has {len(session)} tokens")
        return Session(ids=session.ids[:length])

    def rewind(self, session: Session, length: int) -> None:
        """Forgets everything after the first `length` ids."""
        if not 0 <= length <= len(session):
            raise ValueError(f"rewind length {length}: the session has {len(session)} tokens")
        del session.ids[length:]

    def append(self, session: Session, ids: Sequence[int]) -> None:
        """Appends known ids without sampling; they are computed when the session is next used."""
        session.ids.extend(ids)

    def release(self, session: Session) -> None:
        """Ends a session; its pages stay until room is needed."""
        session.ids.clear()

    # -- generation ----------------------------------------------------------------------------
    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Serves requests, at most `num_slots` at a time, in order.

        Raises:
          ValueError: a session occurs twice, or a request's numbers are out of range.
        """
        if len({id(r.session) for r in requests}) != len(requests):
            raise ValueError("a session occurs twice in one batch")
        for request in requests:
            if not 1 <= request.max_new_tokens <= self.max_new_tokens:
                raise ValueError(
                    f"max_new_tokens = {request.max_new_tokens}: must be 1..{self.max_new_tokens}"
                )
            if len(request.session) + len(request.new_ids) == 0:
                raise ValueError("an empty prompt: at least one token is needed to sample from")
            for token, _ in request.sampling.logit_bias:
                if token >= self.config.vocab_size:
                    raise ValueError(
                        f"logit_bias: token id {token}: the model has {self.config.vocab_size}"
                    )
        results: list[Generation | None] = [None] * len(requests)
        waiting = []
        for index, request in enumerate(requests):
            if len(request.session) + len(request.new_ids) < self.max_len:
                waiting.append(index)
            else:
                results[index] = Generation((), (), (), "context", 0, 0)
        shared = [0] * len(requests)
        while waiting:
            batch = waiting[: self.num_slots]
            served = self._generate([requests[i] for i in batch], batch, shared)
            for index, result in zip(waiting, served, strict=False):
                results[index] = result
            waiting = waiting[len(served) :]
        return results

    def _generate(
        self, requests: Sequence[Request], numbers: list[int], shared: list[int]
    ) -> list[Generation]:
        """Serves as many of the first requests as there are pages for, at least one.

        Args:
          requests: to serve.
          numbers: their places in `shared`.
          shared: positions computed on a request's account before it was served; added to.
        """
        wanted = [r.session.ids + list(r.new_ids) for r in requests]
        for number, count in zip(numbers, self._prefill_shared(wanted), strict=True):
            shared[number] += count
        rows: list[_Row] = []
        for ids, request in zip(wanted, requests, strict=True):
            row = self._admit(ids, min(len(ids) + request.max_new_tokens, self.max_len))
            if row is None:
                break
            rows.append(row)
        assert rows, "the pool has room for one session"
        self._prefill_rows(rows)
        outcome = self._decode(rows, requests)
        results = []
        for number, row in enumerate(rows):
            ids, logprobs, count = (x[number] for x in outcome)
            before = shared[numbers[number]]
            results.append(
                self._finish(requests[number], row, before, ids[:count], logprobs[:, :count])
            )
        return results

    def _prefill_shared(self, wanted: list[list[int]]) -> list[int]:
        """Computes what several sequences of a batch have in common once, before they split.

        Returns:
          For each sequence the positions computed here on its account: the first that has them.
        """
        size = self.tree.page_size
        cached = [self.tree.match(ids[:-1]).length for ids in wanted]
        extra = [0] * len(wanted)
        shared: dict[tuple[int, ...], int] = {}
        order = sorted(range(len(wanted)), key=lambda i: wanted[i])
        for left, right in zip(order, order[1:], strict=False):
            a, b = wanted[left], wanted[right]
            length = min(common_length(a, b), len(a) - 1, len(b) - 1)
            length -= length % size
            if length > max(cached[left], cached[right]):
                shared.setdefault(tuple(a[:length]), left)
        while shared:
            # Together what does not hang on another; what does finds it computed in the next round.
            ready = [
                ids for ids in shared
                if not any(ids[: len(o)] == o for o in shared if len(o) < len(ids))
            ][: self.num_slots]  # fmt: skip
            rows = []
            for ids in ready:
                row = self._admit([*ids, 0], len(ids))
                if row is None:  # no room: every sequence computes its own
                    shared.clear()
                    break
                extra[shared.pop(ids)] += len(ids) - row.match.length
                rows.append(row)
            self._prefill_rows(rows, whole=True)
            for row in rows:
                self.tree.unpin(row.match.nodes)
                self.tree.insert(row.ids[:-1], row.pages)
        return extra

    def _admit(self, ids: list[int], end: int) -> _Row | None:
        """A row for `ids` with pages up to position `end`; None when there are no pages left.

        The last token is always computed anew, since its hidden state is needed to sample.
        """
        match = self.tree.match(ids[:-1])
        self.tree.pin(match.nodes)
        size = self.tree.page_size
        needed = range(match.length // size, -(-end // size))
        taken = self.tree.take(len(needed))
        if taken is None:
            self.tree.unpin(match.nodes)
            return None
        return _Row(ids, match, dict(zip(needed, taken, strict=True)), match.length)

    def _prefill_rows(self, rows: list[_Row], whole: bool = False) -> None:
        """Computes prompts until a turn's chunk is left of each (`whole`: all but the last token)."""
        while True:
            todo = [
                row for row in rows
                if len(row.ids) - row.done > (1 if whole else self.turn_chunk)
            ]  # fmt: skip
            if not todo:
                return
            counts = [min(self.prefill_chunk, len(row.ids) - 1 - row.done) for row in todo]
            ends = [row.done + self.prefill_chunk for row in todo]
            pages, layout = self._pages(todo, ends, self.prefill_chunk, group=False)
            tokens = np.zeros((layout.width, self.prefill_chunk), np.int32)
            for line, row, count in zip(layout.lines, todo, counts, strict=True):
                tokens[line, :count] = row.ids[row.done : row.done + count]
            self._pool = programs.prefill(self.config, self.params, self._pool, pages, tokens)
            for row, count in zip(todo, counts, strict=True):
                row.done += count

    def _fit(self, positions: int, width: int) -> int:
        """The smallest compiled number of context pages for so many positions."""
        if width < self.num_slots:  # a few rows cost little, and another program its compilation
            return self.shapes[1][-1]
        return next(n for n in self.shapes[1] if n * self.tree.page_size >= positions)

    def _layout(self, rows: list[_Row], ends: list[int], group: bool) -> _Layout:
        """Which line of a call each row takes, and whether groups of them share their first pages."""
        size = self.tree.page_size
        width = next(n for n in self.shapes[0] if n >= len(rows))
        plain = _Layout(list(range(len(rows))), width, self._fit(max(ends), width), [], 0)
        blocks = width // _MEMBERS
        if not group or len(rows) < _MEMBERS or width % _MEMBERS:
            return plain
        # Only pages that are full: the row's own begin at a page's beginning.
        full = [row.pages_held(size)[: row.done // size] for row in rows]
        groups: list[tuple[list[int], list[int]]] = []  # members, common pages
        for number in sorted(range(len(rows)), key=lambda i: full[i]):
            if groups and len(groups[-1][0]) < _MEMBERS:
                members, common = groups[-1]
                length = common_length(common, full[number])
                # Worth it as long as no member has much more that the others lack.
                if 4 * length >= 3 * max(len(common), len(full[number])):
                    groups[-1] = ([*members, number], common[:length])
                    continue
            groups.append(([number], full[number]))
        if len(groups) > blocks:
            return plain
        lines = [0] * len(rows)
        for block, (members, _) in enumerate(groups):
            for place, number in enumerate(members):
                lines[number] = block * _MEMBERS + place
        common = [pages for _, pages in groups]
        own = max(
            end - size * len(common[line // _MEMBERS])
            for end, line in zip(ends, lines, strict=True)
        )
        longest = max(map(len, common))
        if longest < _MIN_SHARED:
            return plain
        shared = self._fit(size * longest, width)
        grouped = _Layout(lines, width, self._fit(own, width), common, shared)
        cost = blocks * shared + width * grouped.pages
        return grouped if cost <= 0.7 * width * plain.pages else plain

    def _pages(
        self, rows: list[_Row], ends: list[int], length: int, group: bool
    ) -> tuple[programs.Pages, _Layout]:
        """Tables of the smallest compiled shape for rows that reach `ends`, writing `length` positions."""
        size, spare = self.tree.page_size, self.tree.num_pages
        layout = self._layout(rows, ends, group)
        blocks = layout.width // _MEMBERS if layout.common else layout.width
        shared = np.full((blocks, layout.shared), spare, np.int32)
        base = np.zeros(layout.width, np.int32)
        for block, common in enumerate(layout.common):
            shared[block, : len(common)] = common
            base[block * _MEMBERS : (block + 1) * _MEMBERS] = size * len(common)
        start = base.copy()
        table = np.full((layout.width, layout.pages), spare, np.int32)
        target = np.full((layout.width, (length - 1) // size + 2), spare, np.int32)
        for row, line in zip(rows, layout.lines, strict=True):
            start[line] = row.done
            held = row.pages_held(size)[base[line] // size :]
            table[line, : len(held)] = held
            for index, page in row.pages.items():
                column = index - row.done // size
                if 0 <= column < target.shape[1]:
                    target[line, column] = page
        return programs.Pages(shared, base, table, start, target), layout

    def _decode(self, rows: list[_Row], requests: Sequence[Request]):
        """One turn; returns (ids, logprobs, count) with the rows first."""
        reach = self.turn_chunk + self.max_new_tokens
        ends = [max(row.done + self.turn_chunk, len(row.ids) + self.max_new_tokens) for row in rows]
        ends = [min(end, self.max_len + self.turn_chunk) for end in ends]
        pages, layout = self._pages(rows, ends, reach, group=True)
        width = layout.width
        tokens = np.zeros((width, self.turn_chunk), np.int32)
        num_tokens = np.zeros(width, np.int32)
        budget = np.ones(width, np.int32)
        seeds = np.zeros(width, np.uint32)
        samplings: list[Sampling | None] = [None] * width
        contexts: list[Sequence[int]] = [()] * width
        for line, row, request in zip(layout.lines, rows, requests, strict=False):
            rest = row.ids[row.done :]
            tokens[line, : len(rest)] = rest
            num_tokens[line] = len(rest)
            budget[line] = request.max_new_tokens
            seeds[line] = request.seed & 0xFFFFFFFF
            samplings[line], contexts[line] = request.sampling, row.ids
        options = methods.make_options(samplings, contexts, self.config.vocab_size)
        self._pool, ids, logprobs, count = programs.turn(
            self.config, self.params, self._pool, pages, tokens, num_tokens, budget, options, seeds,
            max_new=self.max_new_tokens, stop_ids=self.stop_ids, max_len=self.max_len,
        )  # fmt: skip
        ids, logprobs, count = jax.device_get((ids, logprobs, count))
        lines = layout.lines
        return ids[lines], logprobs[:, lines].swapaxes(0, 1), count[lines]

    def _finish(self, request: Request, row: _Row, before: int, ids, logprobs) -> Generation:
        session = request.session
        session.ids.extend(request.new_ids)
        session.ids.extend(ids.tolist())
        self.tree.unpin(row.match.nodes)
        # The last sampled token has not been through the model yet.
        self.tree.insert(session.ids[:-1], row.pages)
        if int(ids[-1]) in self.stop_ids:
            reason = "stop"
        else:
            reason = "length" if len(ids) == request.max_new_tokens else "context"
        return Generation(
            tuple(ids.tolist()),
            *(tuple(float(x) for x in of) for of in logprobs),
            reason,
            prefilled=len(row.ids) - row.match.length + before,
            cached=max(row.match.length - before, 0),
        )
