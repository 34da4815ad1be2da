"""Text and token ids: nothing is tokenised twice, for the templates of Qwen and Llama 3."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import pytest

from envs.household.environment import Household
from leafe_jax.agent.chat import ChatFormat, load_chat
from leafe_jax.agent.policy import Request
from leafe_jax.agent.tokenizer import SentencePieceTokenizer, load_tokenizer
from leafe_jax.errors import UserError
from leafe_jax.main import main
from leafe_jax.models import decoder, hf
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.lm_policy import LMPolicy
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.types import Sampling

ROOT = Path(__file__).resolve().parents[2]
_IM_TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
# Our own words with the structure of the originals: (end of a turn, other stop, template).
TEMPLATES = {
    # A system turn of its own.
    "qwen2.5": (
        "<|im_end|>",
        "<|endoftext|>",
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
        "{% for m in messages %}" + _IM_TURN + "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
    # The thinking of every reply before the last user turn is dropped; an empty one when it is off.
    "qwen3": (
        "<|im_end|>",
        "<|endoftext|>",
        "{% set ns = namespace(last=0) %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
        "{% endfor %}{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{% set said = m['content'].split('</think>')[-1].lstrip('\n') %}<|im_start|>assistant\n"
        "{% if loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}{{ said }}<|im_end|>\n"
        "{% else %}" + _IM_TURN + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
        "{% endif %}",
    ),
    # A begin token, the date in the system turn, and messages trimmed.
    "llama3.2": (
        "<|eot_id|>",
        "<|eom_id|>",
        "{{ bos_token }}{% if not date_string is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n<|eot_id|>"
        "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ),
    # No special tokens within a turn, spaces around the words, an end but no newline.
    "sentencepiece": (
        "</s>",
        None,
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
    ),
}


def corpus() -> list[str]:
    env = Household()
    return [env.reset(t.task_id)[1] for t in env.list_tasks("train")[:40]]


def write_sentencepiece(directory: Path, template: str) -> int:
    """A bare tokenizer.model, with the template beside it."""
    import sentencepiece

    directory.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*corpus(), "[INST] Ünïcode [/INST]?"] * 2),
        model_prefix=str(directory / "tokenizer"), vocab_size=400, hard_vocab_limit=False,
        model_type="bpe", character_coverage=1.0, byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    (directory / "tokenizer.vocab").unlink()
    (directory / "chat_template.jinja").write_text(template)
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    return model.vocab_size()


def make_tokenizer(kind: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    end, _, template = TEMPLATES[kind]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [
        "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|start_header_id|>",
        "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<pad>",
    ]  # fmt: skip
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token="<pad>", bos_token="<|begin_of_text|>"
    )
    tokenizer.chat_template = template
    return tokenizer


def make_checkpoint(directory: Path, kind: str) -> ModelConfig:
    """A random model with a tokenizer and a template of that kind, as from the hub."""
    if kind == "sentencepiece":
        source = directory.with_name("source")
        size, tokenizer = write_sentencepiece(source, TEMPLATES[kind][2]), None
    else:
        tokenizer = make_tokenizer(kind)
        size = len(tokenizer)
    config = ModelConfig(
        model_type="llama", vocab_size=size, hidden_size=32, intermediate_size=48,
        num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-6,
        tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    params = decoder.init_params(config, jax.random.key(0))
    hf.save(directory, config, params, tokenizer=tokenizer)
    if tokenizer is None:
        for file in source.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
    else:
        names = [name for name in TEMPLATES[kind][:2] if name]
        stops = {"eos_token_id": tokenizer.convert_tokens_to_ids(names)}
        (directory / "generation_config.json").write_text(json.dumps(stops))
    return config


def rendered_by_transformers(tokenizer, messages: list[dict], **variables) -> str:
    """The conversation as text, up to where a reply begins; `variables` are the template's."""
    arguments = dict(add_generation_prompt=True, date_string="26 Jul 2024", **variables)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
    from transformers.utils.chat_template_utils import render_jinja_template

    ((text,), _) = render_jinja_template(
        conversations=[messages], chat_template=tokenizer.chat_template,
        **tokenizer.special_tokens_map, **arguments,
    )  # fmt: skip
    return text


