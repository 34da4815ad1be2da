"""The sources of our own problem set; the environment reads the file that is made from them.

    python -m envs.code.problems

runs the reference solutions and writes `envs/assets/code/problems.jsonl`: statements, tests,
checkers and references, in the layout "own" of envs/code/data.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from envs import sandbox
from envs.base import EnvDataError, stable_seed
from envs.code.problems import easy, hard, medium

BANDS = {"easy": easy.PROBLEMS, "medium": medium.PROBLEMS, "hard": hard.PROBLEMS}
NUM_PUBLIC = 2
NUM_TESTS = 12
_MOST_DRAWS = 400


def splits(names: list[str]) -> dict[str, str]:
    """Name -> split for the problems of a band: 1/4 test, 1/8 valid, the rest train."""
    order = sorted(names, key=lambda name: stable_seed("code-split", name))
    tests, valids = len(order) // 4, len(order) // 8
    return {
        name: "test" if place < tests else "valid" if place < tests + valids else "train"
        for place, name in enumerate(order)
    }


def draw_inputs(name: str, make) -> list[str]:
    """Up to NUM_TESTS different inputs, the same on every machine."""
    inputs: dict[str, None] = {}
    for number in range(_MOST_DRAWS):
        if len(inputs) < NUM_TESTS:
            inputs[make(random.Random(stable_seed("code-test", name, number))) + "\n"] = None
    return list(inputs)


def build(pool: sandbox.Sandbox) -> Iterator[str]:
    """The lines of the file."""
    for band, problems in BANDS.items():
        split_of = splits([entry[0] for entry in problems])
        for name, statement, reference, make, *rest in problems:
            inputs = draw_inputs(name, make)
            results = pool.run_many([sandbox.Job(reference, text) for text in inputs])
            for text, result in zip(inputs, results, strict=True):
                if result.status != "ok" or not result.output.strip():
                    raise EnvDataError(f"{name}: its reference fails on {text!r}: {result.error!r}")
            record = {
                "name": name,
                "band": band,
                "split": split_of[name],
                "statement": statement,
                "num_public": NUM_PUBLIC,
                "tests": [
                    {"input": text, "output": result.output}
                    for text, result in zip(inputs, results, strict=True)
                ],
                "checker": rest[0] if rest else "",
                "reference": reference,
            }
            yield json.dumps(record) + "\n"
