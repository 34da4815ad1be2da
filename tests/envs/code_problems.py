"""Problem records and environments for the tests of `code`."""

import json
from pathlib import Path

import envs

ADD = "a, b = map(int, input().split())\nprint(a + b)"
HUB = {
    "name": "1_A. Sum", "description": "Add.", "source": 2, "difficulty": 7,
    "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
    "private_tests": {"input": ["2 2\n"], "output": ["4\n"]},
    "generated_tests": {"input": ["9 9\n", "0 0\n"], "output": ["18\n", "0\n"]},
    "solutions": {"language": [2, 1, 3], "solution": ["int main(){}", "print raw_input()", ADD]},
}  # fmt: skip


def make(**options):
    return envs.make("code", **{"allow_weak": True, "time_limit": 2.0, **options})


def write(path: Path, *records) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def record(**fields):
    return {
        "name": "sum", "band": "easy", "split": "train", "statement": "Add.", "num_public": 1,
        "tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5\n", "output": "10\n"}],
        **fields,
    }  # fmt: skip


def play(env, *programs, number=0):
    state, _ = env.reset(env.tasks[number].task_id)
    results = []
    for program in programs:
        state, result = env.step(state, program)
        results.append(result)
    return state, results
