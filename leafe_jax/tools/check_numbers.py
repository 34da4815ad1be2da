"""Parts of tools.check that compare numbers: attention, attention over pages, and log-probabilities.

Attention is compared with float64 NumPy on the same rounded inputs, so nothing of the device is trusted.
Differences are relative: the rms of the difference, divided by the rms of what is right.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.models.attention import BACKENDS, choose_backend, segment_attend
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.sharding import make_mesh
from leafe_jax.sampling.cache import Pages
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.gathered import Gathered
from leafe_jax.sampling.paged import Paged
from leafe_jax.sampling.programs import num_targets
from leafe_jax.sampling.requests import Request
from leafe_jax.tools.bench_models import random_params
from leafe_jax.tools.bench_sampling import sampler_sizes
from leafe_jax.tools.check_lines import Line, Part, guarded
from leafe_jax.tools.hardware import compute_dtype
from leafe_jax.tools.known_models import shape_config
from leafe_jax.tools.workloads import TINY
from leafe_jax.training.forward import hidden_states
from leafe_jax.training.losses import token_nll
from leafe_jax.types import Sampling

# Largest relative difference of attention. In bfloat16 a right kernel differs by half a percent; a key too
# few or too many, another scale or a missing mask by far more than the limit.
_LIMITS = {"float32": 1e-5, "bfloat16": 2e-2}
# (mean, largest) difference of a token's log-probability, for a model whose logits are far from uniform.
_LOGPROB_LIMITS = {"float32": (1e-4, 1e-3), "bfloat16": (0.05, 0.25)}

# Tokens of a turn's prompt in each row; a turn takes 32 at once, the others have a prefill before it.
_PROMPTS = (5, 34, 41, 47)

# Sizes of heads that models have; one is enough where no kernel depends on it.
_HEADS = {False: (64, 128), True: (128,)}

_SMALLER = "end other programs that use the device; this part needs less than 1 GiB"
_OTHER_ATTENTION = "run with train.attention=jnp, which is slower, and report this line"
_REFERENCE = (
    "do not run here: even plain XLA programs compute wrongly; update jax and the driver, then report this"
    " line"
)
_OTHER_STORAGE = "run with sampler.attention={other}, and report this line"
_BOTH = (
    "a method that trains on sampled log-probabilities would be wrong: see the lines on attention; if they"
    " are ok, report this line"
)


def exact_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Grouped-query attention in float64, and the gradients of sum(output * weight).

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H].
      mask: bool [B, T, S], True where a query sees a key; every query sees at least one.
      weight: [B, T, N, H].

    Returns:
      (output [B, T, N, H], gradients of q, k and v).
    """
    q, k, v, weight = (np.asarray(x, np.float64) for x in (q, k, v, weight))
    batch, keys, kv_heads, dim = k.shape
    group, scale = q.shape[2] // kv_heads, dim**-0.5
    wide_k, wide_v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    product = functools.partial(np.einsum, optimize=True)
    scores = product("BTNH,BSNH->BNTS", q, wide_k) * scale
    scores = np.where(mask[:, None], scores, -np.inf)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    of_share = product("BTNH,BSNH->BNTS", weight, wide_v)
    of_scores = share * (of_share - (of_share * share).sum(-1, keepdims=True)) * scale

    def by_kv_head(x: np.ndarray) -> np.ndarray:
        return x.reshape(batch, keys, kv_heads, group, dim).sum(3)

    return product("BNTS,BSNH->BTNH", share, wide_v), (
        product("BNTS,BSNH->BTNH", of_scores, wide_k),
        by_kv_head(product("BNTS,BTNH->BSNH", of_scores, q)),
        by_kv_head(product("BNTS,BTNH->BSNH", share, weight)),
    )


def _relative(found: Any, right: np.ndarray) -> float:
    """rms of the difference, divided by the rms of what is right."""
    gap = np.asarray(found).astype(np.float64) - right
    return float(np.sqrt(np.mean(gap * gap) / np.mean(right * right)))


def _drawn(seed: int, dtype: str, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(s, np.float32)).astype(dtype) for s in shapes]


def _float(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32), np.float64)


# -- attention over whole sequences: the trainer's -------------------------------------------------
def attention(part: Part) -> Iterator[Line]:
    """A line for each backend that this device has, in values and gradients."""
    config, dtype = shape_config("tiny"), compute_dtype()
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.local_devices()[:1])
    for backend in BACKENDS:
        try:
            choose_backend(backend, config, dtype, mesh)
        except UserError:  # not a backend of this device
            continue
        advice = _REFERENCE if backend == "jnp" else _OTHER_ATTENTION
        work = functools.partial(_attention, backend, config, dtype, advice, mesh)
        yield guarded(f"attention {backend}", advice, _SMALLER, work)


