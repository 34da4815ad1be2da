"""Measures one decode step of the sampler, with pages and without; called by tools.bench_sampling."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.models import decoder
from leafe_jax.sampling.cache import KVCache, Pages
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.gathered import Gathered
from leafe_jax.sampling.programs import Program


def decode_step(sampler: Engine, rows: int, context: int, repeats: int) -> dict[str, float]:
    """Seconds of a decode step with pages and without.

    With pages: the time of a turn of a whole burst minus that of a single token, divided by the number
    of steps between them. Gathering and writing back happen once per burst and are reported separately.
    Without pages: the same layers on contiguous buffers, jitted alone, with an argmax for sampling.

    Args:
      sampler: an engine with room for `rows` sessions of `context` tokens.
      rows: batch size.
      context: tokens in each row's context.
      repeats: number of measurements that the medians are taken of.
    """
    statics = sampler.programs.statics
    program = next(
        p
        for p in reversed(sampler.programs.listed)
        if (p.kind, p.rows, p.groups) == ("turn", rows, 0)
        and p.pages * statics.page_size >= context + p.tokens + statics.burst
    )
    turn = _paged_turn(sampler, program, context)
    loop = _plain_loop(sampler, program, context)
    times: dict[str, list[float]] = {"whole": [], "single": [], "plain": []}
    for number in range(repeats + 1):  # the first one compiles
        for name, work in (
            ("whole", lambda: turn(statics.burst)),
            ("single", lambda: turn(1)),
            ("plain", lambda: loop(statics.burst)),
        ):
            begin = time.perf_counter()
            work()
            if number:
                times[name].append(time.perf_counter() - begin)
    whole, single, bare = (statistics.median(times[k]) for k in ("whole", "single", "plain"))
    step = (whole - single) / (statics.burst - 1)
    return {
        "rows": rows,
        "context": context,
        "burst": statics.burst,
        "step_s": step,
        "plain_step_s": bare / statics.burst,
        "step_ratio": step / (bare / statics.burst),
        "burst_ratio": whole / bare,  # includes gathering, the prompt chunk and writing back
        "once_a_burst_s": whole - step * statics.burst,
    }


def _paged_turn(sampler: Engine, program: Program, context: int) -> Callable[[int], None]:
    """A function that samples `count` tokens per row with the sampler's program, and waits for them."""
    compiled = sampler.programs.get(program)
    pages, burst = sampler.programs.zeros(program)
    pages = Pages(*pages[:3], np.full(program.rows, context, np.int32), pages.target)
    ones = np.ones(program.rows, np.int32)
    burst = burst._replace(num_tokens=ones, leave=np.int32(program.rows))

    def turn(count: int) -> None:
        sampler._pool, *out = compiled(
            sampler.params, sampler._pool, pages, burst._replace(budget=ones * count)
        )
        jax.block_until_ready(out)

    return turn


def _plain_loop(sampler: Engine, program: Program, context: int) -> Callable[[int], None]:
    """A function that runs `count` decode steps of the program's batch without pages, and waits."""
    storage, statics, params = Gathered(), sampler.programs.statics, sampler.params
    rows, length = program.rows, program.pages * statics.page_size

    @functools.partial(jax.jit, donate_argnums=1)
    def plain(params, cache, last, start):
        written: list = []
        nothing = KVCache(tuple(k[..., :0] for k in cache.k), tuple(v[:, :, :0] for v in cache.v))
        fixed = (nothing, jnp.zeros_like(start))
        attend = storage.attend(cache, fixed, start, written)
        hidden = decoder.hidden(statics.config, params, last[:, None], start[:, None], attend)
        logits = decoder.head(statics.config, params, hidden[:, 0])
        return storage.carry(written), jnp.argmax(logits, -1).astype(jnp.int32)

    cache = storage.empty(statics.config, rows, length, jax.tree.leaves(params)[0].dtype)
    last, start = jnp.zeros(rows, jnp.int32), jnp.full(rows, context, jnp.int32)

    def loop(count: int) -> None:
        nonlocal cache, last
        for _ in range(count):
            cache, last = plain(params, cache, last, start)
        last.block_until_ready()

    return loop
