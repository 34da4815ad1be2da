"""GRPO's loss and its gradient for every option, against the same in torch with its own autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from leafe_jax.training.losses import _nll_entropy
from leafe_jax.training.objectives import distillation, grpo, sft, with_targets

ROWS, LENGTH, VOCABULARY = 2, 12, 7
# Two replies in the first segment, one in each of the others; the last tokens of row 0 are padding.
SEGMENTS = np.array([[1] * 6 + [2] * 4 + [0] * 2, [1] * 7 + [2] * 5])
TRAINED = np.array(
    [[0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1]], bool
)


def data():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)
    targets = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
    table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(table, targets[..., None], -1)[..., 0]
    columns = {
        "mass": np.where(TRAINED, rng.uniform(0.2, 2.0, TRAINED.shape), 0.0),
        "advantage": rng.normal(size=TRAINED.shape),
        # Far enough that both clips and the dual clip are met.
        "behaviour_logprob": own + rng.normal(scale=0.7, size=TRAINED.shape),
        "reference_logprob": own + rng.normal(scale=0.5, size=TRAINED.shape),
        "sampler_weight": rng.uniform(0.5, 2.0, TRAINED.shape),
    }
    columns = {k: np.where(TRAINED, v, 0.0).astype(np.float32) for k, v in columns.items()}
    return logits, targets, columns


def replies() -> list[tuple[int, list[int]]]:
    """(row, places) of each reply: a run of trained tokens within a segment."""
    found: list[tuple[int, list[int]]] = []
    for row in range(ROWS):
        for place in range(LENGTH):
            if not TRAINED[row, place]:
                continue
            last = found[-1] if found else (-1, [-9])
            same = place > 0 and SEGMENTS[row, place] == SEGMENTS[row, place - 1]
            if last[0] == row and last[1][-1] == place - 1 and same:
                last[1].append(place)
            else:
                found.append((row, [place]))
    return found


def torch_loss(logits, targets, columns, options):
    """Plainly, reply by reply and token by token."""
    logprobs = torch.log_softmax(logits, -1)
    total = torch.zeros((), dtype=torch.float64)
    for row, places in replies():
        gaps = []
        for t in places:
            own = logprobs[row, t, targets[row, t]]
            gaps.append(own - float(columns["behaviour_logprob"][row, t]))
        whole = torch.stack(gaps).mean()
        for t, gap in zip(places, gaps):
            a = float(columns["advantage"][row, t])
            ratio = torch.exp(whole if options.get("sequence_ratios") else gap)
            low, high = 1 - options.get("clip_low", 0.2), 1 + options.get("clip_high", 0.2)
            loss = torch.max(-a * ratio, -a * torch.clamp(ratio, low, high))
            if a < 0:
                loss = torch.min(loss, torch.tensor(-a * 3.0, dtype=torch.float64))
            if options.get("truncated_weights"):
                loss = loss * float(columns["sampler_weight"][row, t])
            own = logprobs[row, t, targets[row, t]]
            d = float(columns["reference_logprob"][row, t]) - own
            loss = loss + options.get("kl_coefficient", 0.0) * (torch.exp(d) - d - 1)
            entropy = -(logprobs[row, t].exp() * logprobs[row, t]).sum()
            loss = loss - options.get("entropy_coefficient", 0.0) * entropy
            total = total + float(columns["mass"][row, t]) * loss
    return total


def test_the_replies_are_those_that_are_meant():
    assert [places for _, places in replies()] == [
        [1, 2], [4, 5], [6, 7], [9], [2, 3, 4, 5, 6], [8, 9, 10, 11],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kl_coefficient": 0.3},
        {"entropy_coefficient": 0.2},
        {"clip_low": 0.1, "clip_high": 0.28},  # clip-higher
        {"truncated_weights": True},
        {"sequence_ratios": True},
        {"sequence_ratios": True, "clip_low": 3e-4, "clip_high": 4e-4},
        {"sequence_ratios": True, "truncated_weights": True, "kl_coefficient": 0.01,
         "entropy_coefficient": 0.001},
    ],
    ids=str,
)  # fmt: skip
def test_loss_and_gradient_equal_torch(options):
    logits, targets, columns = data()
    objective = grpo(1.0, **options)
    fixed = {k: jnp.asarray(v) for k, v in columns.items()} | {"segment_ids": jnp.asarray(SEGMENTS)}

    def loss(logits):
        nll, entropy = _nll_entropy(logits, jnp.asarray(targets))
        return objective.token_loss({**fixed, "entropy": entropy}, -nll).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    expected = torch_loss(theirs, targets, columns, options)
    expected.backward()
    # The tolerance is of float32, for values of about 1; torch computes in float64.
    scale = max(1.0, abs(float(expected.detach())))
    assert abs(float(value) - float(expected.detach())) < 1e-6 * 3 * scale
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=3e-6, atol=1e-6)
    assert np.abs(gradient).max() > 0.01


def test_ratios_are_measured_as_they_are_used():
    logits, targets, columns = data()
    fixed = {k: jnp.asarray(v) for k, v in columns.items()} | {"segment_ids": jnp.asarray(SEGMENTS)}
    nll, _ = _nll_entropy(jnp.asarray(logits), jnp.asarray(targets))
    found = grpo(1.0, sequence_ratios=True).measurements["ratio"](fixed, -nll)
    gap = -np.asarray(nll) - columns["behaviour_logprob"]
    for row, places in replies():
        expected = np.exp(gap[row, places].mean())
        np.testing.assert_allclose(found[row, np.array(places)], expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 0.2, 1.0])
def test_the_sampled_divergence_has_the_gradient_of_the_whole_one(alpha):
    """Summed over all tokens with their probabilities: torch differentiates the divergence itself."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=VOCABULARY).astype(np.float32)
    teacher = np.log(rng.dirichlet(np.ones(VOCABULARY))).astype(np.float32)
    own = logits - np.log(np.exp(logits).sum())
    objective = distillation(1.0, ratio_clip=2.0, alpha=alpha)

    def loss(logits):
        logprobs = jax.nn.log_softmax(logits)[None]
        columns = {
            "mass": jnp.exp(own)[None], "teacher_logprob": jnp.asarray(teacher)[None],
            "behaviour_logprob": jnp.asarray(own)[None],
        }  # fmt: skip
        return objective.token_loss(columns, logprobs).sum()

    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    log_p, log_t = torch.log_softmax(theirs, -1), torch.tensor(teacher, dtype=torch.float64)
    p, t = log_p.exp(), log_t.exp()
    if alpha == 1:
        divergence = (p * (log_p - log_t)).sum()
    else:
        m = (alpha * p + (1 - alpha) * t).log()
        divergence = alpha * (p * (log_p - m)).sum() + (1 - alpha) * (t * (log_t - m)).sum()
    divergence.backward()
    found = jax.grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(found, theirs.grad.numpy(), atol=1e-6)


def test_targets_beside_a_policy():
    """Source 1 is supervised, whatever its columns; source 0 is the policy's."""
    logits, targets, columns = data()
    sources = np.array([[0] * LENGTH, [1] * LENGTH])
    fixed = {k: jnp.asarray(v) for k, v in columns.items()}
    fixed |= {"segment_ids": jnp.asarray(SEGMENTS), "source": jnp.asarray(sources)}
    nll, entropy = _nll_entropy(jnp.asarray(logits), jnp.asarray(targets))
    fixed["entropy"] = entropy
    policy = grpo(1.0, entropy_coefficient=0.1)
    both = with_targets(policy, {1: 0.5})
    found = both.token_loss(fixed, -nll)
    np.testing.assert_allclose(found[0], policy.token_loss(fixed, -nll)[0])
    np.testing.assert_allclose(found[1], 0.5 * sft().token_loss(fixed, -nll)[1])
    assert both.watched == 0 and both.columns == policy.columns
