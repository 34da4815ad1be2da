"""The sampler: token sessions that fork and rewind over one KV cache, jitted prefill and decode.

A session is a list of token ids whose keys and values may lie in a slot (a row of the cache). Fork
copies a row on the device, rewind forgets its tail, and a session without a slot is recomputed from
its ids when it is next used, so running out of slots costs time, never correctness. The engine knows
token ids only; text is `leafe_jax.chat`'s and `leafe_jax.sampling.policy`'s business.

Static shapes: a `turn` program (one chunk of prompt tokens, then decoding until every row has
stopped), a `prefill` program for longer prompts and a row copy. Nothing else is compiled.
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
from leafe_jax.types import Sampling


class KVCache(NamedTuple):
    """Keys and values: one [slots, kv_heads, max_len, head_dim] array a layer.

    The time axis lies next to head_dim: on XLA's CPU backend this order made decoding attention
    several times cheaper than [slots, max_len, kv_heads, head_dim].
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


@dataclasses.dataclass(eq=False)
class Session:
    """One token sequence. `ids` is the truth; `slot` and `cached` say what the device holds of it.

    Attributes:
      ids: all tokens so far, sampled ones included.
      slot: cache row, or None.
      cached: number of leading ids whose keys and values are valid in that row.
    """

    ids: list[int] = dataclasses.field(default_factory=list)
    slot: int | None = None
    cached: int = 0

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


def _forward(config, params, cache, tokens, start):
    """Runs tokens [B, T] at positions start.. and returns (hidden [B, T, D], cache)."""
    written: list = []
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    hidden = decoder.hidden(
        config, params, tokens, positions, _attend_cached(cache, start, written)
    )
    return hidden, KVCache(tuple(k for k, _ in written), tuple(v for _, v in written))


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def _prefill(config: ModelConfig, params, cache: KVCache, tokens, start):
    """Computes keys and values of tokens [B, T]; rows with nothing to do write beyond their end."""
    _, cache = _forward(config, params, cache, tokens, start)
    return cache


