"""Hugging Face directories: save, load, round trips, every config layout of the hub, and refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import CASES, logits, make_torch, tokens, torch_logits
from lazily import torch, transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from leafe_jax.errors import UserError
from leafe_jax.models import decoder, hf
from leafe_jax.models.decoder import ModelConfig

QWEN2 = ModelConfig(
    model_type="qwen2", vocab_size=89, hidden_size=36, intermediate_size=53, num_layers=2,
    num_heads=6, num_kv_heads=2, head_dim=6, rope_theta=37.0, rms_norm_eps=1e-2,
    tie_word_embeddings=True, max_position_embeddings=101,
)  # fmt: skip
LLAMA = dataclasses.replace(QWEN2, model_type="llama", head_dim=10)


def random_params(config: ModelConfig, dtype=jnp.float32) -> dict:
    """Every leaf is random, biases and scales too, so that a lost one shows in the logits."""
    leaves, structure = jax.tree.flatten(decoder.abstract_params(config))
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(size=x.shape) * 0.3, dtype) for x in leaves]
    return jax.tree.unflatten(structure, drawn)


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
    """A copy of the exported model, which a test may change."""
    target = tmp_path / "model"
    target.mkdir()
    for file in exported.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# -- saving ----------------------------------------------------------------------------------------
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


def test_whoever_may_read_the_directory_may_read_the_weights(tmp_path):
    path = tmp_path / "model.safetensors"
    for mode, expected in ((0o755, 0o644), (0o700, 0o600), (0o770, 0o660)):
        tmp_path.chmod(mode)
        hf.write_tensors({"a": np.zeros(3, np.float32)}, path)
        assert path.stat().st_mode & 0o777 == expected


def test_tokenizer_and_eos_are_written(tmp_path):
    fast = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "go": 2}, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<end>", pad_token="<pad>"
    )
    hf.save(tmp_path / "model", LLAMA, random_params(LLAMA), tokenizer=tokenizer)
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


# -- loading ---------------------------------------------------------------------------------------
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
        (
            {"rope_scaling": {"type": "longrope"}},
            "rope_type = 'longrope' is not supported; it must be",
        ),
        ({"rope_parameters": {"rope_type": "llama3"}}, "field 'factor' is missing"),
        (
            {
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                }
            },
            "high_freq_factor = 4.0: must be above 4.0",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "factor = 0.5: must be at least 1"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1 is not supported; it must be 0"),
        (
            {"use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 2},
            "sliding_window = 4096 is not supported; it must be disabled",
        ),
        ({"rope_parameters": [1]}, r"rope_parameters = \[1\] is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "one flat object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window = "),
        ({"quantization_config": {"bits": 4}}, "quantization_config = 'set' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; it must be silu"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0: must be a whole number above zero"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1: must be a whole number above zero"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers = 2.5: must be a whole number"),
        ({"hidden_size": True}, "hidden_size = True: not a number"),
        ({"hidden_size": None}, "hidden_size = None: not a number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan: must be a number above zero"),
        ({"model_type": "qwen3", "num_key_value_heads": ...}, "'num_key_value_heads' is missing"),
        ({"model_type": "mamba"}, "model_type = 'mamba': must be one of qwen2, qwen3, llama"),
        ({"num_key_value_heads": 4}, "num_key_value_heads = 4: must divide num_attention"),
        ({"head_dim": 7}, "head_dim = 7: must be even"),
        ({"vocab_size": "many"}, "vocab_size = 'many': not a number"),
        ({"vocab_size": ...}, "field 'vocab_size' is missing"),
        ({"max_position_embeddings": ...}, "field 'max_position_embeddings' is missing"),
    ],
)
def test_configs_that_change_the_computation_are_refused(changes, message, copy):
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
    with pytest.raises(UserError, match="weight_map: must name a file"):
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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard", ["20KB", "1GB"])
def test_round_trip_through_transformers_keeps_every_bit(case, shard, tmp_path):
    """transformers -> here -> transformers -> here: tensors and logits bit-identical."""
    model = make_torch(case, 7)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    config = hf.read_config(tmp_path / "theirs")
    params = hf.load_params(tmp_path / "theirs", config, "float32")
    limit = 20_000 if shard == "20KB" else hf.MAX_SHARD_BYTES
    hf.save(tmp_path / "ours", config, params, max_shard_bytes=limit)
    assert (tmp_path / "ours" / "model.safetensors.index.json").is_file() == (shard == "20KB")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for (name, left), (_, right) in zip(
        model.state_dict().items(), back.state_dict().items(), strict=True
    ):
        assert torch.equal(left, right), name
    ids = tokens(1)
    np.testing.assert_array_equal(torch_logits(model, ids), torch_logits(back.eval(), ids))
    back.save_pretrained(tmp_path / "again", max_shard_size=shard)
    assert hf.read_config(tmp_path / "again") == config
    again = hf.load_params(tmp_path / "again", config, "float32")
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    np.testing.assert_array_equal(logits(config, params, ids), logits(config, again, ids))


def test_everything_of_the_source_but_its_weights_is_copied(tmp_path):
    source = tmp_path / "source"
    make_torch("llama3.1-8b").save_pretrained(source, max_shard_size="20KB")
    files = {
        "tokenizer.json": "{}", "tokenizer_config.json": "{}", "chat_template.jinja": "{{ x }}",
        "generation_config.json": '{"eos_token_id": [1, 2]}', "LICENSE": "words",
        "pytorch_model.bin": "pickle",
    }  # fmt: skip
    for name, text in files.items():
        (source / name).write_text(text)
    edit(source, torch_dtype="bfloat16", dtype=..., use_cache=False)
    config = hf.read_config(source)
    params = hf.load_params(source, config, "float32")
    (tmp_path / "mine.jinja").write_text("{{ mine }}")
    hf.save(tmp_path / "a", config, params, source=source)
    hf.save(tmp_path / "b", config, params, source=source, chat_template=tmp_path / "mine.jinja")
    out = tmp_path / "a"
    assert not (out / "pytorch_model.bin").exists() and not list(out.glob("*.index.json"))
    for name in set(files) - {"pytorch_model.bin"}:
        assert (out / name).read_text() == files[name]
    expected = {**json.loads((source / "config.json").read_text()), "torch_dtype": "float32"}
    assert json.loads((out / "config.json").read_text()) == expected
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == "{{ mine }}"


# Layouts that hub repositories have had over the years: the edits give the same model.
OLD = {
    "llama3.1-8b": {
        "rope_parameters": ..., "rope_theta": 5e5, "torch_dtype": "float32", "dtype": ...,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_type": "llama3",
        },
        "pretraining_tp": 1, "head_dim": ...,
    },
    "qwen2-yarn": {
        "rope_parameters": ..., "rope_theta": 1e6, "layer_types": ..., "use_sliding_window": False,
        "sliding_window": 131072, "max_window_layers": 3, "attention_dropout": 0.0,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 128, "type": "yarn"},
    },
    "qwen2-0.5b": {
        "rope_parameters": ..., "rope_theta": 1e6, "layer_types": ..., "use_sliding_window": False,
        "sliding_window": 32768, "max_window_layers": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", OLD)
def test_older_layouts_of_config_json(case, tmp_path):
    model = make_torch(case)
    model.save_pretrained(tmp_path)
    before = hf.read_config(tmp_path)
    edit(tmp_path, **OLD[case])
    assert hf.read_config(tmp_path) == before
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokens(2)
    np.testing.assert_array_equal(torch_logits(theirs, ids), torch_logits(model, ids))


def test_yarn_reaches_beyond_the_context_of_pretraining(tmp_path):
    """Qwen2.5's recipe leaves max_position_embeddings at 32,768; the context is `factor` times that."""
    make_torch("qwen2-yarn").save_pretrained(tmp_path)
    assert hf.read_config(tmp_path).max_position_embeddings == 4 * 128
    edit(tmp_path, max_position_embeddings=128)
    assert hf.read_config(tmp_path).max_position_embeddings == 4 * 128


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_dtype_of_the_hub(dtype, tmp_path):
    model = make_torch("qwen3-0.6b").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    config = hf.read_config(tmp_path)
    loaded = hf.load_params(tmp_path, config, "float32")
    theirs = model.state_dict()["model.layers.1.mlp.up_proj.weight"].float().numpy()
    np.testing.assert_array_equal(loaded["layers"]["1"]["mlp"]["up_proj"]["kernel"].T, theirs)
