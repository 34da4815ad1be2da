"""SmolLM2-135M-Instruct, a real instruct model, beside transformers: logits, replies and a dialogue."""

import numpy as np
import pytest
import real_models
from checkpoints import logits, torch_logits
from lazily import torch, transformers

import envs
from envs.prompts import Prompts
from leafe_jax.agent.chat import load_chat
from leafe_jax.agent.policy import Request
from leafe_jax.models import hf
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.engine import Request as TokenRequest
from leafe_jax.sampling.lm_policy import LMPolicy
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.types import Sampling

GAMES = ("household", "sokoban", "webshop")
QUESTIONS = (
    "What is the capital of France?", "Name three colours.", "Write a haiku about the sea.",
    "What is 17 + 25?", "Translate 'good morning' into Spanish.", "Why is the sky blue?",
    "Give me a recipe for pancakes.", "Who wrote Hamlet?", "Explain recursion in one sentence.",
    "Write a Python function that reverses a string.", "List the planets of the solar system.",
    "What is the boiling point of water?", "Tell me a joke.", "Summarise: The cat sat on the mat.",
    "Is 91 a prime number?", "What does HTTP stand for?", "Correct this: 'He go to school.'",
    "¿Qué hora es?", "Résumé: 你好，世界!", "def add(a, b):\n    return",
)  # fmt: skip
TOKENS = 64
TIE = 1e-3  # a difference of two logits that float32 may turn round; logits go up to 40


@pytest.fixture(scope="module")
def directory():
    return real_models.smollm2_directory()


@pytest.fixture(scope="module")
def theirs(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def policy(directory):
    config = hf.read_config(directory)
    chat = load_chat(str(directory), config.vocab_size)
    # Few shapes, and so few programs: each takes ten seconds to compile.
    sizes = EngineConfig(
        num_slots=8, max_len=256, turn_chunk=64, prefill_chunk=64, max_new_tokens=TOKENS,
        stop_ids=chat.stop_ids,
    )  # fmt: skip
    return LMPolicy(Engine(config, hf.load_params(directory, config, "float32"), sizes), chat)


@pytest.mark.slow
def test_logits_on_real_prompts(theirs, policy):
    for game in GAMES:
        env = envs.make(game)
        _, observation = env.reset(env.list_tasks("test")[0].task_id)
        prompts = Prompts(env)
        text = prompts.observation(1, observation)
        ids = np.asarray(policy.chat.first_turn(text))[None, :192]
        found = logits(policy.engine.config, policy.engine.params, ids)
        expected = torch_logits(theirs, ids)
        assert np.abs(expected).max() > 10  # a trained model's
        np.testing.assert_allclose(found, expected, atol=TIE, rtol=0)
        assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.99


@pytest.mark.slow
def test_greedy_replies_are_transformers(theirs, policy):
    """Batched on both sides, here eight at a time. Where two tokens tie within float32's rounding, either may come."""
    chat, engine = policy.chat, policy.engine
    prompts = [list(chat.first_turn(question)) for question in QUESTIONS]
    width = max(map(len, prompts))
    rows = [[0] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    out = theirs.generate(
        torch.tensor(rows), attention_mask=torch.tensor(mask), max_new_tokens=TOKENS,
        do_sample=False, eos_token_id=list(chat.stop_ids), pad_token_id=chat.reply_end,
    )  # fmt: skip
    found = engine.generate(
        [TokenRequest(engine.start(), p, TOKENS, Sampling(0.0), 0) for p in prompts]
    )
    ties = 0
    for prompt, row, generation in zip(prompts, out[:, width:].tolist(), found, strict=True):
        ours = list(generation.ids)
        stop = next((n + 1 for n, i in enumerate(row) if i in chat.stop_ids), len(row))
        if ours == row[:stop]:
            assert generation.finish_reason == (
                "stop" if row[stop - 1] in chat.stop_ids else "length"
            )
            continue
        at = next(n for n, pair in enumerate(zip(ours, row)) if pair[0] != pair[1])
        scores = torch_logits(theirs, np.asarray([prompt + row[:at]]))[0, -1]
        assert abs(scores[ours[at]] - scores[row[at]]) < TIE, chat.decode(prompt)
        ties += 1
    assert ties <= 1
    assert "Paris" in chat.decode(found[0].ids) and found[0].finish_reason == "stop"


@pytest.mark.slow
def test_a_dialogue_of_six_turns_has_the_ids_of_apply_chat_template(policy):
    chat, session, messages = policy.chat, policy.start(), []
    turns = (
        "Hello! Who are you?", "What is the capital of France?", "And of Italy?",
        "Which of the two is larger?", "Thank you.\n\n  Now say <b>yes</b>.", "Goodbye!",
    )  # fmt: skip
    for number, text in enumerate(turns):
        messages.append({"role": "user", "content": text})
        expected = chat.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        ticket = policy.submit(Request(session, text, None, 16, Sampling(0.0), number))
        ((answered, reply),) = policy.collect()
        assert answered == ticket and session.ids == [*expected, *reply.ids]
        # All but the new turn is in the cache, but for a page that is not full.
        assert number == 0 or reply.prefilled < len(reply.prompt_ids) + 2 * 16
        messages.append({"role": "assistant", "content": reply.text})
    assert "Paris" in messages[3]["content"] and "Rome" in messages[5]["content"]
