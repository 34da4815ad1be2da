"""The decoder against transformers in torch: all model families and switches, on small random models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import CASES, VOCAB, logits, make_torch, tokens, torch_logits
from lazily import torch

from leafe_jax.errors import UserError
from leafe_jax.models import decoder, hf
from leafe_jax.models.attention import segment_attend
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.rope import Llama3Scaling, YarnScaling
from leafe_jax.sampling.engine import Engine, Request
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.types import Sampling

NEAR_AND_FAR = np.array([[*range(15), *range(4_000, 4_007), *range(99_993, 100_000)]] * 2)
# One case for each way to compute the rotary frequencies.
ROPES = ("qwen2-0.5b", "qwen2-yarn", "qwen2-yarn-options", "qwen3-yarn-mscale", "llama3.1-8b")
# For what compiles large programs: each family, tied and untied heads, both scalings, and every bias.
FEW = ("qwen2-0.5b", "qwen2-yarn", "qwen3-0.6b", "llama3.1-8b", "llama-biases")
COMPILED = [case if case in FEW else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


def load(model, directory, dtype="float32"):
    model.save_pretrained(directory)
    config = hf.read_config(directory)
    return config, hf.load_params(directory, config, dtype)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case, seed, tmp_path):
    model, ids = make_torch(case, seed), tokens(seed)
    config, params = load(model, tmp_path)
    expected = torch_logits(model, ids)
    assert np.abs(expected).max() > 0.5  # a comparison of zeros would show nothing
    np.testing.assert_allclose(logits(config, params, ids), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ROPES)
def test_logits_equal_transformers_at_far_positions(case, tmp_path):
    model, ids = make_torch(case, 3), tokens(3)
    config, params = load(model, tmp_path)
    expected = torch_logits(model, ids, NEAR_AND_FAR)
    found = logits(config, params, ids, NEAR_AND_FAR)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    # The positions matter: this is not the comparison above.
    assert np.abs(found - logits(config, params, ids)).max() > 1e-2


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("case", ROPES)
def test_rotations_equal_transformers_up_to_100_000(case, head_dim):
    """At the head sizes and bases of real models, where an error in the last bit would grow."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    kind, changes = CASES[case]
    changes = {k: dict(v) if isinstance(v, dict) else v for k, v in changes.items()}
    theirs = kind(**{**changes, "head_dim": head_dim, "max_position_embeddings": 32768})
    scaling = theirs.rope_parameters
    if "original_max_position_embeddings" in scaling:
        scaling["original_max_position_embeddings"] = 8192
    embedding = LlamaRotaryEmbedding(theirs)
    config = small(rope_theta=scaling["rope_theta"], head_dim=head_dim)
    if scaling["rope_type"] == "llama3":
        config = dataclasses.replace(config, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))
    elif scaling["rope_type"] == "yarn":
        config = dataclasses.replace(
            config,
            rope_scaling=YarnScaling(
                scaling["factor"], 8192, scaling.get("beta_fast", 32.0),
                scaling.get("beta_slow", 1.0), scaling.get("truncate", True),
                embedding.attention_scaling,
            ),
        )  # fmt: skip
    frequency, factor = decoder.rope_table(config)
    np.testing.assert_array_max_ulp(frequency, embedding.inv_freq.numpy(), maxulp=2)
    assert factor == pytest.approx(embedding.attention_scaling, abs=1e-12)
    positions = np.concatenate([np.arange(0, 100_000, 997), np.arange(99_900, 100_001)])[None]
    q = np.random.default_rng(0).uniform(-1, 1, (1, positions.shape[1], 2, head_dim))
    q = q.astype(np.float32)
    heads_first = torch.tensor(q).transpose(1, 2)
    cos, sin = embedding(heads_first, torch.tensor(positions))
    expected, _ = apply_rotary_pos_emb(heads_first, heads_first, cos, sin)
    found = decoder.rope(config, jnp.asarray(q), jnp.asarray(positions))
    np.testing.assert_allclose(found, expected.transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_sub_modules_equal_transformers(case, tmp_path):
    model = make_torch(case, 5)
    config, params = load(model, tmp_path)
    theirs = model.model.layers[1]
    x = torch.randn(2, 11, 48)
    positions = torch.arange(11)[None].expand(2, -1) + 7
    causal = torch.full((11, 11), -torch.inf).triu(1)[None, None]
    ours = decoder._merge(config, params)
    block, attention = ours.layers["1"], theirs.self_attn
    heads = torch.randn(2, 11, config.num_heads, config.head_dim)
    with torch.no_grad():
        around = model.model.rotary_emb(x, positions)
        pairs = [
            (block.input_norm, theirs.input_layernorm, x),
            (block.post_norm, theirs.post_attention_layernorm, x),
            (ours.final_norm, model.model.norm, x),
            (block.mlp, theirs.mlp, x),
            (block.attn.q_proj, attention.q_proj, x),
            (block.attn.k_proj, attention.k_proj, x),
            (block.attn.v_proj, attention.v_proj, x),
            (ours.head, model.lm_head, x),
        ]
        if config.qk_norm:
            pairs += [(block.attn.q_norm, attention.q_norm, heads)]
            pairs += [(block.attn.k_norm, attention.k_norm, heads)]
        for mine, other, given in pairs:
            np.testing.assert_allclose(mine(jnp.asarray(given)), other(given), atol=1e-5)
        attended = attention(x, position_embeddings=around, attention_mask=causal)[0]
        whole = theirs(x, position_embeddings=around, attention_mask=causal)
    attend = segment_attend(jnp.ones((2, 11), jnp.int32))
    given = jnp.asarray(x), jnp.asarray(positions), attend
    np.testing.assert_allclose(block.attn(*given), attended, atol=1e-5)
    np.testing.assert_allclose(block(*given), whole, atol=2e-5)
    embedded = model.model.embed_tokens(torch.arange(VOCAB)).detach()
    np.testing.assert_array_equal(ours.embed.embedding[...], embedded)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_no_further_off_than_transformers_in_bfloat16(case, tmp_path):
    ours, theirs, apart = [], [], []
    for seed in range(3):
        model, ids = make_torch(case, seed), tokens(seed, 64, 4)
        config, params = load(model.to(torch.bfloat16), tmp_path / str(seed), "bfloat16")
        rounded = torch_logits(model, ids)
        exact = torch_logits(model.float(), ids)  # the same rounded weights, computed in float32
        found = logits(config, params, ids)
        ours.append(np.abs(found - exact))
        theirs.append(np.abs(rounded - exact))
        apart.append(np.abs(found - rounded))
    # The RMS error measures the arithmetic; the largest of 75,000 errors is mostly chance.
    rms = [np.sqrt(np.mean(np.square(x))) for x in (ours, theirs, apart)]
    assert 0 < rms[0] <= rms[1]
    assert np.max(ours) <= 1.25 * np.max(theirs)
    assert rms[2] <= 1.5 * rms[1]  # two independent roundings lie sqrt(2) apart


@pytest.mark.parametrize("case", COMPILED)
def test_greedy_generation_equals_transformers(case, tmp_path):
    """64 tokens for four prompts of unequal length, batched on both sides."""
    model = make_torch(case, 8)
    config, params = load(model, tmp_path)
    prompts = [tokens(n, length, 1)[0].tolist() for n, length in enumerate((3, 17, 9, 40))]
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    model.generation_config.pad_token_id = 0
    out = model.generate(
        padded, attention_mask=mask, max_new_tokens=64, min_new_tokens=64, do_sample=False
    )
    sizes = EngineConfig(
        num_slots=4, max_len=128, turn_chunk=16, prefill_chunk=16, max_new_tokens=64, stop_ids=()
    )
    engine = Engine(config, params, sizes)
    found = engine.generate([Request(engine.start(), p, 64, Sampling(0.0), 0) for p in prompts])
    for theirs, ours in zip(out[:, width:].tolist(), found, strict=True):
        assert theirs == list(ours.ids)


@pytest.mark.parametrize("case", COMPILED)
def test_gradients_equal_torch(case, tmp_path):
    model, ids = make_torch(case, 3), tokens(3, 17)
    config, params = load(model, tmp_path)
    model(torch.tensor(ids), labels=torch.tensor(ids)).loss.backward()

    def loss(params):
        positions = jnp.broadcast_to(jnp.arange(17), ids.shape)
        attend = segment_attend(jnp.ones(ids.shape, jnp.int32))
        states = decoder.hidden(config, params, jnp.asarray(ids), positions, attend)
        table = jax.nn.log_softmax(decoder.head(config, params, states)[:, :-1], axis=-1)
        return -jnp.take_along_axis(table, jnp.asarray(ids)[:, 1:, None], axis=-1).mean()

    theirs = dict(model.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in theirs.values())
    for path, grad in jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(loss))(params))[0]:
        name, transposed = hf.hub_name(hf._path(path))
        expected = theirs.pop(name).grad.numpy()
        expected = expected.T if transposed else expected
        # A bias on the keys shifts all scores equally, so its gradient is zero up to rounding.
        limit = 1e-4 * max(np.abs(expected).max(), 1e-3 * scale)
        assert np.abs(np.asarray(grad) - expected).max() <= limit, name
    assert not theirs


