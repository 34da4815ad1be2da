"""Runs side by side, from their results.json."""

import json

import pytest

from leafe_jax.run.report.table import RESULTS_SCHEMA
from leafe_jax.tools.compare import main


def write(directory, **methods):
    """A run whose methods have (Pass@1, Pass@4) as given."""
    directory.mkdir()
    entry = {
        name: {"families": {"all": {"tasks": 2, "pass_at_k": {
            k: {"value": v, "low": v / 2, "high": (1 + v) / 2} for k, v in zip("14", values)}}}}
        for name, values in methods.items()
    }  # fmt: skip
    results = dict.fromkeys(("searches", "fits", "versions"), {}) | dict.fromkeys(
        ("config_hash", "seed", "commit", "device"), "x"
    )
    (directory / "results.json").write_text(
        json.dumps({"schema": RESULTS_SCHEMA, "methods": entry, **results})
    )
    return str(directory)


def test_runs_side_by_side(tmp_path, capsys):
    runs = [
        write(tmp_path / "4.0", base=(0.25, 0.5), leafe=(0.5, 1.0), rft=(0.5, 0.75)),
        write(tmp_path / "0.0", base=(0.0, 0.0), leafe=(0.125, 0.25)),
    ]
    assert main([*runs, f"--out={tmp_path / 'out'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "base", "@1", "base", "@4", "leafe", "@1", "leafe", "@4"]
    assert lines[2].split()[:2] == ["4.0", "25.0"] and "12.5 [6.2, 56.2]" in lines[3]
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert rows["4.0"]["rft"]["4"]["value"] == 0.75
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere"], "nowhere/results.json: missing"),
        (["{tmp}/a", "--x=grpo"], "--x=grpo: a has base"),
        (["{tmp}/a", "{tmp}/b/../a"], "two of them have the same name"),
    ],
)
def test_wrong_input_gives_one_line(arguments, message, tmp_path, capsys):
    write(tmp_path / "a", base=(0.0, 0.0))
    (tmp_path / "b").mkdir()
    arguments = [a.format(tmp=tmp_path) for a in arguments]
    assert main([*arguments, f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
