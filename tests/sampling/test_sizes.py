"""Slots and pages that fill a device's memory, and what is said when it was not enough. The accelerator is fake:
the tests say what platform it is and how much of its memory is free."""

import dataclasses
import logging
import re

import jax
import jax.numpy as jnp
import pytest
from small import CONFIG, HELD, STOP, ask, make, make_params, prompt, reference

from leafe_jax.errors import UserError
from leafe_jax.models.decoder import abstract_params
from leafe_jax.runtime import memory
from leafe_jax.sampling import programs, replicas, sizes
from leafe_jax.sampling.engine import make_storage, plan_programs
from leafe_jax.sampling.replicas import make_engines
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.tools import plan
from leafe_jax.tools.hardware import Chip

SIZES = EngineConfig(
    num_slots=0, max_len=64, turn_chunk=4, prefill_chunk=8, max_new_tokens=6, stop_ids=(STOP,)
)
PAGE = 16 * 2 * CONFIG.num_layers * CONFIG.num_kv_heads * CONFIG.head_dim * 4
MIB = 2**20


def needs(platform="gpu", tensor=1, config=CONFIG, **changes) -> sizes.Needs:
    settings = dataclasses.replace(SIZES, **changes)
    return sizes.Needs(config, settings, 4, tensor, platform)


@pytest.fixture
def engine_on(monkeypatch, params):
    """make(bytes free on each device): an engine of a fake accelerator."""
    monkeypatch.setattr(sizes, "_chosen", {})

    def make(*free, **changes):
        monkeypatch.setattr(replicas, "needs_of", lambda *a: sizes.needs_of(*a[:-1], "gpu"))
        monkeypatch.setattr(sizes, "free_bytes", lambda devices: free[0])
        monkeypatch.setattr(
            sizes.processes, "together", lambda what, value, decide: decide([value, *free[1:]])
        )
        return load(params, dataclasses.replace(SIZES, **changes))

    return make


def load(params, settings, copies=1, tensor=1, alone=False):
    engine = make_engines(
        CONFIG, lambda places: jax.tree.map(jax.device_put, params, places), settings,
        copies=copies, tensor=tensor, alone=alone,
    )  # fmt: skip
    HELD.append(engine.programs)
    return engine


@pytest.mark.slow
def test_a_share_of_the_memory_is_filled(engine_on, params, caplog, monkeypatch):
    handler, lines = logging.Handler(), []
    handler.emit = lambda record: lines.append(record.getMessage())
    # The only one: in a run of all tests caplog had recorded the message twice.
    monkeypatch.setattr(logging.getLogger("leafe_jax"), "handlers", [handler])
    with caplog.at_level(logging.INFO, "leafe_jax"):
        engine = engine_on(2 * MIB)
    slots, pages = engine.num_slots, engine.settings.num_pages
    held = sum(x.nbytes for x in jax.tree.leaves(engine._pool))
    assert held == (pages + 1) * PAGE and engine.tree.num_pages == pages
    # Half of 64 positions, and the page that is written anew, for each slot.
    assert slots in sizes._SLOTS and 3 * slots <= pages
    largest = needs().programs(slots)
    assert held + largest <= 0.85 * 2 * MIB < held + largest + PAGE
    more = sizes._SLOTS[sizes._SLOTS.index(slots) - 1]
    assert needs().programs(more) + (3 * more + 1) * PAGE > 0.85 * 2 * MIB
    (line,) = [line for line in lines if "pages" in line]
    assert re.fullmatch(
        rf"sampler: {pages} pages of 16 positions, {slots} slots, 0\.0016\d of 0\.00195 GiB", line
    )
    ids = prompt(0, 9)
    (result,) = engine.generate([ask(engine.start(), ids)])
    assert list(result.ids) == reference(params, ids, 6, 0.0, 0)


def test_more_memory_has_more_of_both():
    found = [sizes.choose(needs(), free) for free in (MIB, 4 * MIB, 16 * MIB, 64 * MIB)]
    assert found == sorted(found) and len(set(found)) == 4
    assert found[-1][0] == max(sizes._SLOTS)
    # No more pages than can come back.
    assert sizes.choose(needs(), 2**40)[1] == 16 * 256 * 5
    wide = dataclasses.replace(CONFIG, num_kv_heads=2, head_dim=2**20)
    assert sizes.choose(needs(config=wide), 2**60)[1] <= 2**31 / (2 * 2**20)
    # Two devices divide the cache.
    assert needs(tensor=2).page * 2 == needs().page == PAGE
    assert sizes.choose(needs(tensor=2), 4 * MIB) > sizes.choose(needs(), 4 * MIB)


def test_what_is_given_is_kept(engine_on, params):
    engine = engine_on(4 * MIB, num_slots=5)
    assert engine.num_slots == 5 and engine.settings.num_pages > 16 * 5
    engine = engine_on(4 * MIB, num_pages=40)
    assert engine.settings.num_pages == 40 and engine.num_slots == 8  # 13 have 3 pages each
    engine = engine_on(1, num_slots=2, num_pages=40)
    assert (engine.num_slots, engine.settings.num_pages) == (2, 40)


