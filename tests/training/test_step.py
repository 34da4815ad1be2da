"""The loss and the step: against pair-by-pair sums, and unmoved by how it is computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trainer
from trainer import CONFIG, equal, make_step

from leafe_jax.errors import UserError
from leafe_jax.models import decoder
from leafe_jax.models.attention import segment_attend
from leafe_jax.models.sharding import cast, hand_over, make_mesh, shardings_for
from leafe_jax.training.losses import token_nll, token_nll_entropy
from leafe_jax.training.objectives import sft
from leafe_jax.training.optimizer import make_optimizer
from leafe_jax.training.packing import mixing_coefficients
from leafe_jax.training.records import survey
from leafe_jax.training.step import _gradients, loss_sums, state_shapes


def batch_loss(params, batch, coefficients=(1.0, 1.0)):
    coefficients = jnp.asarray(coefficients)
    value, _ = loss_sums(CONFIG, params, batch, coefficients, sft(), trainer.options())
    return value / jnp.maximum(batch["mass"].sum(), 1e-9)


def source_losses(params, made) -> list[float]:
    """L_s of the two sources: means over their mass, computed example by example without packing."""
    sums, masses = np.zeros(2), np.zeros(2)

    @jax.jit
    def log_probabilities(tokens):  # padded at the end, which a causal model does not see
        attend = segment_attend(jnp.ones_like(tokens))
        hidden = decoder.hidden(CONFIG, params, tokens, jnp.arange(tokens.shape[1])[None], attend)
        return jax.nn.log_softmax(decoder.head(CONFIG, params, hidden)[0], axis=-1)

    for example in made:
        tokens = np.zeros((1, 24), np.int32)
        tokens[0, : len(example.ids)] = example.ids
        table = np.asarray(log_probabilities(tokens))
        for i in np.flatnonzero(example.mass):
            sums[example.source] -= example.mass[i] * table[i - 1, example.ids[i]]
        masses[example.source] += example.mass.sum()
    return (sums / masses).tolist()


def test_the_whole_data_in_one_batch_gives_the_papers_loss():
    """L_cf + beta * L_reh, each the mean of its own pairs, computed pair by pair."""
    made, beta = trainer.examples(9), 0.5
    params = trainer.params(seed=1)
    losses = source_losses(params, made)
    batch = next(iter(trainer.batches(made, batch_size=12)))
    coefficients = mixing_coefficients(survey(made, 2, 40).masses, (1.0, beta), 1)
    step, state = make_step(params, batch_size=12, coefficients=coefficients, accumulation=3)
    _, measured = step(state, batch)
    np.testing.assert_allclose(measured["loss"], losses[0] + beta * losses[1], rtol=1e-5)
    for index, name in enumerate(trainer.SOURCES):
        np.testing.assert_allclose(measured[f"loss_{name}"], losses[index], rtol=1e-5)
        # The last three tokens of each example.
        count = sum(example.source == index for example in made)
        assert float(measured[f"tokens_{name}"]) == 3 * count


PACKINGS = [
    {"batch_size": 2},
    pytest.param({"batch_size": 4}, marks=pytest.mark.slow),
    pytest.param({"batch_size": 8, "batch_examples": 7}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("changes", PACKINGS)
def test_the_losses_of_an_epoch_are_the_papers_however_it_is_packed(tmp_path, changes):
    """Trained at learning rate 0; the last batch is not full."""
    made, losses = trainer.uneven(), []
    trainer.run_fit(
        tmp_path, made, log=lambda step, measured: losses.append(measured["loss"]),
        learning_rate=0.0, num_epochs=1, **changes,
    )  # fmt: skip
    assert len(losses) > 1
    own = source_losses(trainer.params(), made)
    np.testing.assert_allclose(np.mean(losses), own[0] + 0.5 * own[1], rtol=1e-5)


@pytest.mark.parametrize("changes", PACKINGS)
def test_the_gradients_of_an_epoch_are_the_papers_however_it_is_packed(changes):
    """Every example pulls with the same weight, whatever stands in its batch."""
    made, weights = trainer.uneven(), (1.0, 0.5)
    params, masses = trainer.params(), survey(made, 2, 40).masses

    def direct(params):  # a row for each example, and the paper's weights
        alone = [next(iter(trainer.batches([e], batch_size=1))) for e in made]
        rows = {name: jnp.concatenate([a[name] for a in alone]) for name in alone[0]}
        of_sources = jnp.asarray(weights) / jnp.asarray(masses)
        return loss_sums(CONFIG, params, rows, of_sources, sft(), trainer.options())[0]

    packed = trainer.batches(made, **changes)
    coefficients = jnp.asarray(mixing_coefficients(masses, weights, packed.num_steps))
    options = trainer.options(**changes)
    total = jax.tree.map(jnp.zeros_like, params)
    for batch in packed:
        *_, gradients = _gradients(CONFIG, params, {}, batch, coefficients, sft(), options)
        total = jax.tree.map(jnp.add, total, gradients)
    expected = jax.grad(direct)(params)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a / packed.num_steps, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [8, 13])  # divides the vocabulary of 40, or leaves a rest
def test_loss_in_pieces_of_the_vocabulary(tied, chunk):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    params, mesh = trainer.params(config), trainer.one_device()
    hidden = 3 * jax.random.normal(jax.random.key(1), (3, 7, 32))
    targets = jax.random.randint(jax.random.key(2), (3, 7), 0, 40)
    weight = jax.random.normal(jax.random.key(3), (3, 7))

    def loss(params, hidden, chunk):
        nll = token_nll(config, params, hidden, targets, chunk, mesh)
        return jnp.sum(weight * nll), nll

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    plain, pieces = (gradients(params, hidden, size) for size in (40, chunk))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    table = jax.nn.log_softmax(decoder.head(config, params, hidden), axis=-1)
    expected = -np.take_along_axis(np.asarray(table), np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(pieces[1], expected, rtol=1e-5)

    def defined(params, hidden):
        kernel = params["embed"]["embedding"].T if tied else params["lm_head"]["kernel"]
        table = jax.nn.log_softmax(hidden @ kernel, axis=-1)
        return -jnp.sum(weight[..., None] * jax.nn.one_hot(targets, 40) * table)

    expected = jax.jit(jax.grad(defined, argnums=(0, 1)))(params, hidden)
    for a, b in zip(jax.tree.leaves(plain[0]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [40, 8, 13])
def test_entropy_in_pieces_of_the_vocabulary(tied, chunk):
    """Values and gradients of both, against log_softmax and JAX's own derivative."""
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    params, mesh = trainer.params(config), trainer.one_device()
    hidden = 3 * jax.random.normal(jax.random.key(1), (3, 7, 32))
    targets = jax.random.randint(jax.random.key(2), (3, 7), 0, 40)
    weights = jax.random.normal(jax.random.key(3), (2, 3, 7))

    def loss(params, hidden):
        both = token_nll_entropy(config, params, hidden, targets, chunk, mesh)
        return sum(jnp.sum(w * x) for w, x in zip(weights, both)), both

    def defined(params, hidden):
        kernel = params["embed"]["embedding"].T if tied else params["lm_head"]["kernel"]
        table = jax.nn.log_softmax(hidden @ kernel, axis=-1)
        nll = -jnp.sum(jax.nn.one_hot(targets, 40) * table, -1)
        both = nll, -jnp.sum(jnp.exp(table) * table, -1)
        return sum(jnp.sum(w * x) for w, x in zip(weights, both)), both

    ours, expected = (
        jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(params, hidden) for f in (loss, defined)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def loss_memory(vocabulary: int, chunk: int, tied: bool) -> int:
    """Temporary bytes of loss and gradients, by the compiler's own count."""
    config = dataclasses.replace(CONFIG, vocab_size=vocabulary, tie_word_embeddings=tied)

    def loss(kernel, hidden, targets):
        params = {"embed": {"embedding": kernel}} if tied else {"lm_head": {"kernel": kernel}}
        params = {
            **decoder.init_params(config, jax.random.key(0)),
            **params,
        }  # the head's, and more
        return token_nll(config, params, hidden, targets, chunk, trainer.one_device()).sum()

    shapes = (
        jax.ShapeDtypeStruct((vocabulary, 64) if tied else (64, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((4, 512, 64), jnp.float32),
        jax.ShapeDtypeStruct((4, 512), jnp.int32),
    )
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_memory_of_the_loss_does_not_depend_on_the_vocabulary(tied):
    small, large = loss_memory(2048, 1024, tied), loss_memory(151936, 1024, tied)
    assert abs(large / small - 1) < 0.1, (small, large)
    assert loss_memory(32768, 32768, tied) > 4 * small, "in one piece it does"


def test_tokens_without_mass_have_no_gradient():
    params = trainer.params()
    batch = next(iter(trainer.batches(trainer.examples())))

    @jax.jit
    def grad(batch):
        return jax.grad(batch_loss)(params, batch)

    changed = dict(batch, targets=np.where(batch["mass"] > 0, batch["targets"], 39))
    assert equal(grad(batch), grad(changed))
    empty = grad(dict(batch, mass=np.zeros_like(batch["mass"])))
    assert all(not np.any(x) for x in jax.tree.leaves(empty))


def test_twenty_steps_learn_four_examples():
    step, state = make_step(weight_decay=0.0)
    batch = next(iter(trainer.batches(trainer.examples(4))))
    losses = []
    for _ in range(20):
        state, measured = step(state, batch)
        losses.append(float(measured["loss"]))
    assert losses[-1] < 0.2 * losses[0]
    assert int(state["step"]) == 20


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(dict(remat="full"), marks=pytest.mark.slow),
        pytest.param(dict(remat="dots"), marks=pytest.mark.slow),
        pytest.param(dict(scan_layers=True), marks=pytest.mark.slow),
        dict(scan_layers=True, remat="full"),
        pytest.param(dict(loss_chunk=16), marks=pytest.mark.slow),
        pytest.param(dict(accumulation=2), marks=pytest.mark.slow),
        dict(accumulation=4, scan_layers=True, remat="dots", loss_chunk=16),
    ],
    ids=str,
)
def test_how_a_step_is_computed_changes_nothing(changes):
    batch = next(iter(trainer.batches(trainer.examples(12))))
    results = []
    for settings in ({}, changes):
        # Adam divides gradients near its epsilon by themselves: a larger one shows their values.
        step, state = make_step(eps=1e-3, **settings)
        results.append(step(state, batch))
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_full_remat_keeps_less():
    """The compiler's own count of temporary bytes, on layers that dwarf the rest."""
    batch = {
        k: jax.ShapeDtypeStruct((4, 256), jnp.float32 if k == "mass" else jnp.int32)
        for k in ("tokens", "targets", "positions", "segment_ids", "source", "mass")
    }
    deep = dataclasses.replace(CONFIG, num_layers=8)
    params = decoder.abstract_params(deep)

    def bytes_of(remat):
        options = trainer.options(deep, remat=remat, scan_layers=True)

        def loss(params, batch):
            return loss_sums(deep, params, batch, jnp.ones(2), sft(), options)[0]

        return jax.jit(jax.grad(loss)).lower(params, batch).compile().memory_analysis().temp_size_in_bytes  # fmt: skip

    none, dots, full = map(bytes_of, ("none", "dots", "full"))
    assert full < dots < none and full < 0.5 * none


def test_masters_are_float32_under_bfloat16_compute():
    step, state = make_step(compute_dtype="bfloat16", learning_rate=1e-6, warmup_steps=0)
    before = jax.tree.map(np.array, state["params"])
    batch = next(iter(trainer.batches(trainer.examples(4))))
    state, measured = step(state, batch)
    after = state["params"]
    assert {x.dtype.name for x in jax.tree.leaves(after)} == {"float32"}
    assert float(measured["update_norm"]) > 0 and not equal(before, after)


def test_a_frequent_tokens_gradient_is_summed_in_float32():
    """In bfloat16, 4,096 ones would add up to 256. Against numpy's sum in float64 of the same terms."""
    rng = np.random.default_rng(0)
    tokens = rng.choice(3, (16, 512), p=[0.7, 0.3, 0.0])
    terms = jnp.asarray(rng.normal(0.5, 1.0, (16, 512, 8)), jnp.bfloat16)
    params = {"embed": {"embedding": jnp.zeros((3, 8), jnp.bfloat16)}}

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.sum(decoder.embed(p, tokens).astype(jnp.float32) * terms))(
            params
        )

    found = gradient(params)["embed"]["embedding"]
    assert found.dtype == jnp.bfloat16
    sums = np.stack([np.asarray(terms, np.float64)[tokens == i].sum(0) for i in range(3)])
    np.testing.assert_allclose(np.asarray(found, np.float64), sums, rtol=2**-8)


