"""Sampling and training in turns: weights go to the sampler, log-probabilities come back."""

import contextlib

import jax
import numpy as np
import pytest
import trainer
from trainer import CONFIG, equal

from leafe_jax.errors import UserError
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.requests import EngineConfig, Request
from leafe_jax.training.objectives import grpo
from leafe_jax.training.start import Start, place
from leafe_jax.training.trainer import Trainer
from leafe_jax.types import Example, Sampling

SIZES = EngineConfig(
    num_slots=4, max_len=24, turn_chunk=4, prefill_chunk=8, max_new_tokens=8, stop_ids=()
)
ITERATIONS = 4


def open_trainer(directory, **changes) -> Trainer:
    settings = trainer.train_config(batch_size=2, learning_rate=3e-3, warmup_steps=0, **changes)
    start = Start(CONFIG, place(trainer.params()))
    return Trainer(start, settings, grpo(16.0), directory, seed=0)


@pytest.fixture(scope="module")
def engine():
    return Engine(CONFIG, trainer.params(), SIZES)


def play(engine, iteration) -> list[Example]:
    """A group of four replies to one prompt; the more tokens below 20, the better."""
    prompt = [1 + iteration, 2, 3]
    requests = [
        Request(engine.start(), prompt, 8, Sampling(), 100 * iteration + i) for i in range(4)
    ]
    replies = engine.generate(requests)
    rewards = np.array([sum(token < 20 for token in reply.ids) for reply in replies], np.float64)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    made = []
    for reply, advantage in zip(replies, advantages):
        ids = np.array([*prompt, *reply.ids], np.int32)
        sampled = np.r_[np.zeros(3), np.ones(8)].astype(np.float32)
        columns = {
            "advantage": np.float32(advantage) * sampled,
            "behaviour_logprob": np.r_[np.zeros(3), reply.logprobs].astype(np.float32),
        }
        made.append(Example(ids, sampled, 0, columns))
    return made


def run(directory, engine, stop_after=ITERATIONS, kept=None):
    """The iterations that are left, at most up to `stop_after`; returns what was trained."""
    kept = [] if kept is None else kept
    with contextlib.closing(open_trainer(directory)) as made:
        state = made.restore({"samples": 1.0}, 2 * ITERATIONS, {"game": "below 20"})
        begin = 0 if state is None else state["iteration"]
        assert made.num_done == 2 * begin
        engine.swap(made.params)
        for iteration in range(begin, stop_after):
            examples = play(engine, iteration)
            rows = [r for r in made.batches(examples, num_epochs=2, seed=iteration)]
            assert len(rows) == 2
            kept.append([made.step(r) for r in rows])
            engine.swap(made.params)
            made.save({"iteration": iteration + 1})
        return jax.tree.map(np.array, made.params)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path, engine):
    """Two steps an iteration; the sampler takes the new weights between two iterations."""
    measured = []
    compiled = engine.programs.num_compiled
    whole = run(tmp_path / "whole", engine, kept=measured)
    assert not equal(whole, trainer.params())
    # In the first step of an iteration the model is the one that sampled: no ratio is clipped. In the
    # second it has moved.
    first, second = measured[0]
    assert first["clip_fraction"] == 0 and abs(first["behaviour_kl"]) < 1e-6
    assert abs(second["behaviour_kl"]) > 1e-6 and second["tokens_samples"] == 32
    later, compiled = engine.programs.num_compiled, max(compiled, engine.programs.num_compiled)
    run(tmp_path / "cut", engine, stop_after=2)
    resumed = []
    assert equal(run(tmp_path / "cut", engine, kept=resumed), whole)
    assert resumed == measured[2:]
    assert engine.programs.num_compiled == later, "new weights compile nothing"
    with pytest.raises(UserError, match="is of another run: game = 'below 20', here 'other'"):
        open_trainer(tmp_path / "cut").restore({"samples": 1.0}, 8, {"game": "other"})


def test_it_learns(tmp_path, engine):
    """Twenty groups later many more tokens are below 20."""

    def share():
        engine.clear()
        asked = [Request(engine.start(), [5, 2, 3], 8, Sampling(), i) for i in range(40)]
        return np.mean([token < 20 for reply in engine.generate(asked) for token in reply.ids])

    with contextlib.closing(open_trainer(tmp_path)) as made:
        made.restore({"samples": 1.0}, 40)
        engine.swap(made.params)
        before = share()
        for iteration in range(20):
            for rows in made.batches(play(engine, iteration % 7), num_epochs=2, seed=iteration):
                made.step(rows)
            engine.swap(made.params)
        assert share() > before + 0.1


def test_bad_fresh_examples(tmp_path, engine):
    with contextlib.closing(open_trainer(tmp_path)) as made:
        made.restore({"samples": 1.0}, 2)
        with pytest.raises(UserError, match="example 0 has no column 'advantage'"):
            made.batches([trainer.examples(1)[0]], num_epochs=1, seed=0)
        with pytest.raises(UserError, match="there is no example"):
            made.batches([], num_epochs=1, seed=0)
