"""The phase `bootstrap` in small: a corpus, a tokenizer and a model that others can open."""

import json

import numpy as np
from safetensors.numpy import load_file

from leafe_jax.agent.chat import load_chat
from leafe_jax.bootstrap import make
from leafe_jax.bootstrap.config import BootstrapConfig
from leafe_jax.models import hf
from leafe_jax.run.presets import load_config
from leafe_jax.runtime.settings import build


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
