"""The sampler against a plain forward pass: prefill, decode, fork, rewind, slots, keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import (
    CONFIG,
    LONG,
    STOP,
    ask,
    check_no_leak,
    forward,
    last_logits,
    make,
    prompt,
    reference,
)

from leafe_jax.errors import UserError
from leafe_jax.models import decoder
from leafe_jax.sampling.engine import Request
from leafe_jax.types import Sampling


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_unequal_length_equal_the_plain_forward(params, temperature):
    engine = make(params)
    prompts = [prompt(i, n) for i, n in enumerate((1, 11, 29))]
    sessions = [engine.start() for _ in prompts]
    results = engine.generate(
        [ask(s, p, temperature, 40 + i) for i, (s, p) in enumerate(zip(sessions, prompts))]
    )
    for i, (session, ids, result) in enumerate(zip(sessions, prompts, results)):
        assert list(result.ids) == reference(params, ids, 6, temperature, 40 + i)
        assert session.ids == ids + list(result.ids)
        assert result.prefilled == len(ids) and result.cached == 0


def test_logprobs_equal_the_training_forward(params):
    engine = make(params)
    session = engine.start()
    for turn in range(3):
        before = list(session.ids)
        new = prompt(turn, 9)
        result = engine.generate([ask(session, new, 1.0, turn)])[0]
        table = forward(params, session.ids)
        begin = len(before) + len(new)
        expected = [table[begin + i - 1, t] for i, t in enumerate(result.ids)]
        np.testing.assert_allclose(result.logprobs, expected, atol=1e-5)


@pytest.mark.slow
def test_logprobs_in_bfloat16(params):
    """Sampler and trainer round differently. Both are held to the bound of 0.05 a token in the mean and
    0.25 at most on this model, whose logits are twenty times those of a fresh one; measured 0.009 and
    0.043."""
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    engine = make(low, max_len=128, max_new_tokens=60, stop_ids=())
    errors = []
    for seed in range(4):
        session = engine.start()
        result = engine.generate([ask(session, prompt(seed, 30), 1.0, seed, 60)])[0]
        table = forward(low, session.ids)
        expected = [table[30 + i - 1, t] for i, t in enumerate(result.ids)]
        errors += np.abs(np.asarray(result.logprobs) - expected).tolist()
    assert np.mean(errors) < 0.05 and np.max(errors) < 0.25, (np.mean(errors), np.max(errors))


def test_turns_compute_only_what_is_new(params):
    engine = make(params)
    session = engine.start()
    engine.generate([ask(session, prompt(0, 10))])
    length = len(session)
    result = engine.generate([ask(session, prompt(1, 5))])[0]
    # The last sampled token has not been through the model when the next turn comes.
    assert (result.prefilled, result.cached) == (6, length - 1)
    assert list(result.ids) == reference(params, session.ids[: length + 5], 6, 0.0, 0)


@pytest.mark.parametrize(
    "num_slots",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(7, marks=pytest.mark.slow)],
)
def test_forks_and_rewinds_equal_fresh_sessions(params, num_slots):
    """Also when there are fewer rows than sessions, so that some are recomputed."""
    engine = make(params, num_slots=num_slots)
    root = engine.start()
    engine.generate([ask(root, prompt(0, 13))])
    branches = [engine.fork(root, n) for n in (0, 5, 13, len(root))]
    new = prompt(9, 6)
    results = engine.generate([ask(b, new, 1.0, i) for i, b in enumerate(branches)])
    for i, (n, result) in enumerate(zip((0, 5, 13, len(root)), results)):
        assert list(result.ids) == reference(params, root.ids[:n] + new, 6, 1.0, i)
    # The branches left their root as it was.
    grown = list(root.ids)
    result = engine.generate([ask(root, new)])[0]
    assert list(result.ids) == reference(params, grown + new, 6, 0.0, 0)
    engine.rewind(root, 7)
    engine.append(root, prompt(5, 3))
    kept = list(root.ids)
    assert len(kept) == 10
    result = engine.generate([ask(root, new)])[0]
    assert list(result.ids) == reference(params, kept + new, 6, 0.0, 0)


def test_a_fork_takes_the_prefix_from_the_cache(params):
    engine = make(params)
    root = engine.start()
    engine.generate([ask(root, prompt(0, 20))])
    fork = engine.fork(root, 17)
    result = engine.generate([ask(fork, prompt(1, 3))])[0]
    assert (result.cached, result.prefilled) == (17, 3)
    engine.release(root)
    engine.release(fork)
    # A released row is still found by a session with the same prefix.
    again = engine.generate([ask(engine.start(), prompt(0, 20))])[0]
    assert again.cached == 19


@pytest.mark.slow
def test_tokens_do_not_depend_on_slot_neighbours_or_batch(params):
    prompts = [prompt(i, 3 + i) for i in range(7)]
    outcomes = []
    for num_slots, order in ((7, range(7)), (2, range(7)), (3, reversed(range(7)))):
        engine = make(params, num_slots=num_slots)
        order = list(order)
        results = engine.generate([ask(engine.start(), prompts[i], 1.0, i) for i in order])
        outcomes.append({i: r.ids for i, r in zip(order, results)})
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_seeds_and_temperature(params):
    engine = make(params, num_slots=7)
    ids = prompt(0, 8)

    def sample(temperature, seeds):
        requests = [ask(engine.start(), ids, temperature, s) for s in seeds]
        return [r.ids for r in engine.generate(requests)]

    assert len(set(sample(0.0, range(16)))) == 1
    assert sample(1.0, range(16)) == sample(1.0, range(16))
    assert len({r[0] for r in sample(1.0, range(16))}) > 1


@pytest.mark.slow
def test_sampling_follows_the_distribution(params):
    """Chi-squared over the first token of 4,000 seeds, at two temperatures."""
    ids = prompt(3, 6)
    logits = forward(params, ids)[-1]
    engine = make(params, num_slots=200, max_new_tokens=1)
    for temperature in (1.0, 0.6):
        counts = np.zeros(61)
        for block in range(20):
            requests = [
                ask(engine.start(), ids, temperature, block * 200 + i, 1) for i in range(200)
            ]
            for result in engine.generate(requests):
                counts[result.ids[0]] += 1
        expected = np.exp(logits / temperature)
        expected *= 4000 / expected.sum()
        kept = expected > 5
        statistic = ((counts - expected) ** 2 / expected)[kept].sum()
        # 99.9% quantile of chi-squared is below df + 4.5 * sqrt(2 * df) for these sizes
        df = kept.sum() - 1
        assert statistic < df + 4.5 * np.sqrt(2 * df)


def test_finish_reasons(params):
    engine = make(params)
    results = {}
    for seed in range(60):
        result = engine.generate([ask(engine.start(), prompt(seed, 5), 1.0, seed)])[0]
        results[result.finish_reason] = result
    assert results["stop"].ids[-1] == STOP and STOP not in results["stop"].ids[:-1]
    assert len(results["length"].ids) == 6
    # 61 of 64 places are taken: three tokens are left.
    near = engine.generate([ask(engine.start(), prompt(1, 61))])[0]
    assert near.finish_reason in ("context", "stop") and len(near.ids) <= 3
    full = engine.generate([ask(engine.start(), prompt(1, 64))])[0]
    assert (full.finish_reason, full.ids) == ("context", ())


def test_an_overlong_request_does_not_disturb_the_others(params):
    engine = make(params)
    ids = prompt(0, 8)
    bad, good = engine.generate([ask(engine.start(), prompt(1, 99)), ask(engine.start(), ids)])
    assert bad.finish_reason == "context"
    assert list(good.ids) == reference(params, ids, 6, 0.0, 0)


def test_bad_requests_and_sizes(params):
    engine = make(params)
    session = engine.start()
    bad = {
        "in flight already": ask(session, [2]),
        "empty prompt": ask(engine.start(), []),
        "max_new_tokens = 9: must be 1..6": ask(engine.start(), [1], count=9),
        "max_new_tokens = 0: must be 1..6": ask(engine.start(), [1], count=0),
        "token id 61: the model has 61": ask(engine.start(), [1, 61]),
        "token id -1: the model has 61": ask(engine.start(), [-1]),
        "made with options=False": Request(engine.start(), [1], 6, Sampling(top_k=3), 0),
    }
    first, *results = engine.generate([ask(session, [1]), *bad.values()])
    for (message, request), result in zip(bad.items(), results, strict=True):
        assert result.finish_reason == "error" and message in result.error, result
        assert request.session is session or len(request.session) == 0
    assert list(first.ids) == reference(params, [1], 6, 0.0, 0)  # the others are served
    with pytest.raises(ValueError, match="rewind length"):
        engine.rewind(session, 99)
    with pytest.raises(UserError, match="sampler.num_slots = 0"):
        make(params, num_slots=0)
    with pytest.raises(UserError, match="sampler.max_len = 999"):
        make(params, max_len=999)


def test_random_operations_against_token_lists(params):
    """Start, extend, fork, rewind, append and release at random, against plain lists."""
    rng = np.random.default_rng(0)
    engine = make(params)
    sessions: dict[int, tuple] = {}
    checked = 0
    for step in range(150):
        action = rng.choice(["start", "extend", "extend", "extend", "fork", "rewind", "release"])
        if action == "start" or not sessions:
            sessions[step] = (engine.start(), [])
            continue
        picks = rng.choice(list(sessions), size=min(len(sessions), 3), replace=False)
        session, ids = sessions[picks[0]]
        if action == "fork":
            length = int(rng.integers(0, len(ids) + 1))
            sessions[step] = (engine.fork(session, length), ids[:length])
        elif action == "rewind":
            length = int(rng.integers(0, len(ids) + 1))
            engine.rewind(session, length)
            del ids[length:]
        elif action == "release":
            engine.release(session)
            del sessions[picks[0]]
        else:
            batch = [sessions[p] for p in picks if len(sessions[p][1]) < 36]
            news = [rng.integers(8, 61, rng.integers(1, 7)).tolist() for _ in batch]
            requests = [ask(s, n, 1.0, step, 3) for (s, _), n in zip(batch, news)]
            for (s, known), new, result in zip(batch, news, engine.generate(requests)):
                known += new
                if checked < 40:
                    assert list(result.ids) == reference(params, known, 3, 1.0, step)
                    checked += 1
                known += result.ids
                assert s.ids == known
                table = forward(params, known)
                got = [table[len(known) - len(result.ids) + i - 1, t]
                       for i, t in enumerate(result.ids)]  # fmt: skip
                np.testing.assert_allclose(result.logprobs, got, atol=1e-5)
        check_no_leak(engine)
    assert checked == 40


def test_options_reach_every_token_of_a_turn(params):
    """A hard logit bias, the penalty on prompt and reply, and top-k, against a plain loop."""
    engine = make(params, stop_ids=(), options=True)
    ids = prompt(2, 9)
    samplings = [
        Sampling(0.0, logit_bias=((30, 100.0),)),
        Sampling(0.0, repetition_penalty=50.0),
        Sampling(1.0, top_k=1),
    ]
    results = engine.generate(
        [Request(engine.start(), ids, 6, s, i) for i, s in enumerate(samplings)]
    )
    assert results[0].ids == (30,) * 6
    context = list(ids)
    for token in results[1].ids:
        logits = forward(params, context)[-1].copy()
        raw = logits.copy()
        seen = sorted(set(context))
        # Log-probabilities are below zero, logits need not be: the penalty is on the logits.
        logits = last_logits(params, context)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / 50, logits[seen] * 50)
        assert token == logits.argmax()
        assert raw[token] == pytest.approx(results[1].logprobs[len(context) - len(ids)], abs=1e-5)
        context.append(token)
    assert list(results[2].ids) == greedy(params, ids, 6)
    assert results[2].sampled_logprobs == (0.0,) * 6
    for bias, message in (
        (((61, 1.0),), "logit_bias: token id 61: the model has 61"),
        (tuple((i % 61, 1.0) for i in range(65)), "logit_bias: 65 ids: at most 64"),
    ):
        bad = Request(engine.start(), ids, 6, Sampling(logit_bias=bias), 0)
        assert message in engine.generate([bad])[0].error


def greedy(params, ids, count) -> list[int]:
    context = list(ids)
    for _ in range(count):
        context.append(int(last_logits(params, context).argmax()))
    return context[len(ids) :]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_groups_that_share_a_prefix_equal_single_rows(params, temperature, monkeypatch):
    """Sixteen branches of two histories: the shared pages are attended to once a group."""
    monkeypatch.setattr("leafe_jax.sampling.shapes._MIN_CONTEXT", 16)
    engine = make(params, num_slots=24, max_len=128, page_size=4)
    used = []
    get = engine.programs.get
    monkeypatch.setattr(engine.programs, "get", lambda key: used.append(key) or get(key))
    histories = [prompt(1, 90), prompt(2, 81)]
    roots = [engine.start(), engine.start()]
    engine.generate([ask(r, h, count=1) for r, h in zip(roots, histories)])
    # Unequal lengths within a group, and a group that is not full.
    forks = [(0, 90 - i % 3) for i in range(8)] + [(1, 81)] * 7
    sessions = [engine.fork(roots[r], n) for r, n in forks]
    news = [prompt(50 + i, 2 + i % 3) for i in range(15)]
    results = engine.generate(
        [ask(s, n, temperature, i) for i, (s, n) in enumerate(zip(sessions, news))]
    )
    assert used[-1].groups == 3 and used[-1].shared > 0
    assert used[0].groups == 0
    for i, ((root, length), new, result) in enumerate(zip(forks, news, results)):
        ids = histories[root][:length] + new
        assert list(result.ids) == reference(params, ids, 6, temperature, i)
        table = forward(params, sessions[i].ids)
        expected = [table[len(ids) + j - 1, t] for j, t in enumerate(result.ids)]
        np.testing.assert_allclose(result.logprobs, expected, atol=1e-5)
        assert result.cached == length  # the fork computes its own suffix only
    check_no_leak(engine)


def test_stop_ids_and_stop_functions(params):
    engine = make(params, **LONG, stop_ids=(), num_slots=4)
    ids = prompt(4, 9)
    whole = engine.generate([ask(engine.start(), ids, 1.0, 3, 40)])[0].ids
    token = next(t for t in whole if whole.index(t) > 20)
    pair = whole[25:27]

    def stop(new):
        found = [n for n in range(2, len(new) + 1) if tuple(new[n - 2 : n]) == pair]
        return found[0] if found else None

    sessions = [engine.start() for _ in range(2)]
    by_id, by_text = engine.generate(
        [
            Request(sessions[0], ids, 40, Sampling(1.0, stop_ids=(token,)), 3),
            Request(sessions[1], ids, 40, Sampling(1.0), 3, stop),
        ]
    )
    assert by_id.ids == whole[: whole.index(token) + 1] and by_id.finish_reason == "stop"
    assert by_text.ids == whole[:27] and by_text.finish_reason == "stop"
    assert len(by_text.logprobs) == 27 and sessions[1].ids == ids + list(whole[:27])
    # What lay behind the stop is not taken for computed.
    again = engine.generate([ask(sessions[1], prompt(8, 3), 1.0, 5, 5)])[0]
    assert list(again.ids) == reference(params, sessions[1].ids[:39], 5, 1.0, 5)
    check_no_leak(engine)


def test_swapped_weights_sample_as_a_fresh_engine_does(params):
    """Cached keys and values of the old weights are gone; nothing is compiled; the old weights may be
    deleted."""
    engine = make(params, num_slots=2)
    live = engine.start()
    first = engine.generate([ask(live, prompt(0, 20), 1.0, 1)])[0]
    waiting = engine.submit(ask(engine.start(), prompt(1, 5)))
    others = decoder.init_params(CONFIG, jax.random.key(5))
    others = jax.tree.map(lambda x: x * 8 if x.ndim == 2 else x, others)
    with pytest.raises(RuntimeError, match="1 requests are in flight"):
        engine.swap(others)
    assert dict(engine.collect())[waiting].ids
    with pytest.raises(ValueError, match="names or shapes differ"):
        engine.swap({**others, "more": others["embed"]})
    engine.generate([ask(engine.start(), prompt(0, 20), 1.0, 1)])
    compiled = engine.programs.num_compiled
    engine.swap(others)
    expected = jax.tree.map(np.array, others)
    jax.tree.map(lambda x: x.delete(), others)  # as a train step that donates them does
    # The same request, and one that goes on in a session from before.
    again, following = engine.generate(
        [ask(engine.start(), prompt(0, 20), 1.0, 1), ask(live, prompt(2, 4), 1.0, 2)]
    )
    assert again.cached == 0 and again.ids != first.ids
    fresh = make(expected_on_device(expected), num_slots=2)
    session = fresh.start()
    fresh.append(session, live.ids[: 20 + len(first.ids)])
    same, same_following = fresh.generate(
        [ask(fresh.start(), prompt(0, 20), 1.0, 1), ask(session, prompt(2, 4), 1.0, 2)]
    )
    assert (again.ids, again.logprobs) == (same.ids, same.logprobs)
    assert (following.ids, following.logprobs) == (same_following.ids, same_following.logprobs)
    assert engine.programs.num_compiled == compiled
    check_no_leak(engine)


def expected_on_device(params):
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.slow
def test_swapped_weights_take_the_samplers_dtype(params):
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    engine = make(low, max_len=32)
    engine.swap(params)
    assert {x.dtype.name for x in jax.tree.leaves(engine.params)} == {"bfloat16"}
    result = engine.generate([ask(engine.start(), prompt(0, 5))])[0]
    fresh = make(low, max_len=32)
    assert result.logprobs == fresh.generate([ask(fresh.start(), prompt(0, 5))])[0].logprobs