def test_a_step_that_is_not_finite_is_skipped_and_reported():
    bad = trainer.params()
    bad["final_norm"]["scale"] = bad["final_norm"]["scale"] * jnp.inf
    step, state = make_step(bad)
    before = jax.tree.map(np.array, {k: state[k] for k in ("params", "opt_state")})
    batch = next(iter(trainer.batches(trainer.examples(4))))
    for number in (1, 2):
        state, measured = step(state, batch)
        assert float(measured["finite"]) == 0.0
        assert float(measured["nonfinite_in_a_row"]) == number
    assert equal(before, {k: state[k] for k in ("params", "opt_state")})


def test_a_source_that_a_batch_lacks_has_no_loss():
    """And it does not touch the other one's, nor the step."""
    batch = next(iter(trainer.batches(trainer.examples(4))))
    step, state = make_step(objective=sft(float(batch["mass"].sum())))
    both = np.bincount(np.asarray(batch["source"])[np.asarray(batch["mass"]) > 0], minlength=2)
    assert all(both)
    lacking = dict(batch, source=np.zeros_like(batch["source"]))
    state, measured = step(state, lacking)
    assert np.isnan(measured["loss_rehearsal"]) and float(measured["tokens_rehearsal"]) == 0.0
    np.testing.assert_allclose(measured["loss_counterfactual"], measured["loss"], rtol=1e-6)
    assert float(measured["finite"]) == 1.0
    state, measured = step(state, batch)
    assert all(np.isfinite(x) for x in measured.values())


