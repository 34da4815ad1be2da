"""Hugging Face directories: what transformers makes of our exports, and what we refuse to read.

Models come from `init_params`, so most of these cost no torch model; parity of the mathematics and the
round trip of transformers' own files are in test_decoder.py.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from leafe_jax.errors import UserError
from leafe_jax.models import decoder, hf
from leafe_jax.models.decoder import ModelConfig

jax.config.update("jax_default_matmul_precision", "float32")

QWEN2 = ModelConfig(
    model_type="qwen2", vocab_size=89, hidden_size=36, intermediate_size=53, num_layers=2,
    num_heads=6, num_kv_heads=2, head_dim=6, rope_theta=37.0, rms_norm_eps=1e-2,
    tie_word_embeddings=True, qkv_bias=True, max_position_embeddings=101,
)  # fmt: skip
LLAMA = dataclasses.replace(QWEN2, model_type="llama", qkv_bias=False, head_dim=10)


def random_params(config: ModelConfig, dtype=jnp.float32) -> dict:
    """Every leaf random, biases and scales too, so that nothing lost on the way stays unseen."""
    leaves, structure = jax.tree.flatten(decoder.abstract_params(config))
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(size=x.shape) * 0.3, dtype) for x in leaves]
    return jax.tree.unflatten(structure, drawn)


def logits(config: ModelConfig, params, ids: np.ndarray) -> np.ndarray:
    ids = jnp.asarray(ids)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    attend = decoder.segment_attend(jnp.ones_like(ids))
    states = decoder.hidden(config, params, ids, positions, attend)
    return np.asarray(decoder.head(config, params, states))


def edit(directory, **changes):
    """Changes config.json; a value of ... removes the field."""
    file = directory / "config.json"
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))
    return file


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hf") / "model"
    hf.save(directory, LLAMA, random_params(LLAMA))
    return directory


@pytest.fixture
def copy(exported, tmp_path):
    """The exported model, to be changed."""
    target = tmp_path / "model"
    target.mkdir()
    for file in exported.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# -- out -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [QWEN2, LLAMA], ids=["qwen2", "llama"])
def test_transformers_computes_our_logits(config, tied, tmp_path):
    # theta and eps are far from any default: logits equal only if the export carries them.
    config = dataclasses.replace(config, tie_word_embeddings=tied)
    params = random_params(config)
    hf.save(tmp_path / "model", config, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = np.random.default_rng(1).integers(0, 89, (2, 23))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits(config, params, ids), expected, atol=1e-4, rtol=0)
    assert theirs.config.architectures == [type(theirs).__name__]
    assert theirs.config.max_position_embeddings == config.max_position_embeddings


def test_bfloat16_stays_bfloat16(tmp_path):
    params = random_params(LLAMA, jnp.bfloat16)
    hf.save(tmp_path / "model", LLAMA, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert theirs.dtype == torch.bfloat16
    again = hf.load_params(tmp_path / "model", LLAMA, "bfloat16")
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    wide = hf.load_params(tmp_path / "model", LLAMA, "float32")
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a.astype("f4"), b), params, wide))


def test_tokenizer_and_eos_are_written(tmp_path):
    fast = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "go": 2}, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<end>", pad_token="<pad>"
    )
    hf.save(tmp_path / "model", LLAMA, random_params(LLAMA), tokenizer)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "model")
    assert (generation.eos_token_id, generation.pad_token_id) == (1, 0)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert back("go go")["input_ids"] == [2, 2] and back.eos_token == "<end>"


def test_a_failed_save_leaves_the_old_model(exported, copy, monkeypatch):
    def disk_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hf, "save_file", disk_full)
        with pytest.raises(OSError):
            hf.save(copy, LLAMA, random_params(LLAMA))
    before = (exported / "model.safetensors").read_bytes()
    assert (copy / "model.safetensors").read_bytes() == before
    (copy / "stale.txt").write_text("of the old model")
    hf.save(copy, LLAMA, random_params(LLAMA))
    assert [p.name for p in copy.parent.iterdir()] == ["model"]
    assert sorted(p.name for p in copy.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip


# -- in --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": ..., "rope_theta": 9.0},
        {"rope_parameters": ..., "rope_theta": ...},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": ...},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 9.0},
        {"rope_parameters": ..., "rope_scaling": {"rope_type": "default", "rope_theta": 7.0}},
        {"rope_parameters": ..., "rope_scaling": None, "rope_theta": 9.0},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 5.0}},
        {"rope_scaling": {"rope_type": "default"}, "rope_theta": 9.0},
    ],
)
def test_rope_theta_is_the_one_transformers_reads(changes, copy):
    edit(copy, **changes)
    theirs = transformers.AutoConfig.from_pretrained(copy)
    assert hf.read_config(copy).rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear' is not"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type = 'llama3' is not"),
        ({"rope_parameters": [1]}, r"rope_parameters = \[1\] is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "one flat object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = "),
        ({"mlp_bias": True}, "mlp_bias = True is not supported; it must be false"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0: must be above zero"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1: must be above zero"),
        ({"num_key_value_heads": 4}, "num_key_value_heads = 4: must divide num_attention"),
        ({"head_dim": 7}, "head_dim = 7: must be even"),
        ({"vocab_size": "many"}, "vocab_size = 'many': not a number"),
        ({"vocab_size": ...}, "field 'vocab_size' is missing"),
        ({"max_position_embeddings": ...}, "field 'max_position_embeddings' is missing"),
    ],
)
def test_configs_that_change_the_mathematics_are_refused(changes, message, copy):
    file = edit(copy, **changes)
    with pytest.raises(UserError, match=message) as error:
        hf.read_config(copy)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_head_beside_a_tied_embedding(copy):
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, file, metadata={"format": "pt"})
    loaded = hf.load_params(copy, LLAMA, "float32")
    assert "lm_head" not in loaded
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    # transformers would use the head of the file: loading it tied would give other logits.
    with pytest.raises(UserError, match="lm_head.weight differs from model.embed_tokens.weight"):
        hf.load_params(copy, LLAMA, "float32")


def test_shards_equal_one_file_and_missing_ones_are_named(exported, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    assert len(shards) > 1
    one, many = (hf.load_params(p, LLAMA, "float32") for p in (exported, tmp_path))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, many))
    (tmp_path / shards[1]).unlink()
    with pytest.raises(UserError, match=f"{shards[1]}: missing"):
        hf.load_params(tmp_path, LLAMA, "float32")
    index.write_text('{"weight_map": 3}')
    with pytest.raises(UserError, match="not an index"):
        hf.load_params(tmp_path, LLAMA, "float32")


def test_each_leaf_lands_on_its_sharding(exported):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    place = jax.sharding.NamedSharding(mesh, spec)
    shardings = jax.tree.map(lambda _: place, decoder.abstract_params(LLAMA))
    placed = hf.load_params(exported, LLAMA, "float32", shardings)
    assert {x.sharding for x in jax.tree.leaves(placed)} == {place}
    plain = hf.load_params(exported, LLAMA, "float32")
    assert jax.tree.all(jax.tree.map(np.array_equal, placed, plain))
