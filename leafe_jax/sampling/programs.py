"""The sampler's device programs, and the list of those that a run may use.

All shapes are static. The list is complete when the engine is made (`leafe_jax.sampling.shapes`). Each
program is compiled once, ahead of its first use if there is time. Engines that differ only in the values of
their weights share the compiled programs, so a run that evaluates several methods compiles for the first of
them only.
"""

from __future__ import annotations

import atexit
import collections
import dataclasses
import functools
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from leafe_jax.errors import UserError
from leafe_jax.models import decoder
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling import draw as methods
from leafe_jax.sampling.cache import Pages


@dataclasses.dataclass(frozen=True, order=True)
class Program:
    """The shape of one compiled program.

    Attributes:
      kind: "prefill" or "turn".
      rows: B.
      tokens: T, prompt tokens per row.
      pages: P, pages of a row's own context.
      groups: G, number of groups; 0 without groups.
      shared: S, pages that the rows of a group share as a prefix; 0 without groups.
    """

    kind: str
    rows: int
    tokens: int
    pages: int
    groups: int = 0
    shared: int = 0


@dataclasses.dataclass(frozen=True)
class Statics:
    """What all programs of an engine have in common.

    Attributes:
      config: the model.
      storage: how pages are read and written.
      page_size: positions per page.
      burst: most tokens that one `turn` samples per row.
      min_burst: decode steps before a `turn` may end with rows unfinished (see `turn`).
      stop_ids: token ids that end a reply.
      max_len: most tokens in a session.
      options: True compiles Sampling's truncation, penalty and bias in; False supports temperature only.
    """

    config: ModelConfig
    storage: Any
    page_size: int
    burst: int
    min_burst: int
    stop_ids: tuple[int, ...]
    max_len: int
    options: bool


class Burst(NamedTuple):
    """What `turn` is given for each row.

    Attributes:
      tokens: int32 [B, T] prompt tokens.
      num_tokens: int32 [B] how many of them are real; 0 means that the row is idle.
      budget: int32 [B] most tokens to sample, at most statics.burst.
      options: from draw.make_options.
      seeds: uint32 [B].
      leave: int32. After statics.min_burst steps the burst ends once this many rows have stopped, so that
        other requests can take their slots. Unfinished rows resume in the next burst.
    """

    tokens: Any
    num_tokens: Any
    budget: Any
    options: methods.Options
    seeds: Any
    leave: Any


def _forward(statics: Statics, params, carry, fixed, tokens, start):
    """(hidden [B, T, D], carry) of tokens [B, T] at positions start, start + 1, ..."""
    written: list = []
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    attend = statics.storage.attend(carry, fixed, start, written)
    hidden = decoder.hidden(statics.config, params, tokens, positions, attend)
    return hidden, statics.storage.carry(written)


@functools.partial(jax.jit, static_argnames=("statics",), donate_argnames=("pool",))
def prefill(statics: Statics, params, pool, pages: Pages, tokens):
    """The pool, with keys and values of tokens [B, T] added after each row's context."""
    carry, fixed = statics.storage.begin(pool, pages)
    _, carry = _forward(statics, params, carry, fixed, tokens, pages.start)
    return _placed(statics.storage, statics.storage.end(pool, carry, pages))


