"""Hugging Face directories with broken files: each is refused in one line that names the file."""

import dataclasses

import numpy as np
import pytest
from checkpoints import make_torch
from safetensors.numpy import load_file, save_file

from leafe_jax.errors import UserError
from leafe_jax.models import hf


@pytest.fixture
def sharded(tmp_path):
    make_torch("llama3.1-8b").save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    return tmp_path, shards


def refused(directory, message):
    with pytest.raises(UserError) as error:
        hf.load_params(directory, hf.read_config(directory), "float32")
    text = str(error.value)
    assert message in text and "\n" not in text, text
    return text


def test_truncated_and_missing_shards(sharded):
    directory, shards = sharded
    content = shards[1].read_bytes()
    for length in (0, 5, 100, len(content) - 7):
        shards[1].write_bytes(content[:length])
        refused(directory, f"{shards[1]}: not a readable safetensors file")
    shards[1].unlink()
    refused(directory, f"{shards[1]}: missing")


def test_wrong_shapes_and_strange_dtypes_name_their_file(sharded):
    directory, shards = sharded
    tensors = load_file(shards[1])
    name = sorted(tensors)[0]
    whole = tensors[name]
    tensors[name] = whole[:-1]
    save_file(tensors, shards[1])
    text = refused(directory, f"{name} in {shards[1].name} has shape {whole[:-1].shape}, expected")
    assert str(whole.shape) in text
    tensors[name] = whole.astype(np.int32)
    save_file(tensors, shards[1])
    refused(directory, f"{shards[1]}: {name} has dtype I32; must be one of F64, F32, F16, BF16")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value, sharded):
    directory, shards = sharded
    tensors = load_file(shards[2])
    name = sorted(tensors)[-1]
    tensors[name].flat[3] = value
    save_file(tensors, shards[2])
    refused(directory, f"NaN or infinity in {name} in {shards[2].name}")


def test_an_index_that_disagrees_with_the_files(sharded):
    directory, shards = sharded
    index = directory / "model.safetensors.index.json"
    text = index.read_text()
    first, second = sorted(load_file(shards[0]))[0], sorted(load_file(shards[1]))[0]

    doubled = text.replace('"weight_map": {', f'"weight_map": {{"{first}": "{shards[0].name}",')
    index.write_text(doubled)
    refused(directory, f"{index}: {first}: named twice")

    index.write_text(
        text.replace(f'"{first}": "{shards[0].name}"', f'"{first}": "{shards[1].name}"')
    )
    refused(
        directory, f"{index}: says {first} is in {shards[1].name}, but it is in {shards[0].name}"
    )

    index.write_text(text)
    save_file({**load_file(shards[1]), first: load_file(shards[0])[first]}, shards[1])
    refused(directory, f"{shards[1]}: {first} is also in {shards[0].name}")

    kept = load_file(shards[1])
    save_file({k: v for k, v in kept.items() if k not in (first, second)}, shards[1])
    refused(directory, f"{index}: says {second} is in {shards[1].name}, but it is not there")

    index.write_text(text.replace(shards[1].name, "../elsewhere.safetensors"))
    refused(directory, "'../elsewhere.safetensors' must be a file in this directory")
    index.write_text(text[:-10])
    refused(directory, f"{index}: not JSON")


def test_missing_and_unexpected_tensors_come_in_one_error(sharded):
    directory, _ = sharded
    config = hf.read_config(directory)
    wrong = dataclasses.replace(config, num_layers=4, intermediate_size=81, attention_bias=True)
    wrong = dataclasses.replace(wrong, tie_word_embeddings=True)
    with pytest.raises(UserError) as error:
        hf.load_params(directory, wrong, "float32")
    for part in ("missing model.layers.3.mlp", "missing model.layers.0.self_attn.q_proj.bias",
                 "has shape (80, 48), expected (81, 48)", "weights do not fit config.json"):  # fmt: skip
        assert part in str(error.value)
    fewer = dataclasses.replace(config, num_layers=2)
    with pytest.raises(UserError, match=r"unexpected model.layers.2.\S+ in model-0000\d-of"):
        hf.load_params(directory, fewer, "float32")


def test_directories_that_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        hf.read_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no config.json"):
        hf.read_config(tmp_path)
    for text in ("{", "[1]", "\x00"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json: not JSON"):
            hf.read_config(tmp_path)
    make_torch("qwen2-0.5b").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "model.safetensors: missing; only safetensors checkpoints are read")
