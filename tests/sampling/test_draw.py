"""Sampling options against transformers' logits processors and against exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lazily import torch, transformers

from leafe_jax.errors import UserError
from leafe_jax.sampling import draw as methods
from leafe_jax.types import Sampling

VOCAB = 23
CONTEXT = (3, 3, 7, 11)
OPTIONS = {
    "temperature": dict(temperature=0.6),
    "top-k": dict(top_k=5),
    "top-k larger than the vocabulary": dict(top_k=99),
    "top-p": dict(top_p=0.7),
    "a top-p of almost nothing": dict(top_p=1e-6),
    "min-p": dict(min_p=0.2),
    "a min-p of one": dict(min_p=1.0),
    "penalty": dict(repetition_penalty=1.8),
    "reward": dict(repetition_penalty=0.5),
    "bias": dict(logit_bias=((2, 3.0), (5, -100.0), (7, 1.0))),
    "all": dict(
        temperature=1.4, top_k=12, top_p=0.9, min_p=0.05, repetition_penalty=1.3,
        logit_bias=((2, 1.5),),
    ),
    "top-p and min-p": dict(top_p=0.8, min_p=0.1, temperature=0.7),
}  # fmt: skip


def draw(seed: int, rows: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, VOCAB)) * 2).astype(np.float32)


def reference(logits: np.ndarray, context, s: Sampling) -> np.ndarray:
    """The logits that transformers samples from, in its order of options; -inf for excluded tokens."""
    ids, scores = torch.tensor([context]), torch.tensor(logits)
    chain = transformers.LogitsProcessorList()
    if s.logit_bias:
        bias = {(i,): value for i, value in s.logit_bias}
        chain.append(transformers.SequenceBiasLogitsProcessor(bias))
    if s.repetition_penalty != 1:
        chain.append(transformers.RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    chain.append(transformers.TemperatureLogitsWarper(s.temperature))
    if s.top_k:
        chain.append(transformers.TopKLogitsWarper(s.top_k))
    if s.top_p < 1:
        chain.append(transformers.TopPLogitsWarper(s.top_p))
    if s.min_p > 0:
        chain.append(transformers.MinPLogitsWarper(s.min_p))
    return chain(ids, scores).numpy()


@pytest.mark.parametrize("name", OPTIONS)
def test_the_distribution_is_transformers(name):
    sampling = Sampling(**OPTIONS[name])
    for seed in range(20):
        logits = draw(seed)
        options = methods.make_options([sampling], [CONTEXT], VOCAB, True)
        found = np.asarray(methods.adjust(jnp.asarray(logits), options))
        expected = reference(logits, CONTEXT, sampling)
        np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rows_with_different_options_do_not_mix():
    names = list(OPTIONS)
    samplings = [Sampling(**OPTIONS[n]) for n in names] + [None]
    logits = draw(7, len(samplings))
    contexts = [CONTEXT[: i % 5] for i in range(len(samplings))]
    options = methods.make_options(samplings, contexts, VOCAB, True)
    found = np.asarray(methods.adjust(jnp.asarray(logits), options))
    for row, sampling in enumerate(samplings[:-1]):
        alone = methods.make_options([sampling], [contexts[row]], VOCAB, True)
        single = methods.adjust(jnp.asarray(logits[row : row + 1]), alone)[0]
        np.testing.assert_allclose(found[row], single, atol=1e-6)
    np.testing.assert_array_equal(found[-1], logits[-1])  # an idle row


def test_options_that_no_row_uses_are_not_on_the_device():
    plain = methods.make_options([Sampling(), Sampling(0.0)], [(), ()], VOCAB, False)
    assert set(plain) == {"temperature"}


# 99.9% quantiles of the chi-squared distribution by degrees of freedom.
QUANTILES = dict(
    zip(
        range(1, 23),
        (10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59, 31.26, 32.91, 34.53,
         36.12, 37.70, 39.25, 40.79, 42.31, 43.82, 45.31, 46.80, 48.27),
        strict=True,
    )
)  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_draws_follow_the_distribution(name):
    """Chi-squared over 20,000 draws, with fixed seeds, against exact probabilities."""
    sampling, rows = Sampling(**OPTIONS[name]), 20_000
    logits = np.repeat(draw(5), rows, axis=0)
    exact = torch.softmax(torch.tensor(reference(logits[:1], CONTEXT, sampling)).double(), -1)[0]
    single = methods.make_options([sampling], [CONTEXT], VOCAB, True)
    options = {k: jnp.repeat(jnp.asarray(v), rows, axis=0) for k, v in single.items()}
    ids, raw, drawn = jax.jit(methods.sample)(
        jnp.asarray(logits), options, jnp.arange(rows, dtype=jnp.uint32), jnp.full(rows, 9)
    )
    counts = np.bincount(np.asarray(ids), minlength=VOCAB)
    expected = exact.numpy() * rows
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    rare = expected[~common].sum()
    pairs = [*zip(counts[common], expected[common], strict=True)]
    if rare > 1:
        pairs.append((counts[~common].sum(), rare))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in pairs)
    assert statistic < QUANTILES.get(len(pairs) - 1, 0.1)
    table = jax.nn.log_softmax(jnp.asarray(logits[0]))
    np.testing.assert_allclose(raw, table[ids], atol=1e-5)
    np.testing.assert_allclose(drawn, np.log(exact.numpy()[np.asarray(ids)]), atol=1e-5)


def test_greedy_takes_the_best_token_with_probability_one():
    logits = draw(3, 4)
    options = methods.make_options([Sampling(0.0)] * 4, [()] * 4, VOCAB, True)
    seeds = jnp.arange(4, dtype=jnp.uint32)
    ids, raw, drawn = methods.sample(jnp.asarray(logits), options, seeds, jnp.zeros(4, int))
    np.testing.assert_array_equal(ids, logits.argmax(-1))
    assert np.all(np.asarray(drawn) == 0) and np.all(np.asarray(raw) < 0)


def test_the_penalty_sees_what_was_sampled():
    options = methods.make_options(
        [Sampling(repetition_penalty=2.0)] * 2, [(1,), (2, 3)], VOCAB, True
    )
    options = methods.note({k: jnp.asarray(v) for k, v in options.items()}, jnp.asarray([4, 2]))
    assert [np.flatnonzero(row).tolist() for row in np.asarray(options["seen"])] == [[1, 4], [2, 3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "sampler.temperature = -1.0: must be a finite number, at least 0"),
        ({"temperature": float("nan")}, "sampler.temperature = nan"),
        ({"top_k": -1}, "sampler.top_k = -1"),
        ({"top_p": 0.0}, "sampler.top_p = 0.0: must be above 0 and at most 1"),
        ({"min_p": 1.5}, "sampler.min_p = 1.5"),
        (
            {"repetition_penalty": 0.0},
            "sampler.repetition_penalty = 0.0: must be finite and above 0",
        ),
        ({"logit_bias": ((-1, 2.0),)}, r"sampler.logit_bias: \(-1, 2.0\): must be"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Sampling(**changes)
