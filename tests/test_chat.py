"""Text and token ids: nothing is tokenised twice, for templates of the Qwen and Llama 3 kind."""

import json
from pathlib import Path

import jax
import pytest

from envs.household import Household
from leafe_jax.chat import ChatFormat, load_tokenizer
from leafe_jax.errors import UserError
from leafe_jax.main import main
from leafe_jax.models import decoder, hf
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.policy import LMPolicy, Request

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = {
    # Our own words, same structure: a default system turn, and text trimmed by the template.
    "qwen": (
        "<|im_end|>",
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
    "llama": (
        "<|eot_id|>",
        "<|begin|>{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}",
    ),
}


def make_tokenizer(kind: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    eos, template = TEMPLATES[kind]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [
        "<|im_start|>",
        "<|im_end|>",
        "<|begin|>",
        "<|start|>",
        "<|end|>",
        "<|eot_id|>",
        "<pad>",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    env = Household()
    texts = [env.reset(t.task_id)[1] for t in env.tasks("train")[:40]]
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token="<pad>")
    tokenizer.chat_template = template
    return tokenizer


def make_checkpoint(directory, kind: str) -> ModelConfig:
    tokenizer = make_tokenizer(kind)
    config = ModelConfig(
        model_type="llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48,
        num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-6,
        tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    hf.save(directory, config, decoder.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    return config


@pytest.mark.parametrize("kind", TEMPLATES)
def test_ten_turns_are_what_was_sampled_and_what_was_said(kind, tmp_path):
    config = make_checkpoint(tmp_path / "model", kind)
    chat = ChatFormat(load_tokenizer(str(tmp_path / "model"), config.vocab_size))
    engine = Engine(
        config, hf.load_params(tmp_path / "model", config, "float32"), num_slots=2, max_len=1024,
        turn_chunk=32, prefill_chunk=64, max_new_tokens=6, stop_ids=chat.stop_ids,
    )  # fmt: skip
    policy = LMPolicy(engine, chat)
    eos = chat.tokenizer.eos_token
    session, expected, messages = policy.start(), [], []
    last_id = None
    for turn in range(10):
        text = f"[{turn + 1}] You arrive at drawer {turn}. Ünïcode is text too."
        done = policy.extend([Request(session, text, text + "?", 6, 1.0, turn)])[0]
        expected += [*done.prompt_ids, *done.ids]
        assert session.ids == expected
        assert done.plain_prompt_ids != done.prompt_ids
        # An unfinished reply is closed by the next prompt, never inside the trained ids.
        assert chat.eos_id not in done.ids[:-1]
        # What was appended is what the template puts after the last reply, its EOS left out where
        # the model has said it already.
        messages.append({"role": "user", "content": text})
        rendered = chat.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        after = rendered.rpartition("REPLY")[2]
        said = chat.tokenizer.decode(done.prompt_ids)
        assert said == (after.removeprefix(eos) if last_id == chat.eos_id else after)
        messages.append({"role": "assistant", "content": "REPLY"})
        last_id = done.ids[-1]


def test_tokenizers_that_are_refused(tmp_path):
    config = make_checkpoint(tmp_path / "model", "qwen")
    with pytest.raises(UserError, match=r"tokenizer has id 39\d, but the model's vocab_size is 50"):
        load_tokenizer(str(tmp_path / "model"), 50)
    tokenizer = load_tokenizer(str(tmp_path / "model"), config.vocab_size)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="drops messages"):
        ChatFormat(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ChatFormat(tokenizer)
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        load_tokenizer(str(tmp_path / "model"), config.vocab_size)
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="no tokenizer there"):
        load_tokenizer(str(tmp_path / "model"), config.vocab_size)


@pytest.mark.parametrize("name", ["household_instruct", "sokoban"])
def test_the_instruct_configs_run_on_a_checkpoint(name, tmp_path, monkeypatch):
    """Dialogue and window mode with a hub-style checkpoint, at smoke size."""
    import sys

    make_checkpoint(tmp_path / "model", "qwen")
    arguments = [
        "main", f"--config={ROOT}/configs/{name}.py:smoke", f"--workdir={tmp_path / 'run'}",
        f"--config.model.path={tmp_path / 'model'}", "--config.phases=('explore','evaluate','report')",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    assert main(arguments) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["explore"]["budget"]["env_steps"] > 0
    assert results["methods"]["base"]["families"]["all"]["samples"] == 2
    lines = (tmp_path / "run" / "explore" / "trees" / "0000.jsonl").read_text().splitlines()
    trees = [json.loads(line) for line in lines]
    mode = "window" if name == "sokoban" else "dialogue"
    assert {t["mode"] for t in trees} == {mode}
    turns = [t for tree in trees for node in tree["nodes"] for t in node["turns"]]
    assert turns and all(t["action_ids"] and t["prompt_ids"] for t in turns)
