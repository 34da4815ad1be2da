"""The sampler: token sessions that fork and rewind over one pool of KV pages, jitted prefill and decode.

A session is a list of token ids and nothing else. What has been computed lies in pages that a prefix tree
over token ids finds again (`leafe_jax.sampling.pages`): forks, branches from an earlier step, the
reflection call, samples of one task and prompts that are rebuilt every step share what they have in
common, whoever computed it. What is not there is computed, so running out of pages costs time, never
correctness. The engine knows token ids only; text is `leafe_jax.chat`'s and
`leafe_jax.sampling.policy`'s business.

A call gathers the pages of its rows into contiguous buffers, where attention is cheapest, and writes the
new pages back at its end: copy-on-write comes with it, since a page is read at one place and
written at another. Static shapes: a `turn` program (one chunk of prompt tokens, then decoding until every
row has stopped) and a `prefill` program for longer prompts, each for a few numbers of rows and of context
pages (`Engine.shapes`). Nothing else is compiled.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.models import decoder
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling import methods
from leafe_jax.sampling.pages import Match, PageTree
from leafe_jax.types import Sampling


class KVCache(NamedTuple):
    """Keys and values, one array a layer: the pool [pages, kv_heads, page_size, head_dim], or the rows of
    a call [rows, kv_heads, positions, head_dim].

    The time axis lies next to head_dim: on XLA's CPU backend this order made decoding attention
    several times cheaper than the one with heads innermost.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


class Pages(NamedTuple):
    """Where the rows of a call read and write.

    Attributes:
      table: int32 [B, P] pages of each row's context, in order.
      start: int32 [B] positions that they hold already.
      target: int32 [B, W] pages that take the positions from start on, page by page; the pool's last
        page, which nobody reads, where nothing is to be kept.
    """

    table: jax.Array
    start: jax.Array
    target: jax.Array


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


# -- device programs -------------------------------------------------------------------------------
def _write(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes new [B, K, T, H] into cache [B, K, S, H] at time start [B] of each row."""
    return jax.vmap(lambda c, n, s: jax.lax.dynamic_update_slice(c, n, (0, s, 0)))(
        cache, new.astype(cache.dtype), start
    )


def _attend_cached(cache: KVCache, start: jax.Array, written: list) -> decoder.Attend:
    """Attention hook: writes each layer's new keys and values at `start` [B], then attends to all
    positions up to and including the query's own. The new layers are appended to `written`."""

    def attend(layer, q, k, v):  # q [B, T, N, H], k and v [B, T, K, H]
        batch, num_new, num_heads, head_dim = q.shape
        kv_heads = k.shape[2]
        keys = _write(cache.k[layer], k.transpose(0, 2, 1, 3), start)
        values = _write(cache.v[layer], v.transpose(0, 2, 1, 3), start)
        written.append((keys, values))
        group = num_heads // kv_heads
        q = q.reshape(batch, num_new, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
        q = q.reshape(batch, kv_heads, group * num_new, head_dim)
        scores = jnp.einsum("bkth,bksh->bkts", q, keys, preferred_element_type=jnp.float32)
        scores = scores.reshape(batch, kv_heads, group, num_new, -1) * head_dim**-0.5
        position = start[:, None] + jnp.arange(num_new)  # [B, T]
        visible = jnp.arange(keys.shape[2]) <= position[..., None]  # [B, T, S]
        # What lies beyond a row's length is stale; the mask is all that keeps it out.
        weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -1e30), axis=-1)
        weights = weights.reshape(batch, kv_heads, group * num_new, -1).astype(values.dtype)
        out = jnp.einsum("bkts,bksh->bkth", weights, values)
        out = out.reshape(batch, kv_heads, group, num_new, head_dim).transpose(0, 3, 1, 2, 4)
        return out.reshape(batch, num_new, num_heads, head_dim)

    return attend


def _gather(pool: KVCache, table: jax.Array) -> KVCache:
    """The pages of table [B, P] side by side: [B, K, P * page_size, H] a layer."""

    def rows(layer):
        pages = layer[table].transpose(0, 2, 1, 3, 4)  # [B, K, P, page_size, H]
        return pages.reshape(*pages.shape[:2], -1, pages.shape[-1])

    return jax.tree.map(rows, pool)


