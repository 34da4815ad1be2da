"""The phase `bootstrap` in small: a corpus, a tokenizer and a model that others can open."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import envs
from envs.prompts import Prompts, PromptsConfig
from leafe_jax.agent.chat import load_chat
from leafe_jax.bootstrap import make
from leafe_jax.bootstrap.config import BootstrapConfig
from leafe_jax.errors import UserError
from leafe_jax.models import hf
from leafe_jax.run.presets import load_config
from leafe_jax.run.weights import BASE_MODEL
from leafe_jax.runtime.settings import build
from leafe_jax.training.records import ExampleFile


def test_a_small_base_model(tmp_path):
    config = load_config("bootstrap", "household").bootstrap
    config.update(num_conversations=40, min_count=2)
    config.model.update(hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, head_dim=8)
    config.train.update(num_epochs=1, batch_size=2, seq_len=512)
    settings = build(BootstrapConfig, config.to_dict(), "bootstrap")
    losses, began = [], []

    def log(step, measurements):
        losses.append(float(measurements["loss"]))

    make.run(settings, 0, 512, None, tmp_path, lambda: began.append(1), log, lambda *_: None)
    assert began and losses and np.isfinite(losses).all()
    made = tmp_path / "model"
    model_config = hf.read_config(str(made))
    tensors = load_file(made / "model.safetensors")
    assert {str(x.dtype) for x in tensors.values()} == {"bfloat16"}
    declared = json.loads((made / "config.json").read_text())
    assert "bfloat16" in (declared.get("dtype"), declared.get("torch_dtype"))
    # Its tokenizer spells what the players say.
    chat = load_chat(str(made), model_config.vocab_size)
    first = json.loads((tmp_path / "corpus.jsonl").read_text().splitlines()[0])["turns"]
    text = first[0]["text"]
    assert (
        chat.tokenizer.decode(chat.tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    )
    # The sampler computes in the dtype that it is asked for, whatever is stored.
    params = hf.load_params(str(made), model_config, "float32")
    assert params["embed"]["embedding"].dtype == np.float32


@pytest.mark.slow
def test_a_warm_start_trains_on_what_the_run_will_ask(tmp_path):
    """A given model, its own tokenizer, and the prompts of the run with their system message."""
    config = load_config("smollm2", "smoke")
    config.bootstrap.num_conversations = 3
    settings = build(BootstrapConfig, config.bootstrap.to_dict(), "bootstrap")
    start = make.Checkpoint(BASE_MODEL, "", True)
    make.run(settings, 0, 1024, start, tmp_path, lambda: None, lambda *_: None, lambda *_: None)
    made, began = (
        hf.load_params(p, hf.read_config(p), "float32") for p in (tmp_path / "model", BASE_MODEL)
    )
    moved = np.abs(made["embed"]["embedding"] - began["embed"]["embedding"])
    assert 0 < moved.max() < 0.1
    tokenizer = (tmp_path / "model" / "tokenizer.json").read_bytes()
    assert tokenizer == (BASE_MODEL / "tokenizer.json").read_bytes()
    # The ids are those of the run's own chat format, and the system message comes first.
    env = envs.make("household")
    system = Prompts(env, PromptsConfig(style="chat")).system
    assert env.description in system and "Experience:" in system
    chat = load_chat(str(BASE_MODEL), hf.read_config(BASE_MODEL).vocab_size, system=system)
    examples = ExampleFile(tmp_path / "examples.array_record")
    lines = (tmp_path / "corpus.jsonl").read_text().splitlines()
    assert len(examples) == len(lines) == 3
    for number, line in enumerate(lines):
        first = chat.first_turn(json.loads(line)["turns"][0]["text"])
        assert examples[number].ids[: len(first)].tolist() == list(first)


def test_adapters_are_refused_in_the_warm_start():
    config = load_config("smollm2")
    config.bootstrap.train.lora.rank = 4
    with pytest.raises(UserError, match=r"bootstrap\.train\.lora\.rank = 4: must be 0"):
        build(BootstrapConfig, config.bootstrap.to_dict(), "bootstrap")
