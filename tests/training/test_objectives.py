"""Objectives by hand: a few tokens in numpy, the signs of gradients, clipping, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trainer
from trainer import make_step

from leafe_jax.errors import UserError
from leafe_jax.training.objectives import distillation, grpo, sft
from leafe_jax.types import Example


def row(**columns):
    return {name: jnp.asarray([values], jnp.float32) for name, values in columns.items()}


def losses(objective, logprobs, **columns):
    return np.asarray(objective.token_loss(row(**columns), row(x=logprobs)["x"]))[0]


def gradient(objective, logprobs, **columns):
    """d loss / d log-probability of each token."""
    whole = lambda x: objective.token_loss(row(**columns), x).sum()  # noqa: E731
    return np.asarray(jax.grad(whole)(row(x=logprobs)["x"]))[0]


def test_sft_by_hand():
    found = losses(sft(), [-1.0, -2.0, -3.0], mass=[0.5, 0.0, 2.0])
    assert found.tolist() == [0.5, 0.0, 6.0]
    assert gradient(sft(), [-1.0, -2.0, -3.0], mass=[0.5, 0.0, 2.0]).tolist() == [-0.5, 0.0, -2.0]


# Ratio exp(logprob - behaviour), advantage -> loss and its derivative by the ratio, with clips 0.2 and
# 0.3 and a dual clip of 3.
GRPO = [
    (1.0, 2.0, -2.0, -2.0),  # -A r
    (1.2, 2.0, -2.4, -2.0),  # within 1.3
    (1.5, 2.0, -2.6, 0.0),  # -A 1.3, clipped
    (0.5, 2.0, -1.0, -2.0),  # a good token that has become unlikely pulls on
    (1.0, -2.0, 2.0, 2.0),
    (0.9, -2.0, 1.8, 2.0),  # within 0.8
    (0.5, -2.0, 1.6, 0.0),  # -A 0.8, clipped
    (2.0, -2.0, 4.0, 2.0),  # a bad token that has become likely is pushed down
    (5.0, -2.0, 6.0, 0.0),  # but no harder than 3
    (1.0, 0.0, 0.0, 0.0),
]


def test_grpo_by_hand():
    ratio, advantage, loss, slope = (np.array(x) for x in zip(*GRPO))
    objective = grpo(1.0, clip_low=0.2, clip_high=0.3, dual_clip=3.0)
    assert objective.columns == ("advantage", "behaviour_logprob")
    logprobs = np.full(len(ratio), -1.5)
    mass = np.linspace(0.5, 2.0, len(ratio))
    columns = dict(mass=mass, advantage=advantage, behaviour_logprob=logprobs - np.log(ratio))
    np.testing.assert_allclose(losses(objective, logprobs, **columns), mass * loss, rtol=1e-5)
    # The ratio's derivative by the log-probability is the ratio.
    expected = mass * slope * ratio
    np.testing.assert_allclose(gradient(objective, logprobs, **columns), expected, rtol=1e-5)
    clipped = objective.measurements["clip_fraction"](row(**columns), row(x=logprobs)["x"])
    assert clipped[0].tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    moved = objective.measurements["behaviour_kl"](row(**columns), row(x=logprobs)["x"])
    np.testing.assert_allclose(moved[0], -np.log(ratio), atol=1e-6)


def test_a_positive_advantage_raises_the_probability():
    columns = dict(mass=[1, 1], advantage=[1, -1], behaviour_logprob=[-0.7, -0.7])
    up, down = gradient(grpo(1.0), [-0.7, -0.7], **columns)
    assert up == -1 and down == 1  # of a loss: descent raises the first


def test_the_kl_term_by_hand():
    logprobs, reference = np.array([-1.0, -2.0, -0.5, -40.0]), np.array([-1.5, -1.0, -0.5, -1.0])
    objective = grpo(1.0, kl_coefficient=0.1)
    assert objective.columns[-1] == "reference_logprob" and "reference_kl" in objective.measurements
    columns = dict(
        mass=np.ones(4), advantage=np.zeros(4), behaviour_logprob=logprobs,
        reference_logprob=reference,
    )  # fmt: skip
    gap = reference - logprobs
    k3 = np.minimum(np.exp(gap) - gap - 1, 10)  # most of one token
    np.testing.assert_allclose(losses(objective, logprobs, **columns), 0.1 * k3, rtol=1e-5)
    # Towards the reference: likelier where the reference is, and not moved where they agree.
    slopes = gradient(objective, logprobs, **columns)
    assert slopes[0] > 0 and slopes[1] < 0 and slopes[2] == slopes[3] == 0


def test_distillation_by_hand():
    objective = distillation(1.0, ratio_clip=2.0)
    logprobs, teacher = np.array([-1.0, -1.0, -1.0, -1.0]), np.array([-0.4, -3.0, -1.0, -3.0])
    ratio = np.array([1.0, 0.5, 1.0, 4.0])
    columns = dict(
        mass=[1.0, 2.0, 1.0, 1.0],
        teacher_logprob=teacher,
        behaviour_logprob=logprobs - np.log(ratio),
    )
    expected = np.array([-0.6, 2 * 0.5 * 2.0, 0.0, 2 * 2.0])  # the last ratio is cut to 2
    np.testing.assert_allclose(losses(objective, logprobs, **columns), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient(objective, logprobs, **columns), expected, rtol=1e-5)


def test_distillation_follows_the_reverse_kl():
    """Over a vocabulary of five: the expected gradient is that of sum p log(p / t)."""
    logits, teacher = (jax.random.normal(jax.random.key(i), (5,)) for i in range(2))
    teacher = jax.nn.log_softmax(teacher)
    behaviour = jax.nn.log_softmax(logits)

    def sampled(logits):  # every token once, weighted by its probability
        table = jax.nn.log_softmax(logits)[None]
        columns = {
            "mass": jnp.exp(behaviour)[None], "teacher_logprob": teacher[None],
            "behaviour_logprob": behaviour[None],
        }  # fmt: skip
        return distillation(1.0).token_loss(columns, table).sum()

    def kl(logits):
        table = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(table) * (table - teacher))

    np.testing.assert_allclose(sampled(logits), kl(logits), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(sampled)(logits), jax.grad(kl)(logits), atol=1e-6)


@pytest.mark.parametrize("objective", [sft(), grpo(1.0, kl_coefficient=0.1), distillation(1.0)])
def test_padding_contributes_nothing(objective):
    """Also where a column is 0 and the log-probability is as small as float32 has it."""
    columns = dict.fromkeys((*objective.columns, "entropy"), [0.0, 0.0]) | dict(mass=[0.0, 0.0])
    assert losses(objective, [-1.0, -1e30], **columns).tolist() == [0, 0]
    assert gradient(objective, [-1.0, -1e30], **columns).tolist() == [0, 0]
    for measure in objective.measurements.values():
        assert np.isfinite(measure(row(**columns), row(x=[-1.0, -1e30])["x"])).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: grpo(0.0), "objective: denominator = 0.0: must be finite and above 0"),
        (lambda: grpo(1.0, clip_low=1.0), "grpo.clip_low = 1.0: must be at least 0 and below 1"),
        (lambda: grpo(1.0, clip_high=-0.1), "grpo.clip_high = -0.1"),
        (lambda: grpo(1.0, dual_clip=1.0), "grpo.dual_clip = 1.0: must be above 1"),
        (lambda: grpo(1.0, kl_coefficient=-1.0), "grpo.kl_coefficient = -1.0"),
        (lambda: distillation(1.0, ratio_clip=0.5), "distillation.ratio_clip = 0.5"),
    ],
)
def test_bad_objectives(make, message):
    with pytest.raises(UserError, match=message):
        make()


def group(advantages=(1.0, -1.0), behaviour=-3.7) -> list[Example]:
    """Sampled sequences with an advantage each."""
    made = []
    for number, advantage in enumerate(advantages):
        ids = np.arange(3 + number, 11 + number, dtype=np.int32)
        mass = np.r_[0, 0, 0, np.ones(5)].astype(np.float32)
        columns = {
            "advantage": np.full(8, advantage, np.float32),
            "behaviour_logprob": np.full(8, behaviour, np.float32),
        }
        made.append(Example(ids, mass, 0, columns))
    return made


def packed(made, objective):
    return next(iter(trainer.batches(made, columns=objective.columns)))


def test_a_group_of_opposite_advantages_takes_a_step():
    """Advantages that add up to 0 are no denominator. That is a constant: the same example has the same
    gradient whoever is in its batch, also if the batch is computed in parts."""
    objective = grpo(7.0)
    step, start = make_step(objective=objective, clip_norm=float("inf"))

    def one_step(batch):
        state, measured = step(jax.tree.map(jnp.array, start), batch)
        return state["params"], {name: float(value) for name, value in measured.items()}

    opposite = packed(group((1.0, -1.0)), objective)
    params, measured = one_step(opposite)
    assert measured["finite"] == 1.0 and measured["update_norm"] > 0
    assert not trainer.equal(start["params"], params)
    assert 0 <= measured["clip_fraction"] <= 1 and measured["tokens_rehearsal"] == 0
    alone, beside = (one_step(packed(group(x), objective))[1] for x in ((1.0,), (1.0, 0.0)))
    assert alone["loss"] == pytest.approx(beside["loss"], rel=1e-5) and alone["loss"] < 0
    assert alone["grad_norm"] == pytest.approx(beside["grad_norm"], rel=1e-5)
    parts, state = make_step(objective=objective, clip_norm=float("inf"), accumulation=2)
    for name, value in parts(state, opposite)[1].items():
        if not name.startswith("loss_rehearsal"):
            assert float(value) == pytest.approx(measured[name], rel=1e-4, abs=1e-6), name