def _scatter(pool: KVCache, rows: KVCache, pages: Pages) -> KVCache:
    """Writes the pages from `start` on back into the pool."""
    size = pool.k[0].shape[2]
    width = pages.target.shape[1]
    held = rows.k[0].shape[2] // size
    # Whole pages, the first with what stood before `start` in it: that is the copy-on-write. Past the
    # row's end there is nothing to keep, and the target is nobody's page.
    index = jnp.minimum((pages.start // size)[:, None] + jnp.arange(width), held - 1)  # [B, W]

    def back(layer, row):
        row = row.reshape(*row.shape[:2], held, size, -1)  # [B, K, P, page_size, H]
        cut = jnp.take_along_axis(row, index[:, None, :, None, None], axis=2)
        cut = cut.transpose(0, 2, 1, 3, 4)
        return layer.at[pages.target.reshape(-1)].set(cut.reshape(-1, *cut.shape[2:]))

    return jax.tree.map(back, pool, rows)


def _forward(config, params, cache, tokens, start):
    """Runs tokens [B, T] at positions start.. and returns (hidden [B, T, D], cache)."""
    written: list = []
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    hidden = decoder.hidden(
        config, params, tokens, positions, _attend_cached(cache, start, written)
    )
    return hidden, KVCache(tuple(k for k, _ in written), tuple(v for _, v in written))


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("pool",))
def _prefill(config: ModelConfig, params, pool: KVCache, pages: Pages, tokens):
    """Computes keys and values of tokens [B, T] behind each row's context."""
    _, rows = _forward(config, params, _gather(pool, pages.table), tokens, pages.start)
    return _scatter(pool, rows, pages)


@functools.partial(
    jax.jit,
    static_argnames=("config", "max_new", "stop_ids", "max_len"),
    donate_argnames=("pool",),
)
def _turn(
    config: ModelConfig,
    params,
    pool: KVCache,
    pages: Pages,
    tokens,
    num_tokens,
    budget,
    options,
    seeds,
    *,
    max_new: int,
    stop_ids: tuple[int, ...],
    max_len: int,
):
    """One turn for every row: prefill tokens [B, T], then sample until all rows have stopped.

    Args:
      config, params, pool: the model and the pool (donated).
      pages: where each row reads and writes.
      tokens: int32 [B, T] prompt tokens, `num_tokens` [B] of them real (0: the row is idle).
      budget: int32 [B] most tokens to sample, at most max_new.
      options: see methods.make_options.
      seeds: uint32 [B].
      max_new, stop_ids, max_len: static.

    Returns:
      (pool, ids int32 [B, max_new], logprobs float32 [2, B, max_new] under the model and under the
      distribution sampled from, count int32 [B]).
    """
    start = pages.start
    cache = _gather(pool, pages.table)
    rows = jnp.arange(tokens.shape[0])
    stops = jnp.asarray(stop_ids, jnp.int32)
    hidden, cache = _forward(config, params, cache, tokens, start)
    hidden = hidden[rows, jnp.maximum(num_tokens - 1, 0)]  # [B, D]
    length = start + num_tokens
    active = num_tokens > 0

    def emit(hidden, length, active, options, ids, logprobs, count):
        logits = decoder.head(config, params, hidden)
        new, *pair = methods.sample(logits, options, seeds, length)
        # Idle rows write to their own last column again, which `count` leaves out.
        column = jnp.where(active, count, max_new)
        ids = ids.at[rows, column].set(new, mode="drop")
        logprobs = logprobs.at[:, rows, column].set(jnp.stack(pair), mode="drop")
        count = count + active
        active = active & ~jnp.isin(new, stops) & (count < budget) & (length + 1 < max_len)
        return new, active, methods.note(options, new), ids, logprobs, count

    ids = jnp.zeros((tokens.shape[0], max_new), jnp.int32)
    logprobs = jnp.zeros((2, tokens.shape[0], max_new), jnp.float32)
    count = jnp.zeros_like(length)
    last, active, options, ids, logprobs, count = emit(
        hidden, length, active, options, ids, logprobs, count
    )

    def step(carry):
        cache, last, length, active, options, ids, logprobs, count = carry
        # A stopped row computes along and writes at its own end, where nothing valid lies.
        hidden, cache = _forward(config, params, cache, last[:, None], length)
        length = length + active
        last, active, options, ids, logprobs, count = emit(
            hidden[:, 0], length, active, options, ids, logprobs, count
        )
        return cache, last, length, active, options, ids, logprobs, count

    carry = (cache, last, length, active, options, ids, logprobs, count)
    cache, *_, ids, logprobs, count = jax.lax.while_loop(lambda c: jnp.any(c[3]), step, carry)
    return _scatter(pool, cache, pages), ids, logprobs, count


# -- host ------------------------------------------------------------------------------------------
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
        self._pool = KVCache(
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
            pages.insert(0, -(-pages[0] // 2))
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
        while waiting:
            batch = [requests[i] for i in waiting[: self.num_slots]]
            served = self._generate(batch)
            for index, result in zip(waiting, served, strict=False):
                results[index] = result
            waiting = waiting[len(served) :]
        return results

    def _generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Serves as many of the first requests as there are pages for, at least one."""
        wanted = [r.session.ids + list(r.new_ids) for r in requests]
        extra = self._prefill_shared(wanted)
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
            cached = row.match.length - extra[number]
            results.append(
                self._finish(requests[number], row, cached, ids[:count], logprobs[:, :count])
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
            length = min(len(a), len(b)) - 1
            if a[:length] != b[:length]:
                length = next(i for i in range(length) if a[i] != b[i])
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
            pages, width = self._pages(todo, ends, self.prefill_chunk)
            tokens = np.zeros((width, self.prefill_chunk), np.int32)
            for number, (row, count) in enumerate(zip(todo, counts, strict=True)):
                tokens[number, :count] = row.ids[row.done : row.done + count]
            self._pool = _prefill(self.config, self.params, self._pool, pages, tokens)
            for row, count in zip(todo, counts, strict=True):
                row.done += count

    def _pages(self, rows: list[_Row], ends: list[int], length: int) -> tuple[Pages, int]:
        """Tables of the smallest compiled shape for rows that reach `ends`, writing `length` positions."""
        size, spare = self.tree.page_size, self.tree.num_pages
        width = next(n for n in self.shapes[0] if n >= len(rows))
        pages = next(n for n in self.shapes[1] if n * size >= max(ends))
        table = np.full((width, pages), spare, np.int32)
        target = np.full((width, (length - 1) // size + 2), spare, np.int32)
        start = np.zeros(width, np.int32)
        for number, row in enumerate(rows):
            start[number] = row.done
            read = [node.page for node in row.match.nodes]
            for index, page in row.pages.items():
                # The first page that is written may have been read elsewhere before.
                if index * size < row.done and (index >= len(read) or row.done > row.match.length):
                    read[index:] = [page]
                column = index - row.done // size
                if 0 <= column < target.shape[1]:
                    target[number, column] = page
            read = read[: -(-row.done // size)]
            table[number, : len(read)] = read
        return Pages(table, start, target), width

    def _decode(self, rows: list[_Row], requests: Sequence[Request]):
        """One turn; returns (ids, logprobs, count) with the rows first."""
        reach = self.turn_chunk + self.max_new_tokens
        ends = [max(row.done + self.turn_chunk, len(row.ids) + self.max_new_tokens) for row in rows]
        ends = [min(end, self.max_len + self.turn_chunk) for end in ends]
        pages, width = self._pages(rows, ends, reach)
        tokens = np.zeros((width, self.turn_chunk), np.int32)
        num_tokens = np.zeros(width, np.int32)
        budget = np.ones(width, np.int32)
        seeds = np.zeros(width, np.uint32)
        samplings: list[Sampling | None] = [None] * width
        contexts: list[Sequence[int]] = [()] * width
        for number, (row, request) in enumerate(zip(rows, requests, strict=False)):
            rest = row.ids[row.done :]
            tokens[number, : len(rest)] = rest
            num_tokens[number] = len(rest)
            budget[number] = request.max_new_tokens
            seeds[number] = request.seed & 0xFFFFFFFF
            samplings[number], contexts[number] = request.sampling, row.ids
        options = methods.make_options(samplings, contexts, self.config.vocab_size)
        self._pool, ids, logprobs, count = _turn(
            self.config, self.params, self._pool, pages, tokens, num_tokens, budget, options, seeds,
            max_new=self.max_new_tokens, stop_ids=self.stop_ids, max_len=self.max_len,
        )  # fmt: skip
        ids, logprobs, count = jax.device_get((ids, logprobs, count))
        return ids, logprobs.swapaxes(0, 1), count

    def _finish(self, request: Request, row: _Row, cached: int, ids, logprobs) -> Generation:
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
            prefilled=len(row.ids) - cached,
            cached=cached,
        )