@functools.partial(
    jax.jit,
    static_argnames=("config", "max_new", "stop_ids", "max_len"),
    donate_argnames=("cache",),
)
def _turn(
    config: ModelConfig,
    params,
    cache: KVCache,
    tokens,
    start,
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
      config, params, cache: the model and the cache (donated).
      tokens: int32 [B, T] prompt tokens, `num_tokens` [B] of them real (0: the row is idle).
      start: int32 [B] positions of the first prompt tokens.
      budget: int32 [B] most tokens to sample, at most max_new.
      options: see methods.make_options.
      seeds: uint32 [B].
      max_new, stop_ids, max_len: static.

    Returns:
      (cache, ids int32 [B, max_new], logprobs float32 [2, B, max_new] under the model and under the
      distribution sampled from, count int32 [B]).
    """
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
    return cache, ids, logprobs, count


@functools.partial(jax.jit, donate_argnames=("cache",))
def _copy_rows(cache: KVCache, source, target):
    """Copies cache rows source [M] over rows target [M]."""
    return jax.tree.map(lambda x: x.at[target].set(x[source]), cache)


# -- host ------------------------------------------------------------------------------------------
_COPY_WIDTH = 8


class Engine:
    """Sessions over one contiguous cache.

    Args:
      config, params: the model; the dtype of the parameters is the compute dtype.
      num_slots: cache rows, which is also the batch width of every program.
      max_len: most tokens a session can have.
      turn_chunk: prompt tokens handled in the same program as decoding.
      prefill_chunk: prompt tokens a prefill call handles.
      max_new_tokens: most tokens a request may ask for.
      stop_ids: token ids that end a reply.

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
    ):
        for name, value in (
            ("num_slots", num_slots),
            ("turn_chunk", turn_chunk),
            ("prefill_chunk", prefill_chunk),
            ("max_new_tokens", max_new_tokens),
        ):
            if value < 1:
                raise UserError(f"sampler.{name} = {value}: must be at least 1")
        if not turn_chunk + max_new_tokens <= max_len <= config.max_position_embeddings:
            raise UserError(
                f"sampler.max_len = {max_len}: must be at least turn_chunk + max_new_tokens ="
                f" {turn_chunk + max_new_tokens} and at most the model's"
                f" {config.max_position_embeddings} positions"
            )
        self.config, self.params = config, params
        self.num_slots, self.max_len, self.max_new_tokens = num_slots, max_len, max_new_tokens
        self.turn_chunk, self.prefill_chunk, self.stop_ids = turn_chunk, prefill_chunk, stop_ids
        # A chunk is written whole, padding included, so rows are longer than sessions may be:
        # dynamic_update_slice would otherwise shift a write at the end back over valid entries.
        row_length = max_len + max(turn_chunk, prefill_chunk)
        shape = (num_slots, config.num_kv_heads, row_length, config.head_dim)
        dtype = jax.tree.leaves(params)[0].dtype
        self._cache = KVCache(
            tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)),
            tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)),
        )
        # Host mirror of what each row holds, also after its session has gone: new sessions take
        # over the longest prefix they find.
        self._row_ids = np.full((num_slots, max_len), -1, np.int32)
        self._row_valid = np.zeros(num_slots, np.int32)
        self._owner: list[Session | None] = [None] * num_slots
        self._used = np.zeros(num_slots, np.int64)
        self._clock = 0
        self._copies: list[tuple[int, int]] = []

    # -- sessions ------------------------------------------------------------------------------
    def start(self) -> Session:
        """An empty session; it takes a slot when it is first used."""
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
        session.cached = min(session.cached, length)
        if session.slot is not None:
            self._row_valid[session.slot] = session.cached

    def append(self, session: Session, ids: Sequence[int]) -> None:
        """Appends known ids without sampling; they are computed when the session is next used."""
        session.ids.extend(ids)

    def release(self, session: Session) -> None:
        """Gives the slot back; its content stays until the slot is needed."""
        if session.slot is not None:
            self._owner[session.slot] = None
            session.slot, session.cached = None, 0

    # -- slots ---------------------------------------------------------------------------------
    def _place(self, session: Session, busy: set[int], total: list[int]) -> None:
        """Gives a session a slot, taking over the longest prefix that any row still holds.

        The last token is always computed anew, since its hidden state is needed to sample.
        """
        wanted = np.asarray(total[: self.max_len], np.int32)
        match = self._row_ids[:, : len(wanted)] == wanted
        shared = np.minimum(
            np.where(match.all(axis=1), len(wanted), match.argmin(axis=1)), self._row_valid
        )
        shared = np.minimum(shared, len(total) - 1)
        source = int(shared.argmax())
        # A free row that already holds the best prefix is taken over as it is.
        free = [s for s in range(self.num_slots) if self._owner[s] is None and s not in busy]
        in_place = [s for s in free if shared[s] == shared[source]]
        candidates = in_place if shared[source] > 0 and in_place else free
        if not candidates:  # every row has an owner: take the least recently used one not in use
            candidates = [s for s in range(self.num_slots) if s not in busy]
        slot = min(candidates, key=lambda s: self._used[s])
        if shared[slot] < shared[source]:
            if any(slot in pair for pair in self._copies):
                self._flush_copies()
            if any(source == target for _, target in self._copies):
                self._flush_copies()
            self._copies.append((source, slot))
        previous = self._owner[slot]
        if previous is not None:
            previous.slot, previous.cached = None, 0
        count = int(shared[source])
        self._row_ids[slot, :count] = wanted[:count]
        self._row_valid[slot] = count
        self._owner[slot] = session
        session.slot, session.cached = slot, count

    def _flush_copies(self) -> None:
        for begin in range(0, len(self._copies), _COPY_WIDTH):
            pairs = self._copies[begin : begin + _COPY_WIDTH]
            pairs = pairs + [pairs[0]] * (_COPY_WIDTH - len(pairs))
            source, target = np.asarray(pairs, np.int32).T
            self._cache = _copy_rows(self._cache, source, target)
        self._copies = []

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
        results: list[Generation] = []
        for begin in range(0, len(requests), self.num_slots):
            results += self._generate(requests[begin : begin + self.num_slots])
        return results

    def _generate(self, requests: Sequence[Request]) -> list[Generation]:
        width = self.num_slots
        fits = [len(r.session) + len(r.new_ids) < self.max_len for r in requests]
        busy = {
            r.session.slot for r, fit in zip(requests, fits, strict=True)
            if fit and r.session.slot is not None
        }  # fmt: skip
        todo: dict[int, tuple[Request, list[int], int]] = {}  # slot -> request, ids to run, cached
        for request, fit in zip(requests, fits, strict=True):
            if not fit:
                continue
            session = request.session
            total = session.ids + list(request.new_ids)
            if session.slot is None:
                self._place(session, busy, total)
                busy.add(session.slot)
            session.cached = min(session.cached, len(total) - 1)
            self._clock += 1
            self._used[session.slot] = self._clock
            todo[session.slot] = (request, total[session.cached :], session.cached)
        self._flush_copies()

        # Rows that are not part of a call write their padding behind their valid part.
        start = self._row_valid.copy()
        position = {slot: cached for slot, (_, _, cached) in todo.items()}
        for slot, cached in position.items():
            start[slot] = cached
        while any(len(ids) > self.turn_chunk for _, ids, _ in todo.values()):
            tokens = np.zeros((width, self.prefill_chunk), np.int32)
            taken = {}
            for slot, (_, ids, _) in todo.items():
                if len(ids) > self.turn_chunk:
                    taken[slot] = min(self.prefill_chunk, len(ids) - 1)
                    tokens[slot, : taken[slot]] = ids[: taken[slot]]
            # A copy: jax may read a NumPy argument in place, after this call has returned.
            self._cache = _prefill(self.config, self.params, self._cache, tokens, start.copy())
            for slot, count in taken.items():
                request, ids, cached = todo[slot]
                todo[slot] = (request, ids[count:], cached)
                start[slot] += count

        tokens = np.zeros((width, self.turn_chunk), np.int32)
        num_tokens = np.zeros(width, np.int32)
        budget = np.ones(width, np.int32)
        samplings: list[Sampling | None] = [None] * width
        contexts: list[Sequence[int]] = [()] * width
        seeds = np.zeros(width, np.uint32)
        for slot, (request, ids, _) in todo.items():
            tokens[slot, : len(ids)] = ids
            num_tokens[slot] = len(ids)
            budget[slot] = request.max_new_tokens
            samplings[slot] = request.sampling
            contexts[slot] = (*request.session.ids, *request.new_ids)
            seeds[slot] = request.seed & 0xFFFFFFFF
        self._cache, ids, logprobs, count = _turn(
            self.config, self.params, self._cache, tokens, start, num_tokens, budget,
            methods.make_options(samplings, contexts, self.config.vocab_size), seeds,
            max_new=self.max_new_tokens, stop_ids=self.stop_ids, max_len=self.max_len,
        )  # fmt: skip
        ids, logprobs, count = jax.device_get((ids, logprobs, count))

        results = []
        for request, fit in zip(requests, fits, strict=True):
            if not fit:
                results.append(Generation((), (), (), "context", 0, 0))
                continue
            slot = request.session.slot
            number = int(count[slot])
            results.append(
                self._finish(request, todo[slot][2], ids[slot, :number], logprobs[:, slot, :number])
            )
        return results

    def _finish(self, request: Request, cached: int, ids, logprobs) -> Generation:
        session = request.session
        prompt_length = len(session) + len(request.new_ids)
        session.ids.extend(request.new_ids)
        session.ids.extend(ids.tolist())
        # The last sampled token has not been through the model yet.
        session.cached = len(session.ids) - 1
        self._row_ids[session.slot, :prompt_length] = session.ids[:prompt_length]
        self._row_ids[session.slot, prompt_length : len(session.ids)] = ids
        self._row_valid[session.slot] = session.cached
        if int(ids[-1]) in self.stop_ids:
            reason = "stop"
        else:
            reason = "length" if len(ids) == request.max_new_tokens else "context"
        return Generation(
            tuple(ids.tolist()),
            *(tuple(float(x) for x in of) for of in logprobs),
            reason,
            prefilled=prompt_length - cached,
            cached=cached,
        )
