"""Checks of a smoke run's results.json: who made it, how it was played, how methods differ."""

import json
import re
from pathlib import Path

import pytest


def check_results(workdir: Path, results: dict) -> None:
    """All of the checks below, and the names of the fields."""
    assert set(results) == {
        "schema", "made_by", "versions", "config_hash", "config", "protocol", "device", "methods",
        "differences", "searches", "fits",
    }  # fmt: skip
    check_provenance(workdir, results)
    check_protocol(results["protocol"])
    check_differences(results)


def check_provenance(workdir: Path, results: dict) -> None:
    """Each phase's own record has the code that made it, and the results have all of them."""
    phases = ("trees/tree", "leafe", "evaluate/base", "evaluate/leafe")
    assert set(results["made_by"]) == {*phases, "report"}
    for phase in phases:
        record = json.loads((workdir / phase / "phase.json").read_text())
        assert record["made_by"] == results["made_by"][phase] == results["made_by"]["report"]
    (code,) = results["made_by"]["report"]
    assert code["commit"] is None or re.fullmatch("[0-9a-f]{40}", code["commit"])


def check_protocol(protocol: dict) -> None:
    played = {name: protocol[name] for name in ("environment", "split", "tasks", "samples", "seed")}
    assert played == {
        "environment": "household",
        "split": "test",
        "tasks": 6,
        "samples": 8,
        "seed": 0,
    }
    assert len(protocol["split_hash"]) == 16 and protocol["searches"]["tree"]["num_tasks"] == 12
    assert set(protocol["prompts"]) == {"base", "leafe"}


def check_differences(results: dict) -> None:
    """The one pair of methods: values are those of the methods' own, intervals contain them."""
    (pair,) = results["differences"]
    assert (pair["method"], pair["minus"]) == ("leafe", "base")
    for family, found in pair["families"].items():
        for k, value in found["pass_at_k"].items():
            one, other = (
                results["methods"][m]["families"][family]["pass_at_k"][k]["value"]
                for m in ("leafe", "base")
            )
            assert value["value"] == pytest.approx(one - other)
            assert -1 <= value["low"] <= value["value"] <= value["high"] <= 1