def open_policy(directory: Path, config: ModelConfig, **options) -> LMPolicy:
    chat = load_chat(str(directory), config.vocab_size, **options)
    sizes = EngineConfig(
        num_slots=2, max_len=1024, turn_chunk=32, prefill_chunk=64, max_new_tokens=6,
        stop_ids=chat.stop_ids,
    )  # fmt: skip
    engine = Engine(config, hf.load_params(directory, config, "float32"), sizes)
    return LMPolicy(engine, chat)


def ask(policy: LMPolicy, request: Request):
    """One request on its own."""
    ticket = policy.submit(request)
    ((answered, completion),) = policy.collect()
    assert answered == ticket and policy.collect() == []
    return completion


def test_stop_strings_end_a_reply_where_they_are_complete(tmp_path):
    config = make_checkpoint(tmp_path / "model", "qwen2.5")
    policy = open_policy(tmp_path / "model", config)
    whole = ask(policy, Request(policy.start(), "hello", None, 6, Sampling(1.0), 4))
    assert len(whole.ids) == 6
    pieces = [policy.chat.decode(whole.ids[:n]) for n in range(7)]
    cut = next(
        n for n in range(2, 6) if pieces[n] != pieces[n - 1] and pieces[n][-2:] not in pieces[n - 1]
    )
    sampling = Sampling(1.0, stop_strings=("never said", pieces[cut][-2:]))
    session = policy.start()
    done = ask(policy, Request(session, "hello", None, 6, sampling, 4))
    assert (done.ids, done.finish_reason) == (whole.ids[:cut], "stop")
    assert done.text == pieces[cut] and session.ids == [*done.prompt_ids, *done.ids]
    for bad in (("",), ("a", 3), "text", [b"x"]):
        with pytest.raises(UserError, match="sampler.stop_strings"):
            Sampling(stop_strings=bad)


def check_sampled_turns(policy: LMPolicy, end: str, count: int, **variables) -> list[bool]:
    """Samples a dialogue of `count` turns and checks every id of it: what the engine gets, what the session
    holds, and that each prompt is what the template writes there.

    Args:
      policy: the model.
      end: the text of the token that ends a reply.
      count: user turns.
      variables: what the template sees beside the messages.

    Returns:
      for each reply, whether the model has ended it itself.
    """
    chat, fed = policy.chat, []
    submit, collect = policy.engine.submit, policy.engine.collect

    def spy_prompt(request):
        fed.extend(request.new_ids)
        return submit(request)

    def spy_reply():
        results = collect()
        fed.extend(token for _, result in results for token in result.ids)
        return results

    policy.engine.submit, policy.engine.collect = spy_prompt, spy_reply
    session, expected, messages = policy.start(), [], []
    last_id, ended = None, []
    for turn in range(count):
        text = f"[{turn + 1}] You arrive at drawer {turn}. Ünïcode is text too."
        done = ask(policy, Request(session, text, text + "?", 6, Sampling(), turn))
        expected += [*done.prompt_ids, *done.ids]
        assert session.ids == expected == fed
        assert done.plain_prompt_ids != done.prompt_ids
        # An unfinished reply is closed by the next prompt, never inside the trained ids.
        assert not set(chat.stop_ids) & set(done.ids[:-1])
        # What was appended is what the template puts after the last reply, its end left out where
        # the model has said it already.
        messages.append({"role": "user", "content": text})
        rendered = rendered_by_transformers(chat.tokenizer, messages, **variables)
        after = rendered.rpartition("REPLY")[2]
        if last_id == chat.turn_end:
            after = after.removeprefix(end)
        assert list(done.prompt_ids) == chat.tokenizer.encode(after, add_special_tokens=False)
        messages.append({"role": "assistant", "content": "REPLY"})
        last_id = done.ids[-1]
        ended.append(last_id == chat.turn_end)
    return ended


