"""The list of programs: it has all that a layout may need, and none that cannot be compiled."""

import itertools
import random

import drawn
import pytest

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling.engine import Engine, Request
from leafe_jax.sampling.prefix_tree import Match
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.sampling.shapes import Row, Shapes
from leafe_jax.types import Sampling

SIZES = [
    # slots, max_len, page_size, prefill_chunk, turn_chunk: as in the configs, and at the edges.
    (16, 1024, 16, 256, 64), (64, 4096, 16, 512, 128), (8, 2048, 16, 256, 256), (1, 300, 7, 200, 3),
    (24, 40, 64, 32, 8), (32, 32768, 64, 1024, 256),
]  # fmt: skip


def shapes(slots, max_len, page_size, prefill_chunk, turn_chunk, gathered=True, goes_on=True):
    return Shapes(
        num_rows=slots, max_len=max_len, page_size=page_size, spare=0, prefill_chunk=prefill_chunk,
        turn_chunk=turn_chunk, burst=16, goes_on=goes_on, gathered=gathered, weight_positions=1e4,
        token_positions=1e3,
    )  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES)
def test_every_listed_context_has_room_for_its_tokens(sizes):
    for gathered, goes_on in itertools.product((True, False), repeat=2):
        made = shapes(*sizes, gathered, goes_on)
        assert made.listed()
        for program in made.listed():
            assert program.tokens <= program.pages * made.page_size, program


@pytest.mark.parametrize("sizes", SIZES)
def test_layouts_use_listed_programs_only(sizes):
    slots, max_len, page_size, prefill_chunk, turn_chunk = sizes
    made, rng = shapes(*sizes), random.Random(0)
    listed = set(made.listed())

    def row(done, rest):
        pages = {i: i for i in range(-(-done // page_size))}
        return Row([0] * (done + rest), Match((), 0), pages, done)

    for _ in range(60):
        count = rng.randint(1, slots)
        # Rows that share pages form groups; others have contexts of any length.
        dones = [rng.choice((0, max_len // 2, rng.randrange(max_len - 2))) for _ in range(count)]
        rows = [row(done, rng.randint(1, max(1, min(max_len - done, 600)))) for done in dones]
        for layout in made.lay_out_prefill(rows):
            assert layout.program in listed, layout.program
        for tokens in made.turns:
            turns = [row(done, 1) for done in dones]
            ends = [min(max(r.done + tokens, len(r.ids) + 16), max_len + tokens) for r in turns]
            for layout in made.lay_out_turn(turns, ends, tokens):
                assert layout.program in listed, layout.program


CONFIG = ModelConfig("llama", 64, 16, 16, 1, 2, 1, 8, 1e4, 1e-6, True, 8192)
SIZES = EngineConfig(
    num_slots=1, max_len=32, turn_chunk=8, prefill_chunk=8, max_new_tokens=8, stop_ids=(0,)
)


@pytest.fixture
def engine():
    return Engine(CONFIG, drawn.params(CONFIG), SIZES)


def test_a_failure_to_compile_ahead_ends_the_run(engine, monkeypatch, capfd):
    def fail(*arguments, **options):
        raise TypeError("bounds\nmust not exceed")

    first = engine.programs.listed[0]
    monkeypatch.setattr(engine.programs, "lower", fail)
    engine.programs.compile_ahead().join()
    assert "Traceback" not in capfd.readouterr().err
    engine.submit(Request(engine.start(), [1, 2], 4, Sampling(), 0))
    with pytest.raises(UserError) as error:  # which `main` prints as one line
        engine.collect()
    assert str(error.value) == (
        f"sampler: {first} cannot be compiled: bounds must not exceed; sampler.compile_ahead = False"
        " compiles only what the run needs"
    )


def test_ids_that_the_model_does_not_have(engine):
    session = engine.start()
    for bad in (64, 10**6, -1, True, 1.0, None, "1"):
        with pytest.raises(ValueError, match=r"token id .*: the model has 64, from 0 to 63"):
            engine.append(session, [1, bad])
        made = engine.generate([Request(engine.start(), [1, bad], 4, Sampling(), 0)])[0]
        assert made.finish_reason == "error" and f"token id {bad!r}: the model has 64" in made.error
    assert session.ids == []
    beyond = Request(engine.start(), [1], 4, Sampling(stop_ids=(64,)), 0)
    assert "sampler.stop_ids: token id 64" in engine.generate([beyond])[0].error


def test_log_probabilities_that_are_not_finite_end_the_run():
    params = drawn.params(CONFIG)
    params["final_norm"]["scale"] = params["final_norm"]["scale"] * float("inf")
    broken = Engine(CONFIG, params, SIZES)
    broken.submit(Request(broken.start(), [1, 2], 4, Sampling(), 0))
    with pytest.raises(ValueError, match="log-probabilities are not finite"):
        broken.collect()
