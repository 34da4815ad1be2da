"""Engines share compiled programs when they differ in the values of their weights only."""

import dataclasses
import gc
import math
import re
import threading
import weakref

import jax
import jax.numpy as jnp
import pytest
from small import CONFIG, ask, forward, make_params, prompt

from leafe_jax.models.sharding import make_mesh
from leafe_jax.sampling import programs
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.requests import EngineConfig

SIZES = dict(
    num_slots=2, max_len=32, turn_chunk=4, prefill_chunk=4, max_new_tokens=4, stop_ids=(),
    page_size=4, num_pages=40,
)  # fmt: skip


@pytest.fixture
def compiled(monkeypatch):
    """The programs that were compiled, in order; none is left from another test."""
    monkeypatch.setattr(programs, "_latest", type(programs._latest)(maxlen=programs._KEPT))
    monkeypatch.setattr(programs, "_sets", weakref.WeakValueDictionary())
    made = []
    compile = programs.Programs._compile
    monkeypatch.setattr(
        programs.Programs, "_compile", lambda self, p: made.append(p) or compile(self, p)
    )
    return made


def replies(engine):
    return [r.ids for r in engine.generate([ask(engine.start(), prompt(i, 9), count=4) for i in range(3)])]  # fmt: skip


@pytest.mark.slow
def test_other_weights_take_the_same_programs(compiled):
    """One after the other, as methods are evaluated, and side by side; each samples from its own."""
    outcomes = []
    for seed in (0, 1):
        weights = make_params(seed=seed)
        engine = Engine(CONFIG, weights, EngineConfig(**SIZES))
        if seed:
            assert engine.programs.num_compiled > 0
        outcomes.append(replies(engine))
        for i, ids in enumerate(outcomes[-1]):
            known = [*prompt(i, 9), *ids]
            assert list(ids) == forward(weights, known)[8:-1].argmax(-1).tolist()
        del engine
        gc.collect()
    assert outcomes[0] != outcomes[1]
    assert len(compiled) == len(set(compiled)) > 0
    beside = [Engine(CONFIG, make_params(seed=seed), EngineConfig(**SIZES)) for seed in (1, 0)]
    assert [replies(engine) for engine in beside] == outcomes[::-1]
    assert len(compiled) == len(set(compiled)), "nothing is compiled twice"


def changed(params=None, config=CONFIG, mesh=None, **sizes):
    params = make_params(config) if params is None else params
    return Engine(config, params, EngineConfig(**{**SIZES, **sizes}), mesh)


OTHERS = {
    "model": lambda: changed(config=dataclasses.replace(CONFIG, rope_theta=1e5)),
    "size": lambda: changed(config=dataclasses.replace(CONFIG, num_layers=1)),
    "dtype": lambda: changed(jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params())),
    "stop_ids": lambda: changed(stop_ids=(9,)),
    "max_len": lambda: changed(max_len=36),
    "page_size": lambda: changed(page_size=8),
    "num_pages": lambda: changed(num_pages=44),
    "burst": lambda: changed(max_new_tokens=3),
    "options": lambda: changed(options=True),
    "attention": lambda: changed(attention="paged"),
    "mesh": lambda: changed(mesh=make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])),
}


def test_engines_that_differ_in_anything_else_do_not_share():
    engines = {"none": changed(), **{name: make() for name, make in OTHERS.items()}}
    for setting in (jax.default_matmul_precision("bfloat16"), jax.default_device(jax.devices()[0])):
        with setting:
            engines[str(setting)] = changed()
    sets = {id(engine.programs._compiled) for engine in engines.values()}
    assert len(sets) == len(engines) == len(OTHERS) + 3
    # Rows and chunks are of a program: such engines share what both have.
    other = changed(num_slots=3, turn_chunk=8, prefill_chunk=8)
    assert other.programs._compiled is engines["none"].programs._compiled
    alone = next(p for p in engines["none"].programs.listed if p not in other.programs.listed)
    with pytest.raises(KeyError):
        other.programs.get(alone)


def test_programs_go_with_their_engines(compiled):
    """All but the last ones: what they hold on the device is bounded."""
    engines = [changed(max_len=32 + 4 * i) for i in range(programs._KEPT + 2)]
    sets = [weakref.ref(engine.programs._compiled) for engine in engines]
    weights = [weakref.ref(jax.tree.leaves(engine.params)[0]) for engine in engines]
    assert all(one() is not None for one in sets)
    engines.clear()
    gc.collect()
    alive = [one() is not None for one in sets]
    assert alive == [False] * 2 + [True] * programs._KEPT
    assert all(one() is None for one in weights), "no weights are kept"


@pytest.mark.parametrize("attention", ["gather", "paged"])
@pytest.mark.parametrize("options", [False, True])
def test_only_the_last_token_of_a_prompt_has_logits(attention, options):
    """No array of any program has the vocabulary for more than the rows, the weights apart."""
    engine = changed(attention=attention, options=options, max_new_tokens=20)
    kinds = {(p.kind, p.tokens): p for p in engine.programs.listed}
    assert set(kinds) == {("prefill", 4), ("turn", 4), ("turn", 1)}
    vocab, weights = CONFIG.vocab_size, {CONFIG.vocab_size, CONFIG.hidden_size}
    for program in kinds.values():
        text = engine.programs.lower(program).as_text()
        shapes = {
            tuple(map(int, found.split("x")[:-1]))
            for found in re.findall(r"tensor<((?:\d+x)+)[a-z]", text)
        }
        wide = {shape for shape in shapes if vocab in shape and set(shape) != weights}
        assert bool(wide) == (program.kind == "turn"), program
        for shape in wide:
            assert math.prod(shape) <= program.rows * vocab, (program, shape)


def test_two_threads_compile_a_program_once(compiled):
    engines = [changed(), changed()]
    threads = [engine.programs.compile_ahead() for engine in engines]
    for engine in engines:
        threads.append(threading.Thread(target=replies, args=(engine,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert sorted(compiled) == sorted(engines[0].programs.listed)