def test_the_memory_of_a_host_is_not_filled(params):
    engine = load(params, SIZES)
    assert (engine.num_slots, engine.tree.num_pages) == (128, 128 * 5)


def test_engines_of_a_run_have_the_same_sizes_while_these_fit(engine_on):
    first = engine_on(4 * MIB)
    again = engine_on(int(3.8 * MIB))
    assert again.settings == first.settings
    assert again.programs._compiled is first.programs._compiled
    less = engine_on(int(3.5 * MIB))
    assert less.settings.num_pages < first.settings.num_pages


def test_all_processes_choose_for_the_smallest_device(engine_on):
    alone = engine_on(2 * MIB)
    sizes._chosen.clear()
    assert engine_on(64 * MIB, 2 * MIB).settings == alone.settings


def test_one_process_alone_asks_no_other(engine_on, params, monkeypatch):
    """While the base model is measured the others wait for the result: they answer nothing else."""
    alone = engine_on(2 * MIB)

    def never(*_, **__):
        raise AssertionError("the others do not come")

    monkeypatch.setattr(sizes.processes, "together", never)
    monkeypatch.setattr(sizes.processes, "several", lambda: True)
    sizes._chosen.clear()
    assert load(params, SIZES, alone=True).settings == alone.settings
    assert not sizes._chosen  # all choose together later
    with pytest.raises(AssertionError, match="the others do not come"):
        load(params, SIZES)


def test_too_little_memory(engine_on):
    with pytest.raises(UserError) as error:
        engine_on(20_000)
    assert re.match(
        r"sampler\.memory_share = 0\.85: \S+ of the \S+ GiB that are free beside the weights are not"
        r" enough: sampler\.max_len = 64 needs \S+ GiB at least; raise sampler\.tensor", str(error.value),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"share = 0\.85, num_slots = 64, num_pages = 900: "):
        sizes.choose(needs(num_slots=64, num_pages=900), MIB)
    for share in (0.0, 1.01, float("nan")):
        with pytest.raises(UserError, match="sampler.memory_share = .*: must be above 0"):
            dataclasses.replace(SIZES, memory_share=share)


def test_plan_and_run_agree(engine_on):
    engine = engine_on(4 * MIB)
    weights = sum(x.size * 4 for x in jax.tree.leaves(abstract_params(CONFIG)))
    chip = Chip("gpu", 4 * MIB + weights, 0.0, 0.0)
    assert plan._sized(CONFIG, SIZES, "float32", 1, chip) == engine.settings
    # What does not fit is planned at its smallest, for the compiler to refuse.
    none = plan._sized(CONFIG, SIZES, "float32", 1, dataclasses.replace(chip, memory=weights))
    assert (none.num_slots, none.num_pages) == (1, 5)


