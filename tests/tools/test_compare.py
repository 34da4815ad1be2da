"""Runs side by side, from their results.json."""

import json
import re

import numpy as np
import pytest

from leafe_jax.run.intervals import SIGNED, mean_interval, seeds_interval
from leafe_jax.run.passk import summarise
from leafe_jax.run.report.table import RESULTS_SCHEMA
from leafe_jax.runtime import sources
from leafe_jax.tools.compare import main

TASKS = 6


def write(directory, *, seed=0, config=None, first_task=0, **methods):
    """A run with 4 samples per task, of which each method solves the given number."""
    directory.mkdir(parents=True)
    entries = {}
    for name, counts in methods.items():
        ids = [f"t{first_task + i}" for i in range(len(counts))]
        outcomes = {t: [True] * c + [False] * (4 - c) for t, c in zip(ids, counts)}
        entries[name] = {
            "families": summarise(outcomes, dict.fromkeys(ids, "x")),
            "tasks": {t: {"family": "x", "successes": c} for t, c in zip(ids, counts)},
        }
    protocol = {
        "environment": "household", "versions": {}, "options": {}, "horizon": 20, "split": "test",
        "split_hash": f"h{first_task}", "tasks": TASKS, "samples": 4, "temperature": 1.0, "top_p": 1.0,
        "top_k": 0, "window": None, "prompts": {"base": "12"}, "max_action_tokens": 8, "seed": seed, "searches": {},
    }  # fmt: skip
    code = {"version": "0.1.0", "commit": "a" * 40, "dirty": False, "sources": "1" * 12}
    results = {
        "schema": RESULTS_SCHEMA, "methods": entries, "differences": [], "searches": {}, "fits": {},
        "protocol": protocol, "made_by": {"evaluate/base": [code], "report": [code]}, "versions": {},
        "config": {"seed": seed, "leafe.beta": 1.0, "sampler.num_slots": 8 + seed, **(config or {})},
        "config_hash": "x", "device": "cpu",
    }  # fmt: skip
    (directory / "results.json").write_text(json.dumps(results))
    return str(directory)


def compare(tmp_path, capsys, *runs):
    assert main([*runs, f"--out={tmp_path / 'out'}"]) == 0
    return capsys.readouterr().out, json.loads((tmp_path / "out" / "compare.json").read_text())


BASE, LEAFE = [0, 0, 1, 0, 2, 0], [4, 3, 4, 2, 4, 4]


def test_runs_side_by_side(tmp_path, capsys):
    runs = [
        write(tmp_path / "4.0", config={"scale": 4.0}, base=[1] * 6, leafe=[2] * 6, rft=[4] * 6),
        write(tmp_path / "0.0", config={"scale": 0.0}, base=[0] * 6, leafe=BASE),
    ]
    out, rows = compare(tmp_path, capsys, *runs)
    lines = out.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == [
        "run",
        "seeds",
        "base @1",
        "base @4",
        "leafe @1",
        "leafe @4",
    ]
    assert lines[2].split()[:3] == ["4.0", "1", "25.0"] and "12.5 [1.5, 54.1]" in lines[3]
    made = rows["experiments"]
    assert made["4.0"]["pass_at_k"]["rft"]["4"]["value"] == 1.0
    low, high = mean_interval([1.0] * 6)
    assert made["4.0"]["pass_at_k"]["rft"]["4"] == {"value": 1.0, "low": low, "high": high}
    assert "One seed: the interval is over tasks" in out and "Protocol: household" in out
    # Methods of one run, and one method in two runs on the same tasks.
    assert set(rows["differences"]) == {
        "4.0: leafe - base", "0.0: leafe - base", "base: 0.0 - 4.0", "leafe: 0.0 - 4.0",
    }  # fmt: skip
    assert rows["differences"]["base: 0.0 - 4.0"]["1"]["value"] == -0.25
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_are_taken_together(tmp_path, capsys):
    rng = np.random.default_rng(0)
    counts = {m: [np.clip(c + rng.integers(-1, 2, TASKS), 0, 4).tolist() for _ in range(3)]
              for m, c in (("base", np.array(BASE)), ("leafe", np.array(LEAFE)))}  # fmt: skip
    runs = [
        write(tmp_path / f"s{s}", seed=s, base=counts["base"][s], leafe=counts["leafe"][s])
        for s in range(3)
    ]
    out, rows = compare(tmp_path, capsys, *runs)
    (made,) = rows["experiments"].values()
    assert list(rows["experiments"]) == ["s0+s1+s2"] and made["seeds"] == [0, 1, 2]
    shares = {m: np.array(c) / 4 for m, c in counts.items()}
    found = made["pass_at_k"]["leafe"]["1"]
    assert found["value"] == pytest.approx(shares["leafe"].mean())
    assert (found["low"], found["high"]) == pytest.approx(seeds_interval(shares["leafe"]))
    difference = rows["differences"]["leafe - base"]["1"]
    paired = seeds_interval(shares["leafe"] - shares["base"], SIGNED)
    assert (difference["low"], difference["high"]) == pytest.approx(paired)
    assert "3 seeds: the interval is over tasks and seeds" in out and "2 degrees of freedom" in out


def test_code_of_several_versions_is_said(tmp_path, capsys):
    out, _ = compare(tmp_path, capsys, write(tmp_path / "a", base=BASE))
    # This code is no 'aaaa'; a developer's checkout may have uncommitted changes, which are said first.
    dirty = sources.code()["dirty"]
    kind = "code with uncommitted changes" if dirty else "several versions of the code"
    assert f"a: CAUTION: made by {kind}: " in out and "this output by " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere"], "nowhere/results.json: missing"),
        (["{tmp}/a", "--x=grpo"], "--x=grpo: a has base"),
        (["{tmp}/a", "{tmp}/b/../a"], "two of them have the same name"),
        (["{tmp}/a", "{tmp}/copy"], "copy: seed 0 with the config of a: the same run twice is not more evidence"),
        (["{tmp}/a", "{tmp}/other"], "other: evaluated on other tasks than a"),
    ],
)  # fmt: skip
def test_wrong_input_gives_one_line(arguments, message, tmp_path, capsys):
    write(tmp_path / "a", base=BASE)
    write(tmp_path / "copy", base=BASE)
    write(tmp_path / "other", seed=1, base=BASE, first_task=3)
    (tmp_path / "b").mkdir()
    arguments = [a.format(tmp=tmp_path) for a in arguments]
    assert main([*arguments, f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