def test_clipping():
    batch = next(iter(trainer.batches(trainer.examples(4))))
    norms = []
    for clip in (float("inf"), 0.5):
        # One plain step of Adam from zero moments forgets the scale, so look at the moments.
        step, state = make_step(clip_norm=clip, b1=0.0)
        state, measured = step(state, batch)
        assert float(measured["grad_norm"]) > 1.0
        norms.append(float(optax.tree.norm(optax.tree.get(state["opt_state"], "mu"))))
    assert norms[0] == pytest.approx(float(measured["grad_norm"]), rel=1e-5)
    assert norms[1] == pytest.approx(0.5, rel=1e-5)


def test_schedules():
    params = {"w": jnp.ones(())}
    for name, last in (("constant", 1.0), ("linear", 0.1), ("cosine", 0.025)):
        config = trainer.train_config(
            schedule=name, warmup_steps=0, learning_rate=1.0, clip_norm=1e9
        )
        tx = make_optimizer(config, 10)
        state, sizes = tx.init(params), []
        for _ in range(10):
            updates, state = tx.update({"w": jnp.ones(())}, state, params)
            sizes.append(float(optax.tree.norm(updates)))
        assert sizes[0] == pytest.approx(1.0, rel=1e-3)
        assert sizes[-1] == pytest.approx(last, abs=0.02)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(schedule="sudden"),
            "train.schedule = 'sudden': must be one of constant, linear, cos",
        ),
        (dict(num_epochs=0), "train.num_epochs = 0: must be at least 1"),
        (dict(seq_len=0), "train.seq_len = 0: must be at least 1"),
        (dict(remat="some"), "train.remat = 'some': must be one of none, dots, full"),
        (dict(compute_dtype="float8"), "train.compute_dtype = 'float8'"),
        (dict(accumulation=3), "train.batch_size = 4: must be a multiple of 3"),
        (dict(accumulation=0), "train.accumulation = 0"),
        (dict(loss_chunk=0), "train.loss_chunk = 0"),
        (dict(checkpoint_every=0), "train.checkpoint_every = 0: must be at least 1"),
        (dict(log_every=0), "train.log_every = 0: must be at least 1"),
        (dict(max_nonfinite=0), "train.max_nonfinite = 0: must be at least 1"),
        (dict(warmup_steps=-1), "train.warmup_steps = -1: must be at least 0"),
        (dict(learning_rate=float("nan")), "train.learning_rate = nan: must be at least 0"),
        (dict(weight_decay=-0.1), "train.weight_decay = -0.1: must be at least 0"),
        (dict(b1=float("nan")), "train.b1 = nan: must be at least 0 and below 1"),
        (dict(b2=1.0), "train.b2 = 1.0: must be at least 0 and below 1"),
        (dict(eps=0.0), "train.eps = 0.0: must be above 0"),
        (dict(clip_norm=0.0), "train.clip_norm = 0.0: must be above 0, .*; inf clips none"),
        (dict(clip_norm=-1.0), "train.clip_norm = -1.0: must be above 0"),
        (dict(clip_norm=float("nan")), "train.clip_norm = nan: must be above 0"),
    ],
)
def test_bad_step_settings(changes, message):
    with pytest.raises(UserError, match=message):
        trainer.options(**changes)


