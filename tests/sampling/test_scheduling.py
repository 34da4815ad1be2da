"""Many requests at once: what is computed once, preemption, starvation, and nothing that grows."""

import os
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from small import LONG, ask, check_no_leak, forward, make, mixed_load, prompt, reference

from leafe_jax.errors import UserError
from leafe_jax.sampling import engine as sampler
from leafe_jax.sampling import programs


def test_what_a_batch_has_in_common_is_computed_once(params):
    """Prefilled tokens are those of the token tree, plus less than a page a sequence."""
    engine = make(params, num_slots=8, page_size=4)
    trunk, limbs = prompt(0, 21), [prompt(1, 11), prompt(2, 9)]
    ids = [trunk + limbs[i % 2] + prompt(10 + i, 3) for i in range(8)]
    results = engine.generate([ask(engine.start(), x, 1.0, i) for i, x in enumerate(ids)])
    ideal = 21 + 11 + 9 + 8 * 3
    spent = sum(r.prefilled for r in results)
    assert ideal <= spent < ideal + 8 * 4
    assert all(r.prefilled + r.cached == len(x) for r, x in zip(results, ids))
    for i, (x, result) in enumerate(zip(ids, results)):
        assert list(result.ids) == reference(params, x, 6, 1.0, i)
    check_no_leak(engine)


@pytest.mark.parametrize(
    "num_pages", [17, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 40, 0))]
)
def test_a_small_pool_costs_time_and_nothing_else(params, num_pages):
    """Down to one session's pages, where rows wait for each other and prefixes are computed anew."""
    engine = make(params, num_slots=6, page_size=4, num_pages=num_pages)
    sessions = [engine.start() for _ in range(6)]
    known = [[] for _ in range(6)]
    for turn in range(3):
        news = [prompt(10 * turn + i, 5 + i) for i in range(6)]
        results = engine.generate(
            [ask(s, n, 1.0, i, 4) for i, (s, n) in enumerate(zip(sessions, news))]
        )
        for i, (new, result) in enumerate(zip(news, results)):
            known[i] += new
            assert list(result.ids) == reference(params, known[i], 4, 1.0, i)
            known[i] += result.ids
        check_no_leak(engine)


@pytest.mark.slow
def test_a_pool_smaller_than_one_request(params):
    engine = make(params, page_size=4, num_pages=8)
    ids = prompt(0, 8)
    good, big = engine.generate([ask(engine.start(), ids), ask(engine.start(), prompt(1, 40))])
    assert big.error == "46 tokens need 13 pages: sampler.num_pages = 8"
    assert list(good.ids) == reference(params, ids, 6, 0.0, 0)
    with pytest.raises(UserError, match="sampler.num_pages = 1: must be at least 2"):
        make(params, num_pages=1)