@functools.partial(jax.jit, static_argnames=("statics",), donate_argnames=("pool",))
def turn(statics: Statics, params, pool, pages: Pages, burst: Burst):
    """Prefills each row's prompt tokens, then samples until rows have stopped.

    Args:
      statics, params, pool: the model and the pool (donated).
      pages: where each row reads and writes.
      burst: what each row is given.

    Returns:
      (pool, ids int32 [B, statics.burst], logprobs float32 [2, B, statics.burst] under the model and
      under the distribution sampled from, count int32 [B] of sampled tokens). Columns from count on are
      zeros.
    """
    storage, config = statics.storage, statics.config
    tokens, num_tokens, budget, options, seeds, leave = burst
    start = pages.start
    carry, fixed = storage.begin(pool, pages)
    rows = jnp.arange(tokens.shape[0])
    stops = jnp.asarray(statics.stop_ids, jnp.int32)
    hidden, carry = _forward(statics, params, carry, fixed, tokens, start)
    hidden = hidden[rows, jnp.maximum(num_tokens - 1, 0)]  # [B, D]
    length = start + num_tokens
    busy = num_tokens > 0

    def emit(hidden, length, active, options, ids, logprobs, count):
        logits = decoder.head(config, params, hidden)
        new, *pair = methods.sample(logits, options, seeds, length)
        # The column of an idle or stopped row is out of bounds, so mode="drop" discards its token.
        column = jnp.where(active, count, statics.burst)
        ids = ids.at[rows, column].set(new, mode="drop")
        logprobs = logprobs.at[:, rows, column].set(jnp.stack(pair), mode="drop")
        count = count + active
        within = (count < budget) & (length + 1 < statics.max_len)
        active = active & ~jnp.isin(new, stops) & within
        return new, active, methods.note(options, new), ids, logprobs, count

    ids = jnp.zeros((tokens.shape[0], statics.burst), jnp.int32)
    logprobs = jnp.zeros((2, tokens.shape[0], statics.burst), jnp.float32)
    count = jnp.zeros_like(length)
    last, active, options, ids, logprobs, count = emit(
        hidden, length, busy, options, ids, logprobs, count
    )

    def step(state):
        number, carry, last, length, active, options, ids, logprobs, count = state
        # A stopped row is computed too. It writes at its own end, where the cache holds nothing valid.
        hidden, carry = _forward(statics, params, carry, fixed, last[:, None], length)
        length = length + active
        last, active, options, ids, logprobs, count = emit(
            hidden[:, 0], length, active, options, ids, logprobs, count
        )
        return number + 1, carry, last, length, active, options, ids, logprobs, count

    def going(state):
        number, active = state[0], state[4]
        stopped = jnp.sum(busy & ~active)
        return jnp.any(active) & ((number < statics.min_burst) | (stopped < leave))

    state = (jnp.int32(1), carry, last, length, active, options, ids, logprobs, count)
    _, carry, *_, ids, logprobs, count = jax.lax.while_loop(going, step, state)
    return _placed(storage, storage.end(pool, carry, pages)), ids, logprobs, count


def _placed(storage, pool):
    """The pool with its sharding unchanged, because the next program was compiled for that sharding."""
    if storage.mesh is None:
        return pool
    return jax.lax.with_sharding_constraint(pool, NamedSharding(storage.mesh, storage.spec))


_KEPT = 1  # sets of compiled programs that outlive their engines; on a TPU their code occupies HBM


class _Compiled:
    """The compiled programs of all engines with one key (see `_shared`).

    Attributes:
      programs: those that are compiled.
      locks: one per program, so that no two threads compile the same one.
    """

    def __init__(self) -> None:
        self.programs: dict[Program, Callable] = {}
        self.locks: dict[Program, threading.Lock] = {}

    def get(self, program: Program, compile: Callable[[Program], Callable]) -> Callable:
        """The compiled program. If it does not exist yet, `compile` makes it."""
        if program not in self.programs:
            with self.locks.setdefault(program, threading.Lock()):
                if program not in self.programs:
                    self.programs[program] = compile(program)
        return self.programs[program]


_sets: weakref.WeakValueDictionary[Hashable, _Compiled] = weakref.WeakValueDictionary()
_latest: collections.deque[_Compiled] = collections.deque(maxlen=_KEPT)
_sets_lock = threading.Lock()


def _shared(statics: Statics, avals: Any) -> _Compiled:
    """The compiled programs for these statics and these parameters and pool.

    The key has everything that a program is compiled from: the statics (with model and mesh); shape, dtype
    and sharding of every array in parameters and pool; and the settings of jax that change what it traces.
    It holds no arrays. A set is kept while an engine uses it, and while it is among the last `_KEPT` that
    engines asked for.

    Args:
      statics: of the engine.
      avals: parameters and pool as ShapeDtypeStructs.
    """
    leaves, tree = jax.tree.flatten(avals)
    traced = (
        jax.config.jax_default_device,
        jax.config.jax_default_matmul_precision,
        jax.config.jax_enable_x64,
        jax.sharding.get_abstract_mesh(),
    )
    key = (statics, tree, tuple((x.shape, x.dtype, x.sharding) for x in leaves), traced)
    with _sets_lock:
        found = _sets.get(key)
        if found is None:
            found = _sets[key] = _Compiled()
        if found in _latest:
            _latest.remove(found)
        _latest.append(found)
    return found