def test_packed_segments_equal_separate_passes():
    config = small()
    params = decoder.init_params(config, jax.random.key(1))
    one, two = tokens(1, 9)[:1], tokens(2, 6)[:1]
    packed = np.concatenate([one, two, np.zeros((1, 4), int)], axis=1)
    segments = np.array([[1] * 9 + [2] * 6 + [0] * 4])
    positions = [[*range(9), *range(6), *range(4)]]
    together = logits(config, params, packed, positions, segments)
    np.testing.assert_allclose(together[:, :9], logits(config, params, one), atol=1e-5)
    np.testing.assert_allclose(together[:, 9:15], logits(config, params, two), atol=1e-5)
    assert np.isfinite(together).all()


# -- no field without effect -----------------------------------------------------------------------
def small(**changes) -> ModelConfig:
    fields = dict(
        model_type="qwen3", vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=2,
        num_heads=6, num_kv_heads=2, head_dim=16, rope_theta=1e4, rms_norm_eps=1e-6,
        tie_word_embeddings=True, max_position_embeddings=512,
    )  # fmt: skip
    return ModelConfig(**{**fields, **changes})


LLAMA3 = Llama3Scaling(8.0, 1.0, 4.0, 32)
YARN = YarnScaling(4.0, 256, 32.0, 1.0, True, 1.1)
FLIPS = [
    (small(), name, value)
    for name, value in dict(
        model_type="llama", vocab_size=98, hidden_size=40, intermediate_size=64, num_layers=1,
        num_heads=4, num_kv_heads=3, head_dim=8, rope_theta=10.0, rms_norm_eps=0.1,
        tie_word_embeddings=False, rope_scaling=YARN, attention_bias=True, mlp_bias=True,
    ).items()
]  # fmt: skip
SCALINGS = [
    (scaling, name, value)
    for scaling, values in (
        (LLAMA3, dict(factor=2.0, low_freq_factor=0.5, high_freq_factor=8.0, original_max_position=64)),
        (
            YARN,
            dict(factor=2.0, original_max_position=1024, beta_fast=3.0, beta_slow=0.2, truncate=False,
                 attention_factor=1.3),
        ),
    )
    for name, value in values.items()
]  # fmt: skip
FLIPS += [
    (small(rope_scaling=scaling), "rope_scaling", dataclasses.replace(scaling, **{name: value}))
    for scaling, name, value in SCALINGS
]