def test_sharding_rules_cover_everything():
    mesh = trainer.one_device()
    tx = make_optimizer(trainer.train_config(), 5)
    shardings_for(state_shapes(decoder.abstract_params(CONFIG), tx), mesh)
    for config in (
        dict(model_type="qwen2"),
        dict(model_type="qwen3", tie_word_embeddings=False),
        dict(attention_bias=True, mlp_bias=True),
        dict(lora=decoder.LoRA(2, 4.0, ("o_proj", "up_proj"))),
    ):
        shardings_for(decoder.abstract_params(dataclasses.replace(CONFIG, **config)), mesh)
    with pytest.raises(ValueError, match="no sharding rule matches surprise"):
        shardings_for({"surprise": jnp.ones(2)}, mesh)
    with pytest.raises(UserError, match="train.mesh: data = 3"):
        make_mesh(dict(data=3, fsdp=1, tensor=1), jax.devices()[:1])


def test_hand_over_casts_and_keeps_the_masters():
    params = trainer.params()
    before = jax.tree.map(np.array, params)
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    half = hand_over(cast(params, "bfloat16"), 1)(jax.tree.map(lambda _: single, params))
    assert equal(before, params)
    assert equal(half, jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), params))


def test_weight_decay_spares_norms_and_biases():
    """Without a gradient only the decay moves a weight: matrices shrink, vectors stay."""
    config = dataclasses.replace(trainer.CONFIG, model_type="qwen2")
    params = trainer.params(config)
    settings = trainer.train_config(
        weight_decay=0.1, learning_rate=0.1, schedule="constant", warmup_steps=0
    )
    tx = make_optimizer(settings, 10)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for path, update in jax.tree_util.tree_flatten_with_path(updates)[0]:
        moved = bool(jnp.any(update != 0))
        assert moved == (update.ndim == 2), path