class Programs:
    """The programs of an engine: listed when the engine is made, each compiled once, none added later.

    Args:
      statics: what they have in common.
      params, pool: arrays, or ShapeDtypeStructs with shardings.
      listed: every program that a run may need, likeliest first.

    Attributes:
      listed: as given.
      num_compiled: number of listed programs that are compiled, by this engine or one that shares them.
    """

    def __init__(self, statics: Statics, params, pool, listed: Sequence[Program]):
        self.statics, self.listed = statics, tuple(dict.fromkeys(listed))
        self._avals = jax.tree.map(_aval, (params, pool))
        self._compiled = _shared(statics, self._avals)
        self._listed = frozenset(self.listed)
        self._failure: Exception | None = None  # of the thread that compiles ahead

    @property
    def num_compiled(self) -> int:
        return sum(program in self._compiled.programs for program in self.listed)

    def get(self, program: Program) -> Callable:
        """The compiled program. If it is not ready, it is compiled now.

        Raises:
          KeyError: it is not listed. A run never adds programs.
          UserError: it cannot be compiled, or compiling a program ahead of time has failed.
        """
        if self._failure is not None:
            raise self._failure
        if program not in self._listed:
            raise KeyError(program)
        return self._compiled.get(program, self._compile)

    def _compile(self, program: Program) -> Callable:
        try:
            return self.lower(program).compile()
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            # Whoever sees it, in whatever thread it happened, sees one line.
            raise UserError(
                f"sampler: {program} cannot be compiled: {reason}; sampler.compile_ahead = False"
                " compiles only what the run needs"
            ) from error

    def lower(self, program: Program):
        """The program, traced and lowered but not compiled."""
        params, pool = self._avals
        function = prefill if program.kind == "prefill" else turn
        arguments = jax.tree.map(self._replicated, self.zeros(program))
        return function.lower(self.statics, params, pool, *arguments)

    def compile_ahead(self) -> threading.Thread:
        """A background thread that compiles the listed programs in order, for as long as `self` exists.

        The thread ends at the first program that cannot be compiled. The next `get` then raises the error.
        """
        mine = weakref.ref(self)
        listed, leaving = self.listed, threading.Event()

        def work():
            for program in listed:
                programs = mine()
                if programs is None or leaving.is_set():
                    return
                try:
                    programs.get(program)
                except Exception as error:
                    programs._failure = error
                    return
                del programs

        def leave():
            # If the interpreter exits while a thread is inside the compiler, the process crashes.
            leaving.set()
            thread.join()

        thread = threading.Thread(target=work, name="compile-ahead", daemon=True)
        atexit.register(leave)
        thread.start()
        return thread

    def zeros(self, program: Program) -> tuple:
        """A program's arguments after parameters and pool, with all rows idle."""
        rows, tokens = program.rows, program.tokens
        statics = self.statics
        reach = tokens + (statics.burst if program.kind == "turn" else 0)
        pages = Pages(
            np.zeros((program.groups or rows, program.shared), np.int32),
            np.zeros(rows, np.int32),
            np.zeros((rows, program.pages), np.int32),
            np.zeros(rows, np.int32),
            np.zeros((rows, num_targets(reach, statics.page_size)), np.int32),
        )
        ids = np.zeros((rows, tokens), np.int32)
        if program.kind == "prefill":
            return pages, ids
        numbers = np.zeros(rows, np.int32)
        vocab_size = statics.config.vocab_size
        options = methods.make_options([None] * rows, [()] * rows, vocab_size, statics.options)
        seeds = np.zeros(rows, np.uint32)
        return pages, Burst(ids, numbers, numbers, options, seeds, np.int32(0))

    def _replicated(self, array) -> jax.ShapeDtypeStruct:
        mesh = self.statics.storage.mesh
        sharding = None if mesh is None else NamedSharding(mesh, P())
        return jax.ShapeDtypeStruct(np.shape(array), array.dtype, sharding=sharding)


def num_targets(positions: int, page_size: int) -> int:
    """Most pages that `positions` consecutive positions can touch, wherever they begin."""
    return (positions - 1) // page_size + 2


def _aval(array) -> jax.ShapeDtypeStruct:
    sharding = (
        array.sharding if isinstance(getattr(array, "sharding", None), NamedSharding) else None
    )
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