def test_the_flips_cover_every_field():
    flipped = {name for _, name, _ in FLIPS}
    every = {f.name for f in dataclasses.fields(ModelConfig)}
    # A limit, see the next test; adapters, see tests/models/test_lora.py.
    assert every - flipped == {"max_position_embeddings", "lora"}
    for kind in (Llama3Scaling, YarnScaling):
        found = {name for scaling, name, _ in SCALINGS if isinstance(scaling, kind)}
        assert found == {f.name for f in dataclasses.fields(kind)}
    sizes = dict(num_slots=1, turn_chunk=8, prefill_chunk=8, max_new_tokens=8, stop_ids=())
    with pytest.raises(UserError, match="at most the model's 512 positions"):
        Engine(small(), {}, EngineConfig(max_len=513, **sizes))


@pytest.mark.parametrize(("config", "name", "value"), FLIPS)
def test_every_field_changes_the_logits(config, name, value):
    def run(config):
        shapes = decoder.abstract_params(config)
        # Values by path and shape, so that only what the field changes differs.
        leaves = [
            np.random.default_rng(sum(map(ord, hf._path(p)))).normal(0, 0.3, leaf.shape)
            for p, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
        ]
        leaves = [leaf.astype(np.float32) for leaf in leaves]
        params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        return logits(config, params, tokens(0, 64))

    before, after = run(config), run(dataclasses.replace(config, **{name: value}))
    assert before.shape != after.shape or np.abs(before - after).max() > 1e-3