@pytest.mark.parametrize("attention", ["gather", "paged"])
def test_the_estimate_is_the_compilers(attention):
    """For programs whose contexts and scores outweigh a model this small."""
    config = dataclasses.replace(CONFIG, max_position_embeddings=1024)
    settings = dataclasses.replace(
        SIZES, num_slots=16, max_len=512, turn_chunk=32, prefill_chunk=64, attention=attention
    )
    storage = make_storage(attention, config, None)
    params = abstract_params(config, jnp.float32)
    _, made, _ = plan_programs(config, params, storage, settings)
    found = sizes.Needs(config, settings, 4, 1, "cpu")
    listed = sorted(made.listed, key=found._temporaries)
    for program in (listed[-1], listed[len(listed) // 2]):
        counted = made.lower(program).compile().memory_analysis().temp_size_in_bytes
        assert counted <= found._temporaries(program) <= 3 * counted, program


GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate"
TEXTS = {
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used"
    " 21.95G of 15.48G hbm.\n Exceeded hbm capacity by 6.47G.": (21.95, 15.48, True),
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (38.47G)"
    " exceeds available HBM (31.24G).": (38.47, 4.0, False),
    "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 3.00G. That was not"
    " possible. There are 2.50G free.; (0x0x0_HBM0)": (3.0, 2.5, False),
    "RESOURCE_EXHAUSTED: Attempting to reserve 5.00G at the bottom of memory. That was not possible. There"
    " are 512.0M free, 0B reserved, and 512.0M reservable.": (5.0, 0.5, False),
    f"{GPU} 6442450944 bytes.\nBufferAssignment OOM Debugging.": (6.0, 4.0, False),
    f"{GPU} 6.00GiB.": (6.0, 4.0, False),
    "RESOURCE_EXHAUSTED: Failed to allocate request for 6.00GiB (6442450944B) on device ordinal 0": (
        6.0, 4.0, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_what_was_missing(text, monkeypatch):
    """As jax prints it on TPU and GPU; on a GPU what is free comes from the device."""
    monkeypatch.setattr(memory, "free_bytes", lambda devices: 4 * 2**30)
    needed, room, whole = TEXTS[text]
    try:
        raise RuntimeError("sampler: a program cannot be compiled") from jax.errors.JaxRuntimeError(
            text
        )
    except RuntimeError as error:
        found = memory.shortage(error, [])
    assert found.needed == pytest.approx(needed * 2**30) and found.whole == whole
    assert found.room == pytest.approx(room * 2**30)
    assert found.bytes == pytest.approx((needed - room) * 2**30)
    assert memory.is_out_of_memory(jax.errors.JaxRuntimeError(text))
    monkeypatch.setattr(memory, "free_bytes", lambda devices: None)
    if GPU in text:
        assert memory.shortage(jax.errors.JaxRuntimeError(text), []) is None


def fail_with(monkeypatch, text):
    def full(self, program):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(programs.Programs, "lower", full)


def test_a_number_of_pages_that_fits(params, monkeypatch):
    engine = make(params, num_slots=2, num_pages=101, max_len=60)
    fail_with(
        monkeypatch,
        "RESOURCE_EXHAUSTED: Used 500.0K of 400.0K hbm. Exceeded hbm capacity by 100.0K.",
    )
    with pytest.raises(UserError) as error:
        engine.generate([ask(engine.start(), prompt(0, 3))])
    found = re.match(
        r"sampler\.num_pages = 101: a device is out of memory while sampling: it fits with (\d+)"
        r" \(sampler: Program.*RESOURCE_EXHAUSTED: Used 500\.0K", str(error.value),
    )  # fmt: skip
    assert found and "\n" not in str(error.value)
    assert (101 - int(found[1])) * PAGE == pytest.approx(1.05 * 102400, abs=PAGE)


def test_a_number_of_slots_that_fits(params, monkeypatch):
    engine = make(params, num_slots=64, num_pages=200, max_len=64)
    total = engine._needs.total(64, 200)
    fail_with(monkeypatch, f"RESOURCE_EXHAUSTED: Used {total} of {total * 3 // 4} hbm")
    with pytest.raises(UserError) as error:
        engine.generate([ask(engine.start(), prompt(0, 3))])
    found = re.match(
        r"sampler\.num_pages = 200, num_slots = 64: a device is out of memory while sampling: it fits with"
        r" num_slots = (\d+) and num_pages = (\d+) ", str(error.value),
    )  # fmt: skip
    slots, pages = map(int, found.groups())
    assert slots < 64 and pages >= 3 * slots
    assert engine._needs.total(slots, pages) <= 0.75 * total
    fail_with(monkeypatch, f"RESOURCE_EXHAUSTED: Used {10 * total} of {total} hbm")
    with pytest.raises(
        UserError, match="one conversation of sampler.max_len = 64 does not fit either"
    ):
        engine.launch()
    fail_with(monkeypatch, f"{GPU} 9 bytes.")  # a CPU does not say what is free
    with pytest.raises(
        UserError, match="sampling: lower num_pages or num_slots, raise sampler.tensor"
    ):
        engine.launch()


def test_out_of_memory_wherever_it_happens(params, monkeypatch):
    """When the pool is made, while compiling ahead, and when a program has run."""
    text = "RESOURCE_EXHAUSTED: Attempting to allocate 90.0K. That was not possible. There are 10.0K free."
    message = (
        r"^sampler\.num_pages = 101: a device is out of memory while sampling: it fits with \d+ \("
    )

    def full(*_, **__):
        raise jax.errors.JaxRuntimeError(text)

    zeros = jnp.zeros
    with monkeypatch.context() as patch:
        patch.setattr(jnp, "zeros", lambda *a, **k: full() if "device" in k else zeros(*a, **k))
        with pytest.raises(UserError, match=message):
            make(params, num_slots=2, num_pages=101)
    engine = make(params, num_slots=2, num_pages=101, max_len=61)
    with monkeypatch.context() as patch:
        patch.setattr(programs.Programs, "lower", full)
        engine.programs.compile_ahead().join()
    with pytest.raises(UserError, match=message):
        engine.generate([ask(engine.start(), prompt(0, 3))])
    engine = make(params, num_slots=2, num_pages=101)
    engine.submit(ask(engine.start(), prompt(0, 3)))
    engine.launch()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_get", full)
        with pytest.raises(UserError, match=message):
            engine.land()


def test_other_errors_stay_as_they_are(monkeypatch):
    engine = make(make_params(), num_slots=2, max_len=62)
    fail_with(monkeypatch, "INTERNAL: broken")
    message = r"^sampler: Program\(.*\) cannot be compiled: INTERNAL: broken; sampler.compile_ahead = False"
    with pytest.raises(UserError, match=message):
        engine.generate([ask(engine.start(), prompt(0, 3))])