@pytest.mark.slow  # the default run has six turns with real tokenizers: test_real_tokenizers.py
@pytest.mark.parametrize("kind", TEMPLATES)
def test_ten_turns_are_what_was_sampled_and_what_was_said(kind, tmp_path):
    config = make_checkpoint(tmp_path / "model", kind)
    policy = open_policy(tmp_path / "model", config)
    # At least once the token budget cuts a reply.
    assert False in check_sampled_turns(policy, TEMPLATES[kind][0], 10)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_first_turn_is_the_templates_own_tokenisation(kind, tmp_path):
    config = make_checkpoint(tmp_path / "model", kind)
    chat = load_chat(str(tmp_path / "model"), config.vocab_size)
    for text in ("go to desk 1", "  spaces around \n", "a\n\nb", "", "Ü[INST] <|"):
        rendered = rendered_by_transformers(chat.tokenizer, [{"role": "user", "content": text}])
        encoded = chat.tokenizer.encode(rendered, add_special_tokens=False)
        assert list(chat.first_turn(text)) == encoded
    if kind == "llama3.2":
        ids = chat.first_turn("x")
        assert ids.count(chat.tokenizer.bos_token_id) == 1 and ids[0] == chat.tokenizer.bos_token_id


def test_all_stop_tokens_end_a_reply_and_only_the_templates_is_left_out(tmp_path):
    config = make_checkpoint(tmp_path / "model", "llama3.2")
    chat = load_chat(str(tmp_path / "model"), config.vocab_size)
    end, other = chat.tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|eom_id|>"])
    assert chat.stop_ids == tuple(sorted((end, other))) and chat.turn_end == chat.reply_end == end
    rest = chat.next_turn("x", end)
    assert chat.next_turn("x", other) == chat.next_turn("x", 99) == (end, *rest)
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [1, 9999]}')
    with pytest.raises(UserError, match="generation_config.json: eos_token_id"):
        load_chat(str(tmp_path / "model"), config.vocab_size)


def test_qwen3_thinking_stays_in_a_growing_conversation(tmp_path):
    """The template would drop it from earlier turns; what was sampled is what stays."""
    config = make_checkpoint(tmp_path / "model", "qwen3")
    chat = load_chat(str(tmp_path / "model"), config.vocab_size)
    encode, said = chat.tokenizer.encode, "<think>\nhm\n</think>\n\nlook<|im_end|>"
    sampled = encode(said, add_special_tokens=False)
    ids = [*chat.first_turn("one"), *sampled]
    ids += chat.next_turn("two", ids[-1])
    assert chat.tokenizer.decode(ids) == (
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n" + said
        + "\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )  # fmt: skip
    turns = [("user", "one"), ("assistant", said.removesuffix("<|im_end|>")), ("user", "two")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert "hm" not in rendered_by_transformers(chat.tokenizer, messages)
    off = load_chat(str(tmp_path / "model"), config.vocab_size, enable_thinking=False)
    for turn in (off.first_turn("one"), off.next_turn("two", 0)):
        assert chat.tokenizer.decode(turn).endswith("assistant\n<think>\n\n</think>\n\n")


def test_llama_prompts_do_not_depend_on_the_day(tmp_path):
    config = make_checkpoint(tmp_path / "model", "llama3.2")
    chat = load_chat(str(tmp_path / "model"), config.vocab_size)
    assert "Today Date: 26 Jul 2024" in chat.tokenizer.decode(chat.first_turn("x"))


def test_a_bare_sentencepiece_model_is_encoded_by_sentencepiece(tmp_path):
    from sentencepiece import SentencePieceProcessor

    config = make_checkpoint(tmp_path / "model", "sentencepiece")
    tokenizer = load_tokenizer(str(tmp_path / "model"), config.vocab_size)
    model = SentencePieceProcessor(model_file=str(tmp_path / "model" / "tokenizer.model"))
    for text in ("go to desk 1", "  two  spaces ", "a\nb", "Ünïcode \U0001f600"):
        assert tokenizer.encode(text) == model.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == model.decode(model.encode(text))
    around = tokenizer.encode("<s>go to desk 1</s>")
    assert around == [model.bos_id(), *model.encode("go to desk 1"), model.eos_id()]
    assert tokenizer.decode(around) == "go to desk 1"


def test_a_template_from_a_file_takes_the_place_of_the_checkpoints(tmp_path):
    config = make_checkpoint(tmp_path / "model", "sentencepiece")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"no chat template; name a file with one in model\.chat"):
        load_chat(str(tmp_path / "model"), config.vocab_size)
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}|{{ m['content'] }}{{ eos_token }}{% endfor %}|")
    chat = load_chat(str(tmp_path / "model"), config.vocab_size, chat_template=str(file))
    said = chat.tokenizer.decode(list(chat.first_turn("hello")))
    assert said.replace(" ", "") == "|hello|"  # the end of the turn has no text
    file.write_text("{% for m in %}")
    with pytest.raises(UserError, match="the chat template cannot be used: "):
        load_chat(str(tmp_path / "model"), config.vocab_size, chat_template=str(file))
    with pytest.raises(UserError, match=r"model\.chat_template = nowhere: "):
        load_chat(str(tmp_path / "model"), config.vocab_size, chat_template="nowhere")