# Fields of config.json that transformers writes and that do not change the logits.
INERT = {
    "architectures", "dtype", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id",
    "initializer_range", "use_cache", "max_window_layers", "sliding_window", "pretraining_tp",
}  # fmt: skip


@pytest.mark.parametrize("case", ["qwen2-yarn-options", "qwen3-8b", "llama3.1-8b"])
def test_every_field_of_config_json_is_read_or_refused(case, tmp_path):
    make_torch(case).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    data = json.loads(file.read_text())
    changed = dict(
        model_type="mamba", hidden_act="gelu", rms_norm_eps=0.5, attention_bias=True, mlp_bias=True,
        attention_dropout=0.5, tie_word_embeddings=True, use_sliding_window=True,
        layer_types=["sliding_attention"] * 3, num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    if case.startswith("qwen2"):
        INERT.add("attention_bias")
    flat = {(name,): value for name, value in data.items() if name != "rope_parameters"}
    flat |= {("rope_parameters", name): v for name, v in data["rope_parameters"].items()}
    before = hf.read_config(tmp_path)
    for path, value in flat.items():
        if path[-1] in INERT:
            continue
        if path[-1] == "use_sliding_window":
            other = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
            new = {k: v for k, v in {**data, **other}.items() if k != "layer_types"}
        else:
            new = json.loads(json.dumps(data))
            inside = new["rope_parameters"] if len(path) == 2 else new
            fallback = (not value) if isinstance(value, bool) else "odd"
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                fallback = value * 2
            inside[path[-1]] = changed.get(path[-1], fallback)
        file.write_text(json.dumps(new))
        try:
            after = hf.read_config(tmp_path)
        except UserError:
            continue
        assert after != before, path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wide", [3, 11])  # kernels that narrow and that widen
def test_gradient_rules_are_those_of_differentiation(dtype, wide):
    keys = jax.random.split(jax.random.key(0), 4)
    draw = [(2, 5, 7), (7, wide), (2, 5, wide), (2, 5, wide)]
    x, kernel, up, weight = (
        jax.random.normal(k, shape, dtype) for k, shape in zip(keys, draw, strict=True)
    )

    def ours(x, kernel, up):
        return jnp.sum(weight * decoder.swiglu(decoder.project(x, kernel, x.dtype), up))

    def plain(x, kernel, up):
        x, kernel, up, w = (a.astype(jnp.float32) for a in (x, kernel, up, weight))
        gate = jnp.einsum("abi,io->abo", x, kernel)
        return jnp.sum(w * gate / (1 + jnp.exp(-gate)) * up)

    found = jax.grad(ours, argnums=(0, 1, 2))(x, kernel, up)
    wanted = jax.grad(plain, argnums=(0, 1, 2))(x, kernel, up)
    bound = 1e-5 if dtype == "float32" else 0.04
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=bound * np.abs(b).max())
