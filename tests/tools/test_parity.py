"""The parity tool reports agreement for correct checkpoints and notices a wrong model."""

import json

import numpy as np
import pytest
from checkpoints import make_torch
from safetensors.numpy import load_file, save_file

from leafe_jax.models import decoder
from leafe_jax.tools import parity


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("qwen3-0.6b", "float32"),
        ("llama3.1-8b", "bfloat16"),
        pytest.param("qwen3-0.6b", "bfloat16", marks=pytest.mark.slow),
        pytest.param("llama3.1-8b", "float32", marks=pytest.mark.slow),
    ],
)
def test_a_good_checkpoint_agrees(case, dtype, tmp_path, capsys):
    make_torch(case).save_pretrained(tmp_path)
    assert parity.main([f"--model={tmp_path}", f"--dtype={dtype}", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["agree"] and 0 < figures["measured"] <= figures["limit"]
    assert figures["same_argmax"] > 0.9 and figures["tokens"] == 160
    assert parity.main([f"--model={tmp_path}", f"--dtype={dtype}"]) == 0
    text = capsys.readouterr().out
    assert "verdict             AGREE" in text and dtype in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_model_disagrees(dtype, tmp_path, capsys, monkeypatch):
    """Rotary frequencies are off by half a percent, too little to notice in generated text."""
    make_torch("llama3.1-8b").save_pretrained(tmp_path)
    table = decoder.rope_table

    def wrong(config):
        frequency, factor = table(config)
        return frequency * np.float32(1.005), factor

    monkeypatch.setattr(decoder, "rope_table", wrong)
    assert parity.main([f"--model={tmp_path}", f"--dtype={dtype}", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["agree"]


def test_what_cannot_be_compared_says_why_in_one_line(tmp_path, capsys):
    assert parity.main([f"--model={tmp_path / 'nowhere'}"]) == 2
    make_torch("qwen2-0.5b").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, file)
    assert parity.main([f"--model={tmp_path}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "no such directory" in lines[0]
    assert "NaN or infinity in model.norm.weight in model.safetensors" in lines[-1]
    (tmp_path / "tokenizer.json").write_text("{")
    assert parity.main([f"--model={tmp_path}"]) == 2
    assert "the tokenizer cannot be read" in capsys.readouterr().err