def _attention(backend: str, config: ModelConfig, dtype: str, advice: str, mesh: Any) -> Line:
    batch, time, heads, dim = 2, 256, config.num_heads, config.head_dim
    segments = np.ones((batch, time), np.int32)
    segments[0, 90:], segments[0, 240:] = 2, 0  # two examples and padding
    segments[1, :3], segments[1, 4:] = 5, 7  # three examples, one of them a single token
    narrow = (batch, time, config.num_kv_heads, dim)
    wide = (batch, time, heads, dim)
    q, k, v, weight = _drawn(0, dtype, wide, narrow, narrow, wide)
    real = segments > 0
    weight = jnp.where(real[..., None, None], weight, 0)  # the output at padding is meaningless
    mask = (segments[:, :, None] == segments[:, None]) & np.tril(np.ones((time, time), bool))
    values, gradients = exact_attention(_float(q), _float(k), _float(v), mask, _float(weight))

    @jax.jit
    def run(q, k, v, weight):
        attend = segment_attend(jnp.asarray(segments), backend, mesh)
        out, pull = jax.vjp(lambda q, k, v: attend(0, q, k, v), q, k, v)
        return out, pull(weight.astype(out.dtype))

    out, found = run(q, k, v, weight)
    figures: dict[str, Any] = {"values": _relative(_float(out)[real], values[real])}
    for name, own, right in zip(("of_q", "of_k", "of_v"), found, gradients, strict=True):
        figures[name] = _relative(_float(own), right)
    return _judged(f"attention {backend}", dtype, figures, advice)


def _judged(name: str, dtype: str, figures: dict[str, Any], advice: str) -> Line:
    """The line of relative differences; nan fails."""
    limit = _LIMITS[dtype]
    text = ", ".join(f"{what} {gap:.1e}" for what, gap in figures.items())
    text = f"{dtype}, relative difference of {text} (limit {limit:.0e})"
    good = all(gap <= limit for gap in figures.values())
    figures = {**figures, "limit": limit, "dtype": dtype}
    return Line(name, "ok" if good else "failed", text, "" if good else advice, figures)


# -- attention over pages: the sampler's -----------------------------------------------------------
def pages(part: Part) -> Iterator[Line]:
    """A line for each way to read pages and each size of heads that models have."""
    dtype = compute_dtype()
    on_tpu = jax.local_devices()[0].platform == "tpu"
    ways = (
        ("gather", Gathered(), _OTHER_STORAGE.format(other="paged")),
        ("paged", Paged(kernel=on_tpu), _OTHER_STORAGE.format(other="gather")),
    )
    for name, storage, advice in ways:
        for dim in _HEADS[jax.local_devices()[0].platform == "cpu"]:
            title = f"pages {name}, heads of {dim}"
            work = functools.partial(_pages, title, storage, dim, dtype, advice)
            yield guarded(title, advice, _SMALLER, work)


def _pages(name: str, storage: Gathered | Paged, dim: int, dtype: str, advice: str) -> Line:
    """Three rows are prefilled; then each goes on from another position, in the middle of a page or not.

    What the prefill wrote after that position must not be seen, and its last page must be copied.
    """
    size, first = 16, 64
    starts, rows = np.asarray([5, 32, 50], np.int32), 3
    config = dataclasses.replace(shape_config("tiny"), num_layers=1, head_dim=dim)
    own = first // size + 1  # pages of a row
    spare = rows * (own + 2)
    pool = storage.empty(config, spare + 1, size, dtype)
    run = jax.jit(functools.partial(_call, storage))
    narrow, wide = config.num_kv_heads, config.num_heads

    def drawn(seed: int, time: int) -> list[jax.Array]:
        heads = (wide, narrow, narrow)
        return _drawn(seed, dtype, *((rows, time, n, dim) for n in heads))

    table = np.arange(rows * own, dtype=np.int32).reshape(rows, own)
    zeros, nothing = np.zeros(rows, np.int32), np.zeros((rows, 0), np.int32)
    q, k, v = drawn(0, first)
    target = table[:, : num_targets(first, size)]
    where = Pages(*map(jnp.asarray, (nothing, zeros, np.zeros_like(table), zeros, target)))
    out, pool = run(pool, where, q, k, v)
    figures = {"prefill": _relative(_float(out), _exact_rows(q, k, v, k, v, zeros))}
    for count in (1, 8):  # a decode step, and a turn's prompt
        new_q, new_k, new_v = drawn(count, count)
        width = num_targets(count, size)
        fresh = rows * own + np.arange(rows * width, dtype=np.int32).reshape(rows, width)
        where = Pages(*map(jnp.asarray, (nothing, zeros, table, starts, fresh)))
        out, _ = run(pool, where, new_q, new_k, new_v)
        right = _exact_rows(new_q, new_k, new_v, k, v, starts)
        figures["step" if count == 1 else "turn"] = _relative(_float(out), right)
    return _judged(name, dtype, figures, advice)


