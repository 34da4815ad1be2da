"""The decoder and the Hugging Face layout against transformers in torch, on small random models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from leafe_jax.errors import UserError
from leafe_jax.models import decoder, hf
from leafe_jax.models.decoder import ModelConfig

jax.config.update("jax_default_matmul_precision", "float32")

SIZES = dict(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
    num_attention_heads=6, max_position_embeddings=512,
)  # fmt: skip
CASES = {
    "qwen2-tied": (transformers.Qwen2Config, dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "qwen2-untied": (
        transformers.Qwen2Config,
        dict(num_key_value_heads=3, tie_word_embeddings=False, rope_theta=1e6),
    ),
    "llama-tied": (
        transformers.LlamaConfig,
        dict(num_key_value_heads=6, tie_word_embeddings=True, rms_norm_eps=1e-5),
    ),
    "llama-untied-wide-heads": (
        transformers.LlamaConfig,
        dict(num_key_value_heads=2, tie_word_embeddings=False, head_dim=16, rope_theta=5e5),
    ),
}


def make_torch(case: str, seed: int):
    kind, changes = CASES[case]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(kind(**SIZES, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (parameter.dim() == 1))
    return model


def logits(config, params, tokens, segment_ids=None, positions=None):
    tokens = jnp.asarray(tokens)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segment_ids = jnp.ones_like(tokens) if segment_ids is None else jnp.asarray(segment_ids)
    attend = decoder.segment_attend(segment_ids)
    return decoder.head(config, params, decoder.hidden(config, params, tokens, positions, attend))


def tokens(seed: int, length: int = 29) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 97, (2, length))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case, seed, tmp_path):
    model = make_torch(case, seed)
    model.save_pretrained(tmp_path)
    config = hf.read_config(tmp_path)
    params = hf.load_params(tmp_path, config, "float32")
    ids = tokens(seed)
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    found = np.asarray(logits(config, params, ids))
    assert np.abs(expected).max() > 0.5  # a comparison of zeros would show nothing
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_sub_modules_equal_transformers(case, tmp_path):
    model = make_torch(case, 5)
    model.save_pretrained(tmp_path)
    config = hf.read_config(tmp_path)
    layer = hf.load_params(tmp_path, config, "float32")["layers"]["1"]
    theirs = model.model.layers[1]
    x = torch.randn(2, 11, 48)
    positions = torch.arange(11)[None].expand(2, -1) + 7
    with torch.no_grad():
        norm = theirs.input_layernorm(x).numpy()
        mlp = theirs.mlp(x).numpy()
        cos, sin = model.model.rotary_emb(x, positions)
        q = torch.randn(2, 6, 11, config.head_dim)
        rotated = q * cos[:, None] + (
            torch.cat((-q[..., config.head_dim // 2 :], q[..., : config.head_dim // 2]), -1)
            * sin[:, None]
        )
        mask = torch.full((11, 11), -torch.inf).triu(1)[None, None]
        attended = theirs.self_attn(x, position_embeddings=(cos, sin), attention_mask=mask)[0]
    graph = decoder._merge(config, hf.load_params(tmp_path, config, "float32"))
    block = graph.layers["1"]
    np.testing.assert_allclose(block.input_norm(jnp.asarray(x)), norm, atol=1e-5)
    np.testing.assert_allclose(block.mlp(jnp.asarray(x)), mlp, atol=1e-5)
    ours = decoder.rope(
        jnp.asarray(q).transpose(0, 2, 1, 3), jnp.asarray(positions), config.rope_theta
    )
    np.testing.assert_allclose(ours.transpose(0, 2, 1, 3), rotated, atol=1e-5)
    attend = decoder.segment_attend(jnp.ones((2, 11), jnp.int32))
    np.testing.assert_allclose(
        block.attn(jnp.asarray(x), jnp.asarray(positions), attend), attended, atol=1e-5
    )
    assert set(layer) == {"input_norm", "attn", "post_norm", "mlp"}


def test_gradients_equal_torch(tmp_path):
    model = make_torch("qwen2-tied", 3)
    model.save_pretrained(tmp_path)
    config = hf.read_config(tmp_path)
    params = hf.load_params(tmp_path, config, "float32")
    ids = tokens(3, 17)
    model(torch.tensor(ids), labels=torch.tensor(ids)).loss.backward()

    def loss(params):
        table = jax.nn.log_softmax(logits(config, params, ids)[:, :-1], axis=-1)
        return -jnp.take_along_axis(table, jnp.asarray(ids)[:, 1:, None], axis=-1).mean()

    grads = jax.grad(loss)(params)
    theirs = dict(model.named_parameters())
    for path, grad in jax.tree_util.tree_flatten_with_path(grads)[0]:
        name, transposed = hf._hub_name(hf._path(path))
        expected = theirs[name].grad.numpy()
        expected = expected.T if transposed else expected
        assert np.abs(np.asarray(grad) - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_packed_segments_equal_separate_passes():
    config = small()
    params = decoder.init_params(config, jax.random.key(1))
    one, two = tokens(1, 9)[:1], tokens(2, 6)[:1]
    packed = np.concatenate([one, two, np.zeros((1, 4), int)], axis=1)
    segments = np.array([[1] * 9 + [2] * 6 + [0] * 4])
    positions = jnp.asarray([[*range(9), *range(6), *range(4)]])
    together = logits(config, params, packed, segments, positions)
    np.testing.assert_allclose(together[:, :9], logits(config, params, one), atol=1e-5)
    np.testing.assert_allclose(together[:, 9:15], logits(config, params, two), atol=1e-5)
    assert np.isfinite(together).all()


def small(**changes) -> ModelConfig:
    fields = dict(
        model_type="qwen2", vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=2,
        num_heads=6, num_kv_heads=2, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-6,
        tie_word_embeddings=True, qkv_bias=True, max_position_embeddings=512,
    )  # fmt: skip
    return ModelConfig(**{**fields, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 10.0}, {"rms_norm_eps": 0.1}, {"tie_word_embeddings": False},
        {"num_heads": 4}, {"num_kv_heads": 3}, {"head_dim": 16}, {"num_layers": 1},
        {"intermediate_size": 64}, {"qkv_bias": False},
    ],
)  # fmt: skip
def test_every_field_changes_the_logits(change):
    def run(config):
        shapes = decoder.abstract_params(config)
        # Values by path and shape, so that only what the field changes differs.
        leaves = [
            jax.random.normal(jax.random.key(sum(map(ord, hf._path(p)))), leaf.shape) * 0.3
            for p, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
        ]
        params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        return np.asarray(logits(config, params, tokens(0)))

    assert np.abs(run(small()) - run(small(**change))).max() > 1e-3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard", ["20KB", "1GB"])
def test_save_and_load_round_trip(case, shard, tmp_path):
    model = make_torch(case, 7)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    config = hf.read_config(tmp_path / "theirs")
    params = hf.load_params(tmp_path / "theirs", config, "float32")
    hf.save(tmp_path / "ours", config, params)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for (name, left), (_, right) in zip(
        model.state_dict().items(), back.state_dict().items(), strict=True
    ):
        assert torch.equal(left, right), name
    assert hf.read_config(tmp_path / "ours") == config
    again = hf.load_params(tmp_path / "ours", config, "float32")
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))


def test_bfloat16_checkpoints_load(tmp_path):
    make_torch("llama-tied", 1).to(torch.bfloat16).save_pretrained(tmp_path)
    config = hf.read_config(tmp_path)
    params = hf.load_params(tmp_path, config, "bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type = 'mamba': must be one of qwen2, llama"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type = 'yarn'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": "many"}, "not a number"),
        ({"hidden_size": None}, "not a number"),
    ],
)
def test_configs_that_are_refused(change, message, tmp_path):
    make_torch("qwen2-tied", 0).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=message) as error:
        hf.read_config(tmp_path)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_directories_that_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        hf.read_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no config.json"):
        hf.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        hf.read_config(tmp_path)
    make_torch("qwen2-tied", 0).save_pretrained(tmp_path)
    config = hf.read_config(tmp_path)
    wrong = dataclasses.replace(config, num_layers=4, intermediate_size=81, qkv_bias=False)
    with pytest.raises(UserError) as error:
        hf.load_params(tmp_path, wrong, "float32")
    for part in ("missing model.layers.3", "unexpected model.layers.0.self_attn.q_proj.bias",
                 "has shape (80, 48), expected (81, 48)"):  # fmt: skip
        assert part in str(error.value)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="model.safetensors: not a readable"):
        hf.load_params(tmp_path, config, "float32")
    weights.unlink()
    with pytest.raises(UserError, match="model.safetensors: missing"):
        hf.load_params(tmp_path, config, "float32")