@pytest.mark.slow
def test_a_long_prompt_blocks_the_others_for_one_chunk_at_a_time(params, monkeypatch):
    monkeypatch.setattr(sampler, "_BURST", 8)
    engine = make(params, **LONG, num_slots=5, stop_ids=())
    calls, get = [], engine.programs.get
    monkeypatch.setattr(engine.programs, "get", lambda p: calls.append(p.kind) or get(p))
    for i in range(4):
        engine.submit(ask(engine.start(), prompt(i, 3), count=70))
    engine.launch()
    engine.land()
    assert calls == ["turn"]
    ids = prompt(9, 100)
    ticket = engine.submit(ask(engine.start(), ids))
    results = {}
    while ticket not in results:
        results.update(engine.collect())
    # 96 positions in chunks of 8, the rest in a turn. After each chunk the others decode 8 of the 62 tokens that they lack.
    assert (calls[1:17], calls.count("prefill")) == (["prefill", "turn"] * 8, 12)
    assert list(results[ticket].ids) == reference(params, ids, 6, 0.0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_results_do_not_depend_on_scheduling(params, temperature, monkeypatch):
    """Other numbers of slots, a pool in which rows are preempted, pages in place: the same tokens."""
    monkeypatch.setattr("leafe_jax.sampling.engine._BURST", 8)
    monkeypatch.setattr("leafe_jax.sampling.engine._MIN_BURST", 4)
    outcomes, preempted = [], []
    for changes in (
        dict(num_slots=9), dict(num_slots=2), dict(num_slots=9, num_pages=34),
        dict(num_slots=4, attention="paged", num_pages=60),
    ):  # fmt: skip
        engine = make(params, **{**LONG, **changes})
        outcomes.append(mixed_load(engine, temperature=temperature))
        preempted.append(engine.num_preemptions)
        check_no_leak(engine)
    assert preempted[0] == 0 and preempted[2] > 2
    for outcome in outcomes[1:]:
        assert outcome == outcomes[0]


@pytest.mark.slow
def test_long_replies_take_several_bursts(params):
    """Also where a row finishes early and another takes its place."""
    engine = make(params, **LONG, num_slots=2, stop_ids=())
    prompts = [prompt(i, 3 + 5 * i) for i in range(4)]
    counts = [70, 5, 66, 20]
    results = engine.generate(
        [ask(engine.start(), p, 1.0, i, c) for i, (p, c) in enumerate(zip(prompts, counts))]
    )
    for i, (ids, count, result) in enumerate(zip(prompts, counts, results)):
        known = list(ids)
        assert len(result.ids) == count
        table = forward(params, known + list(result.ids))
        for n, token in enumerate(result.ids):
            key = jax.random.fold_in(jax.random.PRNGKey(i), len(ids) + n)
            noise = np.asarray(jax.random.gumbel(key, (61,)))
            assert token == int((table[len(ids) + n - 1] + noise).argmax())
            assert result.logprobs[n] == pytest.approx(table[len(ids) + n - 1, token], abs=1e-5)
    check_no_leak(engine)


@pytest.mark.slow
def test_no_program_is_added_during_a_run(params):
    engine = make(params, **LONG, num_slots=9)
    engine.programs.compile_ahead().join()
    assert engine.programs.num_compiled == len(engine.programs.listed) > 3
    compiled = dict(engine.programs._compiled.programs)
    before = programs.turn._cache_size(), programs.prefill._cache_size()
    mixed_load(engine)
    assert engine.programs._compiled.programs == compiled
    assert (programs.turn._cache_size(), programs.prefill._cache_size()) == before
    with pytest.raises(KeyError):
        engine.programs.get(programs.Program("turn", 5, 4, 3))


@pytest.mark.slow
def test_mixed_load_grows_nothing(params):
    """An hour (LEAFE_SOAK_SECONDS) of sessions that come, fork, go on and go: memory and programs stay."""
    seconds = float(os.environ.get("LEAFE_SOAK_SECONDS", 3600))
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    engine = make(params, **LONG, num_slots=6, num_pages=60)
    engine.programs.compile_ahead().join()
    compiled, begin, sizes, rounds = engine.programs.num_compiled, time.monotonic(), [], 0
    while time.monotonic() - begin < seconds:
        mixed_load(engine, live=9)
        check_no_leak(engine)
        rounds += 1
        sizes.append(resident())
    assert engine.programs.num_compiled == compiled == len(engine.programs.listed)
    fifth = max(1, len(sizes) // 5)
    early, late = np.median(sizes[fifth : 2 * fifth]), np.median(sizes[-fifth:])
    print(f"{rounds} rounds, {early / 2**20:.1f} MiB early, {late / 2**20:.1f} MiB late")
    assert late - early < 8 * 2**20


@pytest.mark.slow
def test_no_request_starves(params):
    """The oldest request always goes on, however full the pool is and whatever arrives."""
    engine = make(params, **LONG, num_slots=3, num_pages=34, stop_ids=())
    old = engine.submit(ask(engine.start(), prompt(0, 60), 1.0, 0, 60))
    bursts = 0
    waiting = {old}
    for i in range(30):
        waiting.add(engine.submit(ask(engine.start(), prompt(1 + i, 20), 1.0, i, 30)))
        if old in waiting:
            waiting -= {ticket for ticket, _ in engine.collect()}
            bursts += 1
    assert old not in waiting and bursts < 12
    while waiting:
        waiting -= {ticket for ticket, _ in engine.collect()}
    check_no_leak(engine)