def _call(storage: Any, pool: Any, where: Pages, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """(attention of one layer as a program of the sampler computes it, the pool afterwards)."""
    carry, fixed = storage.begin(pool, where)
    written: list = []
    out = storage.attend(carry, fixed, where.start, written)(0, q, k, v)
    return out, storage.end(pool, storage.carry(written), where)


def _exact_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, old_k: jax.Array, old_v: jax.Array, starts: Any
) -> np.ndarray:
    """[B, T, N, H]: row b attends to the first starts[b] old positions, then causally to the new ones."""
    rows = []
    for row, start in enumerate(starts):
        keys, values = (
            np.concatenate([_float(old)[row, :start], _float(new)[row]])[None]
            for old, new in ((old_k, k), (old_v, v))
        )
        time = q.shape[1]
        mask = np.arange(start + time) <= start + np.arange(time)[:, None]
        own = _float(q)[row : row + 1]
        rows.append(exact_attention(own, keys, values, mask[None], np.zeros_like(own))[0][0])
    return np.stack(rows)


# -- sampler and trainer ---------------------------------------------------------------------------
def log_probabilities(part: Part) -> Iterator[Line]:
    """One line: log-probabilities of sampled tokens by the sampler and by the train step's forward pass."""
    yield guarded("log-probabilities", _BOTH, _SMALLER, _log_probabilities)


def _log_probabilities() -> Line:
    config, dtype = shape_config("tiny"), compute_dtype()
    # Eight times larger than at initialisation, so that logits are far from uniform.
    params = random_params(config, dtype, deviation=0.16)
    # The sizes of the tiny workload: its programs are in the cache then, or these are when it runs.
    engine = Engine(config, params, sampler_sizes(TINY["turns"], config))
    rng = np.random.default_rng(0)
    sessions = [engine.start() for _ in range(4)]
    sampled: list[list[float]] = [[] for _ in sessions]
    places: list[list[int]] = [[] for _ in sessions]
    for turn in range(2):
        requests = [
            Request(
                session, rng.integers(0, config.vocab_size, count).tolist(), 16,
                Sampling(1.0), 100 * turn + row,
            )
            for row, (session, count) in enumerate(zip(sessions, _PROMPTS, strict=True))
        ]  # fmt: skip
        for row, result in enumerate(engine.generate(requests)):
            end = len(sessions[row])
            places[row] += range(end - len(result.ids), end)
            sampled[row] += result.logprobs
    trained = _trained_logprobs(config, params, [session.ids for session in sessions], dtype)
    gaps = np.concatenate(
        [np.abs(np.asarray(sampled[row]) - trained[row, places[row]]) for row in range(4)]
    )
    mean, largest = float(gaps.mean()), float(gaps.max())
    limits = _LOGPROB_LIMITS[dtype]
    good = mean <= limits[0] and largest <= limits[1]  # False for nan
    text = (
        f"{dtype}, {gaps.size} sampled tokens: sampler and trainer differ by {mean:.1e} in the mean"
        f" (limit {limits[0]:g}), {largest:.1e} at most (limit {limits[1]:g})"
    )
    figures = {"tokens": int(gaps.size), "mean": mean, "largest": largest, "dtype": dtype}
    return Line(
        "log-probabilities", "ok" if good else "failed", text, "" if good else _BOTH, figures
    )


def _trained_logprobs(
    config: ModelConfig, params: Any, rows: list[list[int]], dtype: str
) -> np.ndarray:
    """float32 [B, T] log-probability of each token of the rows, as the train step computes it; the first
    column is meaningless."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.local_devices()[:1])
    backend = choose_backend("auto", config, dtype, mesh)
    tokens = np.zeros((len(rows), 128), np.int32)
    segments = np.zeros_like(tokens)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    positions = np.broadcast_to(np.arange(128, dtype=np.int32), tokens.shape)

    @jax.jit
    def run(params, tokens, segments, positions):
        attend = segment_attend(segments, backend, mesh)
        hidden = hidden_states(
            config, params, tokens, positions, attend, remat="none", scan_layers=False, mesh=mesh
        )
        return token_nll(config, params, hidden, jnp.roll(tokens, -1, axis=1), 8192, mesh)

    return -np.roll(np.asarray(run(params, tokens, segments, positions)), 1, axis=1)