def test_tokenizers_that_are_refused(tmp_path):
    config = make_checkpoint(tmp_path / "model", "qwen2.5")
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


NEEDS_JAVA = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("scienceworld") is None,
    reason="needs Java and the extra scienceworld",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "household_instruct",
        "sokoban_qwen2_5_7b",
        "sokoban_llama3_1_8b",
        "codecontests_qwen2_5_7b",
        pytest.param("scienceworld_qwen2_5_7b", marks=NEEDS_JAVA),
    ],
)
def test_the_instruct_configs_run_on_a_checkpoint(name, tmp_path, monkeypatch):
    """Dialogue and window mode with a hub-style checkpoint, at smoke size."""
    import sys

    make_checkpoint(tmp_path / "model", "qwen2.5")
    arguments = [
        "main", f"--config={ROOT}/configs/{name}.py:smoke", f"--workdir={tmp_path / 'run'}",
        f"--config.model.path={tmp_path / 'model'}", "--config.phases=('explore','evaluate','report')",
    ]  # fmt: skip
    if name.startswith("codecontests"):
        arguments.append("--config.env.options.allow_weak=True")
    monkeypatch.setattr(sys, "argv", arguments)
    assert main(arguments) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["searches"]["tree"]["budget"]["env_steps"] > 0
    assert results["methods"]["base"]["families"]["all"]["samples"] == 2
    lines = (tmp_path / "run" / "trees" / "tree" / "0000.jsonl").read_text().splitlines()
    trees = [json.loads(line) for line in lines]
    mode = "dialogue" if name.startswith(("household", "codecontests")) else "window"
    assert {t["mode"] for t in trees} == {mode}
    turns = [t for tree in trees for node in tree["nodes"] for t in node["turns"]]
    assert turns and all(t["action_ids"] and t["prompt_ids"] for t in turns)


@pytest.mark.slow
def test_the_config_of_a_real_model_warms_up_and_runs_every_phase(tmp_path, monkeypatch):
    """configs/smollm2.py at smoke size on a small checkpoint: what is trained on is what is asked."""
    import sys

    make_checkpoint(tmp_path / "model", "qwen2.5")
    arguments = [
        "main", f"--config={ROOT}/configs/smollm2.py:smoke", f"--workdir={tmp_path / 'run'}",
        f"--config.model.path={tmp_path / 'model'}",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    assert main(arguments) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["methods"]) == ["base", "rft", "leafe"]
    warm = tmp_path / "run" / "bootstrap" / "model"
    chat = load_chat(str(warm), hf.read_config(warm).vocab_size)
    lines = (tmp_path / "run" / "trees" / "tree" / "0000.jsonl").read_text().splitlines()
    for tree in map(json.loads, lines):
        (first, *_) = tree["nodes"][0]["turns"]
        asked = chat.tokenizer.decode(first["prompt_ids"])
        assert asked.startswith("<|im_start|>system\nYou act in a house")
        assert "Reply with one command and nothing else." in asked
