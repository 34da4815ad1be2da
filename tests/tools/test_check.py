"""The check tool: its tiny form as a user runs it, and what it says about parts that are broken."""

import itertools
import json
import os
import re
import resource
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leafe_jax.models import attention
from leafe_jax.sampling import paged
from leafe_jax.tools import (
    bench_sampling,
    bench_training,
    check,
    check_machine,
    check_numbers,
    check_part,
    check_speed,
    hardware,
)
from leafe_jax.tools.check_lines import PREFIX, Line, Part, guarded, worst
from leafe_jax.tools.known_models import SHAPES, shape_config
from leafe_jax.tools.workloads import Branch, Plain, Ragged, Turns
from leafe_jax.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "machine", "attention jnp", "pages gather, heads of 128", "pages paged, heads of 128",
    "log-probabilities", "sampler tiny turns", "train tiny", "checkpoint",
]  # fmt: skip


def lines(name, shape="tiny", workload="", directory=""):
    """name -> line of a part, in this process, so that what a test has broken is used."""
    return {x.name: x for x in check_part.run(Part(name, shape, workload, directory))}


def line(name, *more):
    (found,) = lines(name, *more).values()
    return found


def documented(page, number):
    """(names, texts, last line) of the check's output in a page's code block of this number."""
    block = (ROOT / "docs" / page).read_text().split("```\n")[2 * number + 1].splitlines()
    pairs = [text.removeprefix("ok       ").split(": ", 1) for text in block[:-1]]
    assert all(text.startswith("ok       ") for text in block[:-1])
    return [name for name, _ in pairs], [text for _, text in pairs], block[-1]


# -- as a user runs it -----------------------------------------------------------------------------
@pytest.mark.slow
def test_the_tiny_form(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "leafe_jax.tools.check", "--json", f"--directory={tmp_path}"],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=900,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stdout[-3000:] + done.stderr
    result = json.loads(done.stdout)
    assert result["verdict"] == "ok" and [x["name"] for x in result["lines"]] == NAMES
    assert all(x["verdict"] == "ok" and x["text"] and not x["advice"] for x in result["lines"])
    # Processor time, because other tests run beside this one. Measured: 69 s when no program is in the
    # cache, on a machine with much other load.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 120
    figures = {x["name"]: x["figures"] for x in result["lines"]}
    machine = figures["machine"]
    assert (machine["platform"], machine["dtype"]) == ("cpu", "float32")
    assert machine["versions"]["jax"] == jax.__version__ and machine["bytes_per_device"] > 2**30
    assert 0 < figures["attention jnp"]["of_k"] < 1e-5
    sampler = figures["sampler tiny turns"]
    assert sampler["generated_tokens_per_s"] > 10 and sampler["predicted_bytes"] > 2 * 2**20
    assert sampler["share_of_bandwidth"] is None and sampler["measured_bytes"] is None
    assert figures["train tiny"]["last_loss"] < figures["train tiny"]["loss"]
    assert figures["train tiny"]["rank"] == 0 and figures["checkpoint"]["bytes"] > 2**20
    assert list(tmp_path.iterdir()) == []  # it cleans up
    # The same lines as in the docs, up to figures; versions are the machine's.
    names, texts, _ = documented("GPU.md", 1)
    said = [x["text"] for x in result["lines"]]
    assert names == NAMES and list(map(blurred, texts[1:])) == list(map(blurred, said[1:]))


def blurred(text):
    return re.sub(r"\d+(\.\d+)?(e-\d+)?", "#", text)


