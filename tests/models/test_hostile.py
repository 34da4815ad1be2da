"""Hostile model directories are refused quickly, in one line, and none of their code runs."""

import builtins
import json
import os
import resource
import socket

import numpy as np
import pytest

from leafe_jax.agent.chat import load_chat
from leafe_jax.errors import UserError
from leafe_jax.models import hf

CONFIG = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|a|>{{ m.content }}<|b|>{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)


def write_tokenizer(directory, template=TEMPLATE):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<|a|>", "<|b|>")])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|b|>")
    made.chat_template = template
    made.save_pretrained(directory)


def write_model(directory, **changes):
    config = {**CONFIG, **changes}
    (directory / "config.json").write_text(json.dumps(config))
    names = {
        "model.embed_tokens.weight": (300, 8), "model.norm.weight": (8,),
        **{f"model.layers.0.self_attn.{n}_proj.weight": (8, 8) for n in "qkvo"},
        **{f"model.layers.0.mlp.{n}_proj.weight": (8, 8) for n in ("gate", "up", "down")},
        **{f"model.layers.0.{n}_layernorm.weight": (8,) for n in ("input", "post_attention")},
    }  # fmt: skip
    tensors = {name: np.ones(shape, np.float32) for name, shape in names.items()}
    hf.write_tensors(tensors, directory / "model.safetensors")


def load(directory):
    return hf.load_params(directory, hf.read_config(directory), "float32")


def refused(call, message):
    """`call` fails in one line and little CPU time, child processes included."""

    def spent():
        both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, both))

    begin = spent()
    with pytest.raises(UserError, match=message) as error:
        call()
    assert spent() - begin < 4 and "\n" not in str(error.value) and len(str(error.value)) < 1500


CONFIGS = [
    (dict(num_hidden_layers=10**5), "num_hidden_layers = 100000: must be at most 1024"),
    (dict(num_hidden_layers=1000), "num_hidden_layers = 1000, but the weights have 1 layers"),
    (dict(num_hidden_layers="1"), "num_hidden_layers = '1': not a number"),
    (dict(hidden_size=2**40), "hidden_size = 1099511627776: must be at most"),
    (dict(hidden_size=2**17, head_dim=8), "weights do not fit config.json"),
    (dict(vocab_size=10**12), "vocab_size = 1000000000000: must be at most"),
    (dict(max_position_embeddings=2**40), "max_position_embeddings = .* must be at most"),
    (dict(rope_theta=10**400), "rope_theta = .* must be a"),
    (dict(layer_types=[["full_attention"]]), "layer_types = .*: must be a list of names"),
    (dict(layer_types=7), "layer_types = 7: must be a list of names"),
    (dict(layer_types="full_attention"), "layer_types = 'full_attention': must be a list"),
    (dict(layer_types=["full_attention"] * 9), "layer_types has 9 names: must be one for each"),
    (dict(layer_types=["full_attention", 1]), "layer_types = .*: must be a list of names"),
    (dict(use_sliding_window=True, max_window_layers="1"), "max_window_layers = '1'"),
    (dict(tie_word_embeddings="false"), "tie_word_embeddings = 'false': must be true or false"),
    (dict(attention_bias="no"), "attention_bias = 'no': must be true or false"),
    (dict(model_type=["llama"] * 999), "model_type = .*: must be one of"),
    (dict(quantization_config={"bits": 4}), "quantization_config"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS)
def test_config_json_with_impossible_sizes_and_types(changes, message, tmp_path):
    write_model(tmp_path, **changes)
    refused(lambda: load(tmp_path), message)


def test_files_that_are_not_json(tmp_path):
    write_model(tmp_path)
    load(tmp_path)
    file = tmp_path / "config.json"
    for text, message in (
        ("[" * 10**6, "config.json: not JSON: nested too deeply"),
        ('{"a":' * 10**5 + "1" + "}" * 10**5, "config.json: not JSON: nested too deeply"),
        ('{"vocab_size": 1, "vocab_size": 2}', "config.json: vocab_size: named twice"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "config.json: not JSON"),
    ):
        file.write_text(text)
        refused(lambda: load(tmp_path), message)
    file.write_bytes(b"\xff\xfe{}")
    refused(lambda: load(tmp_path), "config.json: not UTF-8")
    file.unlink()
    os.mkfifo(file)
    refused(lambda: load(tmp_path), "config.json: not a regular file")
    file.unlink()
    file.symlink_to("/dev/zero")
    refused(lambda: load(tmp_path), "config.json: not a regular file")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "vocab.json"])
def test_a_pipe_in_the_directory_is_not_waited_for(name, tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    refused(lambda: load_chat(str(tmp_path), 300), f"{name}: not a regular file")


def test_files_next_to_the_template_are_bounded_too(tmp_path):
    write_tokenizer(tmp_path)
    load_chat(str(tmp_path), 300)  # the imports take longer than the rest of the test
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    os.mkfifo(folder / "rag.jinja")
    refused(lambda: load_chat(str(tmp_path), 300), "rag.jinja: not a regular file")
    write_model(tmp_path)
    refused(lambda: load(tmp_path), "rag.jinja: not a regular file")
    (folder / "rag.jinja").unlink()
    (tmp_path / "chat_template.jinja").write_text("x" * 10**7 + TEMPLATE)
    message = "the chat template has 10000.* characters: must be at most 1048576"
    refused(lambda: load_chat(str(tmp_path), 300), message)


def test_a_header_of_gigabytes(tmp_path):
    write_model(tmp_path)
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.write((2**33).to_bytes(8, "little"))
        opened.truncate(2**33 + 100)  # sparse: it takes no room
    refused(lambda: load(tmp_path), "model.safetensors: .*header of 8589934592 bytes")


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{{ '%09999999999d' % 1 }}",
        "{{ 'x' | center(10 ** 10) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "(" * 5000 + "{{" + "(" * 5000,
        "{{ raise_exception('a\\nb') }}",
    ],
)
def test_templates_that_never_end_or_grow(template, tmp_path):
    write_tokenizer(tmp_path)
    load_chat(str(tmp_path), 300)  # the imports take longer than the rest of the test
    write_tokenizer(tmp_path, template + TEMPLATE)
    refused(lambda: load_chat(str(tmp_path), 300), "the chat template ")


def test_no_code_of_a_directory_runs_and_no_hub_is_asked(tmp_path, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("asked or connected")

    monkeypatch.setattr(builtins, "input", never)
    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    mark = tmp_path / "ran"
    for place in ("own", "somebody/else--own"):
        write_tokenizer(tmp_path)
        (tmp_path / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
        file = tmp_path / "tokenizer_config.json"
        settings = json.loads(file.read_text()) | {
            "tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [f"{place}.Own", None]},
        }  # fmt: skip
        file.write_text(json.dumps(settings))
        refused(
            lambda: load_chat(str(tmp_path), 300), "the tokenizer cannot be read: .*custom code"
        )
        assert not mark.exists()


def test_what_an_export_leaves_out(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_model(source, auto_map={"AutoModel": "own.Own"})
    for name in ("own.py", "adapter_config.json", "x.pkl", "README.md"):
        (source / name).write_text("{}")
    params = load(source)
    hf.save(tmp_path / "out", hf.read_config(source), params, source=source)
    found = {p.name for p in (tmp_path / "out").iterdir()}
    assert found == {"config.json", "model.safetensors", "README.md"}
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_two_checkpoints_in_one_directory(tmp_path):
    write_model(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    refused(lambda: load(tmp_path), "contains two checkpoints")
    index.unlink()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    refused(lambda: load(tmp_path), "contains an adapter")