@pytest.mark.parametrize(("page", "platform"), [("TPU.md", "tpu"), ("GPU.md", "gpu")])
def test_the_docs_show_all_parts(page, platform):
    names, _, last = documented(page, 0)
    assert last.startswith(f"{len(names)} lines in ")
    titles = ["machine", *(x.title for x in check._parts(check._parse([]), platform))]
    shown = [name if name in titles else name.split()[0] for name in names]
    assert [key for key, _ in itertools.groupby(shown)] == titles


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--shape=0.5b,8x", "--shape=0.5b,8x: '8x' must be one of tiny, small, 0.5b"),
        ("--workload=leafe", "--workload=leafe: 'leafe' must be one of plain, turns"),
        (
            "--only=attention,speed",
            "--only=attention,speed: 'speed' must be one of attention, pages",
        ),
        ("--directory=/nowhere", "--directory=/nowhere: must be an existing directory"),
        ("--limit=0", "--limit=0.0: must be above 0"),
        ("--limit=soon", "argument --limit: invalid float value: 'soon'"),
        ("--jsno", "unrecognized arguments: --jsno"),
    ],
)
def test_wrong_flags_are_one_line(flag, message, capsys):
    assert check.main([flag]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def made_up(verdicts):
    """A run_part whose parts have these verdicts by title; the others are ok."""
    asked = []

    def run_part(part, limit):
        asked.append(part.title)
        verdict = verdicts.get(part.title, "ok")
        advice = "" if verdict == "ok" else f"repair {part.title}"
        return [Line(part.title, verdict, "seen", advice, {"platform": verdicts["platform"]})]

    return run_part, asked


@pytest.mark.parametrize(
    ("verdicts", "code", "end"),
    [
        ({"platform": "cpu"}, 0, "7 lines in 0 s: 0 warnings, 0 failed"),
        ({"platform": "cpu", "train tiny": "warning"}, 0, "7 lines in 0 s: 1 warnings, 0 failed"),
        ({"platform": "cpu", "attention": "failed"}, 1, "7 lines in 0 s: 0 warnings, 1 failed"),
        ({"platform": "tpu", "sampler 7b plain": "failed", "checkpoint": "warning"}, 1,
         "11 lines in 0 s: 1 warnings, 1 failed"),
        ({"platform": "gpu", "machine": "failed"}, 1, "1 lines in 0 s: 0 warnings, 1 failed"),
    ],
)  # fmt: skip
def test_a_failure_is_not_the_end(verdicts, code, end, monkeypatch, capsys):
    run_part, asked = made_up(verdicts)
    monkeypatch.setattr(check, "run_part", run_part)
    assert check.main([]) == code
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == end
    for title in asked:
        verdict = verdicts.get(title, "ok")
        assert f"{verdict:<8} {title}: seen" in shown
        assert (f"         what to do: repair {title}" in shown) == (verdict != "ok")
    if verdicts["platform"] == "tpu":
        assert asked[4:8] == [
            "sampler 0.5b plain", "sampler 0.5b branches", "train 0.5b", "sampler 7b plain",
        ]  # fmt: skip


def test_flags_choose_the_parts(monkeypatch, capsys):
    run_part, asked = made_up({"platform": "gpu"})
    monkeypatch.setattr(check, "run_part", run_part)
    flags = ["--shape=small,3b", "--workload=ragged", "--only=sampler,checkpoint", "--json"]
    assert check.main(flags) == 0
    assert asked == ["machine", "sampler small ragged", "sampler 3b ragged", "checkpoint"]
    assert json.loads(capsys.readouterr().out)["verdict"] == "ok"


def test_a_part_that_dies_hangs_or_says_nothing(tmp_path, monkeypatch):
    program = tmp_path / "python"
    monkeypatch.setattr(check.sys, "executable", str(program))

    def part(script, limit=30.0):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return check.run_part(Part("train", "7b"), limit)

    first = PREFIX + json.dumps({"name": "x", "verdict": "ok", "text": "t"})
    died = part(f"echo noise; echo '{first}'; echo 'F0000 out of memory' >&2; kill -9 $$")
    assert [x.name for x in died] == ["x", "train 7b"]  # what was found before is kept
    assert died[1].verdict == "failed" and died[1].advice == check._DIED
    assert died[1].text == "its process ended with signal 9: F0000 out of memory"
    (late,) = part("sleep 100 & sleep 100", 0.5)
    assert (late.verdict, late.text) == ("failed", "no end after 0.5 s")
    assert "--limit" in late.advice
    (mute,) = part("exit 0")
    assert mute.verdict == "failed" and mute.text == "its process ended with code 0: no output"
    (broken,) = part("echo 'KeyError: 5' >&2; exit 1")
    assert broken.text == "its process ended with code 1: KeyError: 5"
    assert "report" in broken.advice


# -- broken parts ----------------------------------------------------------------------------------
def test_a_wrong_attention_fails(monkeypatch):
    right = attention._causal
    monkeypatch.setattr(attention, "_causal", lambda q, k, v, mask: right(q * 1.001, k, v, mask))
    found = line("attention")
    assert found.name == "attention jnp" and found.verdict == "failed"
    assert found.advice.startswith("do not run here") and found.figures["values"] > 1e-5


def test_attention_with_a_wrong_gradient_fails(monkeypatch):
    right = attention._causal

    def wrong(q, k, v, mask):
        return right(q, k, jax.lax.stop_gradient(v) + 0.999 * (v - jax.lax.stop_gradient(v)), mask)

    monkeypatch.setattr(attention, "_causal", wrong)
    found = line("attention").figures
    assert found["values"] < 1e-5 and found["of_q"] < 1e-5 and found["of_v"] > 1e-4


def test_a_kernel_that_crashes_fails_and_the_others_run(monkeypatch):
    monkeypatch.setattr(check_numbers, "BACKENDS", ("splash", "cudnn", "jnp"))
    monkeypatch.setattr(check_numbers, "choose_backend", lambda *_: None)
    found = lines("attention")
    assert found["attention splash"].verdict == "failed"  # there is no TPU
    assert "train.attention=jnp" in found["attention splash"].advice
    assert found["attention jnp"].verdict == "ok"


def test_pages_read_one_position_too_far_fail(monkeypatch):
    right = paged.attend_reference

    def wrong(q, layer, table, lengths, *, sm_scale):
        return right(q, layer, table, lengths + 1, sm_scale=sm_scale)

    monkeypatch.setattr(paged, "attend_reference", wrong)
    found = lines("pages")
    assert found["pages gather, heads of 128"].verdict == "ok"
    bad = found["pages paged, heads of 128"]
    assert bad.verdict == "failed" and "sampler.attention=gather" in bad.advice


def test_a_page_that_is_not_copied_fails(monkeypatch):
    def begin(self, pool, pages):
        size = pool[0].shape[1]
        columns = (pages.start // size)[:, None] + jnp.arange(pages.target.shape[1])
        rows = jnp.arange(len(pages.start))[:, None]
        return pool, pages.table.at[rows, columns].set(pages.target, mode="drop")

    monkeypatch.setattr(paged.Paged, "begin", begin)
    found = lines("pages")["pages paged, heads of 128"]
    assert found.verdict == "failed" and found.figures["prefill"] < 1e-5 < found.figures["step"]


@pytest.mark.slow
def test_log_probabilities_that_differ_fail(monkeypatch):
    right = check_numbers.hidden_states
    monkeypatch.setattr(
        check_numbers, "hidden_states", lambda *args, **how: right(*args, **how) * 1.01
    )
    found = line("log-probabilities")
    assert found.verdict == "failed" and found.figures["largest"] > 1e-3
    assert "see the lines on attention" in found.advice


@pytest.mark.parametrize(
    ("name", "method", "field"),
    [("sampler", (bench_sampling.BenchEngine, "run"), "sampler.num_slots"),
     pytest.param("train", (bench_training.BenchTrain, "step"), "train.lora.rank", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_device_out_of_memory_fails(name, method, field, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(*method, full)
    found = line(name, "tiny", "plain")
    assert found.verdict == "failed" and field in found.advice
    assert found.text.startswith("a device is out of memory: RESOURCE_EXHAUSTED")


@pytest.mark.slow
def test_what_does_not_fit_is_not_run(monkeypatch):
    small = hardware.Chip("gpu", 2**20, 1e12, 1e9)
    monkeypatch.setattr(check_speed, "chip_at_hand", lambda _: small)
    for name, field in (("sampler", "sampler.tensor"), ("train", "train.mesh.fsdp")):
        found = line(name, "tiny", "plain")
        assert found.verdict == "warning" and found.text.startswith("not run: needs")
        assert field in found.advice


@pytest.mark.slow
def test_adapters_are_trained_where_all_weights_do_not_fit(monkeypatch):
    """On a device with room for adapters, but not for the moments of all weights."""
    config = shape_config("tiny")
    weights = sum(x.size for x in jax.tree.leaves(check_speed.abstract_params(config)))
    planned = check_speed.plan.plan_training

    def roomy(
        config, settings, devices, chip, **same
    ):  # the step itself needs more than the weights
        found = planned(config, settings, devices, chip, **same)
        return {**found, "fits": settings.lora.rank > 0}

    chip = hardware.Chip("cpu", 12 * weights * 2, 0.0, 0.0)
    monkeypatch.setattr(check_speed, "chip_at_hand", lambda _: chip)
    monkeypatch.setattr(check_speed.plan, "plan_training", roomy)
    found = line("train")
    assert found.verdict == "ok" and found.figures["rank"] == 16
    assert "adapters of rank 16 (all weights need" in found.text
    assert found.figures["last_loss"] < found.figures["loss"]


@pytest.mark.slow
def test_a_loss_that_does_not_fall_fails(monkeypatch):
    monkeypatch.setattr(bench_training, "LEARNING_RATE", 0.0)
    found = line("train")
    assert found.verdict == "failed" and "does not fall" in found.text and "report" in found.advice


def test_memory_and_speed_that_are_not_as_expected():
    figures = {"measured_bytes": 120, "predicted_bytes": 100}
    found = check_speed._verdict("x", "t", figures, slow=False)
    assert found.verdict == "warning" and found.text.startswith("more memory than predicted")
    assert "leave more memory free" in found.advice
    figures = {"measured_bytes": 105, "predicted_bytes": 100}
    assert check_speed._verdict("x", "t", figures, slow=False).verdict == "ok"
    found = check_speed._verdict("x", "t", figures, slow=True)
    assert found.verdict == "warning" and "nvidia-smi" in found.advice


def test_a_checkpoint_that_differs_in_one_bit_fails(monkeypatch, tmp_path):
    right = checkpoint.Checkpoints.restore

    def restore(self, like):
        step, state, data = right(self, like)
        norm = np.array(state["params"]["final_norm"]["scale"])
        norm.view(np.uint32)[3] ^= 1
        state["params"]["final_norm"]["scale"] = jnp.asarray(norm)
        return step, state, data

    monkeypatch.setattr(checkpoint.Checkpoints, "restore", restore)
    found = line("checkpoint", "tiny", "", str(tmp_path))
    assert found.verdict == "failed" and found.text.startswith("1 arrays differ after save")
    assert "final_norm" in found.text and "--directory" in found.advice
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_fails(monkeypatch, tmp_path):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    found = line("checkpoint", "tiny", "", str(tmp_path))
    assert found.verdict == "failed" and "No space left" in found.text
    assert found.advice.startswith("free space there") and str(tmp_path) in found.text


def test_an_accelerator_that_jax_does_not_see(monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(check_machine, "_ACCELERATORS", (f"{tmp_path}/nvidia[0-9]*",))
    found = line("machine")
    assert found.verdict == "warning" and "jax sees no accelerator" in found.text
    assert "jax[cuda13]" in found.advice
    monkeypatch.setattr(check_machine, "_computes", lambda _: False)
    found = line("machine")
    assert found.verdict == "failed" and found.text.startswith("devices [0] compute")


# -- the figures -----------------------------------------------------------------------------------
def test_exact_attention_is_the_references():
    rng = np.random.default_rng(3)
    shapes = [(2, 7, 6, 8), (2, 11, 3, 8), (2, 11, 3, 8), (2, 7, 6, 8)]
    q, k, v, weight = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    mask = rng.random((2, 7, 11)) < 0.6
    mask[:, :, 4] = True
    out, gradients = check_numbers.exact_attention(q, k, v, mask, weight)
    np.testing.assert_allclose(attention.attention(q, k, v, jnp.asarray(mask)), out, atol=1e-5)
    theirs = jax.grad(
        lambda *x: jnp.sum(attention.attention(*x, jnp.asarray(mask)) * weight), argnums=(0, 1, 2)
    )(*map(jnp.asarray, (q, k, v)))
    for left, right in zip(theirs, gradients):
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_the_work_of_the_sampler_by_hand():
    config = shape_config("tiny")
    # A layer: q and o 64 x 512, k and v 64 x 256, three of 64 x 128, two norms; final norm; tied head.
    layer = 2 * 64 * 512 + 2 * 64 * 256 + 3 * 64 * 128 + 2 * 64
    weights = 2 * layer + 64 + 512 * 64
    position = 2 * 2 * 2 * 128  # keys and values, layers, heads, numbers
    matrices = 2 * (layer - 2 * 64)
    read, flops = check_speed.sampler_work(config, Plain(3, 10, 4), 2, 30)
    assert read == 2 * (4 * weights + 3 * (10 + 11 + 12 + 13) * position)
    pairs = 3 * (10 + 11 + 12 + 13)
    assert flops == 2 * matrices * (12 + 30) + 2 * 64 * 512 * 12 + 4 * 512 * pairs * 2
    read, _ = check_speed.sampler_work(config, Branch(2, 20, 3, 5, 2), 4, 70)
    assert read == 4 * (2 * weights + (2 * (2 * 20 + 6 * 5) + 6) * position)
    read, _ = check_speed.sampler_work(config, Turns(2, 2, 3, 1, 4), 4, 0)
    assert read == 4 * (2 * weights + 2 * (7 + 11) * position)
    assert check_speed.sampler_work(config, Ragged(), 4, 0) == (0, 0)


def test_the_chip_at_hand():
    def device(kind, platform="gpu", stats=None):
        return types.SimpleNamespace(
            device_kind=kind, platform=platform, memory_stats=lambda: stats
        )

    limit = {"bytes_limit": 60 * 2**30}
    h100 = hardware.chip_at_hand(device("NVIDIA H100 80GB HBM3", stats=limit))
    assert h100 == hardware.Chip("gpu", 60 * 2**30, 989e12, 3350e9)
    assert hardware.chip_at_hand(device("TPU v5 lite", "tpu")) == hardware.CHIPS["v5e"]
    unknown = hardware.chip_at_hand(device("TPU v9", "tpu", limit))
    assert unknown == hardware.Chip("tpu", 60 * 2**30, 0.0, 0.0)
    assert hardware.chip_at_hand(jax.devices()[0]).memory > 2**30
    assert set(hardware._KINDS.values()) == set(hardware.CHIPS)


def test_shapes():
    for shape in SHAPES:
        config = shape_config(shape)
        assert config.num_heads % config.num_kv_heads == 0
    sizes = {
        shape: sum(
            x.size for x in jax.tree.leaves(check_speed.abstract_params(shape_config(shape)))
        )
        for shape in ("0.5b", "1.5b", "3b")
    }
    # As published on the hub.
    assert sizes == {"0.5b": 494032768, "1.5b": 1543714304, "3b": 3085938688}


def test_verdicts():
    assert worst([]) == "ok" and worst(["ok", "failed", "warning"]) == "failed"
    assert guarded("x", "a", "b", lambda: Line("x", "ok", "t")).verdict == "ok"

    def fail():
        raise MemoryError

    assert guarded("x", "a", "b", fail) == Line(
        "x", "failed", "a device is out of memory: no message", "b"
    )
