"""Right programs that were judged wrong, and what agents are told: after reports on other judges."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs import sandbox
from envs.base import EnvDataError
from envs.code.feedback import MAX_SHOWN, clean, shorten
from envs.code.sources import check_sources

OWN = {
    "name": "sum", "band": "easy", "split": "test", "statement": "Add.", "num_public": 1,
    "tests": [{"input": "1 2\n", "output": "3\n"}],
}  # fmt: skip
MBPP = {
    "task_id": 11, "text": "Write total(xs).", "code": "def total(xs):\n    return sum(xs)\n",
    "test_list": ["assert total([1, 2]) == 3"],
}  # fmt: skip
HUMANEVAL = {
    "task_id": "HumanEval/0", "entry_point": "total",
    "prompt": "from typing import List\n\n\ndef total(xs: List[int]) -> int:\n"
    '    """Sum.\n    >>> total([1])\n    1\n    """\n',
    "canonical_solution": "    return sum(xs)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
}  # fmt: skip
RECORDS = {"own": OWN, "mbpp": MBPP, "humaneval": HUMANEVAL}
TOTAL = MBPP["code"]


def make(directory: Path, layout: str, **fields):
    options = {name: fields.pop(name) for name in ("memory_mb",) if name in fields}
    path = directory / f"{layout}.jsonl"
    path.write_text(json.dumps({**RECORDS[layout], **fields}) + "\n")
    return envs.make("code", problems=[str(path)], layout=layout, split="test", time_limit=3.0,
                     allow_weak=True, **options)  # fmt: skip


def submit(env, program):
    return env.step(env.reset(env.tasks[0].task_id)[0], program)[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return {layout: make(tmp_path_factory.mktemp(layout), layout) for layout in RECORDS}


FUNCTIONS = pytest.mark.parametrize("layout", ["mbpp", "humaneval"])


# -- packages --------------------------------------------------------------------------------------
@FUNCTIONS
def test_tests_that_need_numpy_run(tmp_path, layout):
    test = "import numpy as np\ndef same(a, b):\n    assert a == b or np.allclose(a, b)\n"
    call = {"mbpp": "same(total([3, 4]), 7)\n",
            "humaneval": "def check(candidate):\n    same(candidate([3, 4]), 7)\n"}  # fmt: skip
    env = make(tmp_path, layout, test=test + call[layout])
    assert submit(env, TOTAL).success
    assert submit(env, "import numpy\ndef total(xs):\n    return int(numpy.sum(xs))").success
    assert not submit(env, "def total(xs):\n    return 3 if xs == [1, 2] else 1").success


@pytest.mark.parametrize(
    "layout, field, source, package",
    [
        ("mbpp", "test", "import no_such_package\n", "no_such_package"),
        ("mbpp", "test_setup_code", "from no_such.inner import x", "no_such.inner"),
        ("mbpp", "test_imports", ["import os, no_such"], "no_such"),
        ("humaneval", "test", "def check(f):\n    import no_such\n", "no_such"),
        ("humaneval", "prompt", "import no_such\n" + HUMANEVAL["prompt"], "no_such"),
        ("own", "checker", "import no_such\ndef check(i, e, a): return i\n", "no_such"),
    ],
)
def test_a_package_that_tests_need_and_the_sandbox_lacks_is_named(
    tmp_path, layout, field, source, package
):
    with pytest.raises(EnvDataError) as error:
        make(tmp_path, layout, **{field: source})
    message = str(error.value)
    assert f"{layout}.jsonl, record 0: task 'test/" in message and "\n" not in message
    assert f"needs {package!r}, which the sandbox lacks" in message


def test_a_package_that_may_be_missing_is_not_asked_for(tmp_path):
    optional = "try:\n    import no_such\nexcept ImportError:\n    no_such = None\n"
    assert submit(make(tmp_path, "mbpp", test=optional), TOTAL).success


def test_a_package_that_does_not_fit_into_the_limits_is_named(tmp_path):
    with pytest.raises(EnvDataError, match="needs 'numpy', which does not load within"):
        make(tmp_path, "mbpp", test="import numpy\n", memory_mb=64)


@pytest.mark.parametrize(
    "layout, fields",
    [
        ("mbpp", {"test": "assert total([1]) == \x1b"}),
        ("humaneval", {"test": "def check(candidate):\nassert 1"}),
        ("own", {"checker": "def check("}),
    ],
)
def test_tests_that_are_no_python_are_named(tmp_path, layout, fields):
    with pytest.raises(EnvDataError, match="record 0: task .* must be Python that") as error:
        make(tmp_path, layout, **fields)
    assert str(error.value).isprintable()


def test_tests_with_long_integers_are_no_error(tmp_path):
    long = "9" * 5000
    env = make(tmp_path, "mbpp", test_list=[f"assert total([{long}]) == {long}"])
    assert submit(env, TOTAL).success


def test_a_broken_sandbox_is_no_fault_of_the_tests(plain, monkeypatch):
    lost = sandbox.Result("sandbox_error", "", "no more memory\nat all", 0.0, 0, "bwrap")
    env = plain["mbpp"]
    problem = env.problem("test/mbpp/011")
    monkeypatch.setattr(env.judge.pool, "run", lambda job: lost)
    with pytest.raises(EnvDataError, match="^the sandbox stopped working: at all$"):
        check_sources(env.judge, [problem])


# -- what a function's program may hold ------------------------------------------------------------
TAILS = (
    '\nif __name__ == "__main__":\n    print(total([int(input())]))\n',
    "\nimport unittest\nif __name__ == '__main__':\n    unittest.main()\n",
    "\nif __name__ == '__main__':\n    import sys\n    sys.exit(0)\n",
    "\nif __name__ == '__main__':\n    assert total([1]) == 2\n",
)


@FUNCTIONS
@pytest.mark.parametrize("tail", TAILS)
def test_a_main_block_does_not_run_where_tests_call_the_function(plain, layout, tail):
    assert submit(plain[layout], TOTAL + tail).success


@FUNCTIONS
@pytest.mark.parametrize(
    "program",
    [
        "from __future__ import annotations\ndef total(xs: Never) -> Nowhere:\n    return sum(xs)",
        "from __future__ import annotations\ntotal = lambda xs: sum(xs)",
        "total: object = lambda xs: sum(xs)",
        "class total:\n    def __new__(cls, xs): return sum(xs)",
        "class S:\n    @staticmethod\n    def total(xs): return sum(xs)\ntotal = S.total",
        "import pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))\n" + TOTAL,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int\n" + TOTAL,
        "\ufeff" + TOTAL,
        TOTAL.replace("\n", "\r\n"),
    ],
)
def test_any_way_to_define_the_function_will_do(plain, layout, program):
    assert submit(plain[layout], program).success


def test_a_main_block_runs_where_output_is_judged(plain):
    program = "if __name__ == '__main__':\n    print(sum(map(int, input().split())))"
    assert submit(plain["own"], program).success


def test_files_that_a_problem_names_are_the_standard_streams(tmp_path):
    hub = {
        "description": "Add.", "source": 2, "input_file": "input.txt", "output_file": None, "outputFile": "output.txt",
        "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
    }  # fmt: skip
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(hub))
    env = envs.make(
        "code", problems=[str(path)], layout="codecontests", split="test", allow_weak=True
    )
    for program in (
        "import sys\nsys.stdin = open('input.txt')\nsys.stdout = open('output.txt', 'w')\n"
        "print(sum(map(int, input().split())))\nsys.stdout.close()",
        "with open('./input.txt', 'rb') as f: n = sum(map(int, f.read().split()))\n"
        "with open('output.txt', 'w') as f: f.write(str(n))",
        "print(sum(map(int, input().split())))",
    ):
        result = submit(env, program)
        assert result.success, result.observation
    assert "FileNotFoundError" in submit(env, "open('other.txt')").observation


def test_an_expected_output_larger_than_the_sandbox_allows_can_be_printed(tmp_path):
    size = 5 << 20
    tests = [{"input": "", "output": "x" * size + "\n"}]
    env = make(tmp_path, "own", tests=tests)
    assert submit(env, f"print('x' * {size})").success
    assert submit(env, f"while True: print('x' * {size})").info["status"] == "output_limit"


# -- feedback --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "program, feedback",
    [
        ("def total(xs):\n    return xs + missing\n", "is not defined (line 2)\n"),
        ("def total(xs):\n    return (\n", "'(' was never closed (line 2)"),
        ("def total(xs):\nreturn xs\n", "after function definition on line 1 (line 2)"),
        # A body under the prompt's own stub.
        ("    y = 1\n    return missing\n", "is not defined (line 2)\n"),
        ("    return (\n", "'(' was never closed (line 1)"),
        ("    if xs:\n    return 1\n", "after 'if' statement on line 1 (line 2)"),
        ("return 1\n", "outside function (line 1)"),
        ("x = '''\n", "(detected at line 1) (line 1)"),
    ],
)
def test_line_numbers_are_those_of_the_submission(plain, program, feedback):
    assert feedback in submit(plain["humaneval"], program).observation


def test_the_program_that_ends_before_its_tests_is_told_so(plain):
    told = submit(plain["mbpp"], TOTAL + "print('OK')\nexit()").observation
    assert told.endswith("Actual: the program ended before the test did")


def test_examples_with_comments_and_setup_are_public_tests(tmp_path):
    doc = (
        '    """Sum.\n    >>> total([1]) # of one\n    1\n    >>> xs = [1, 2]\n'
        '    >>> total(xs)  # )\n    3\n    """\n'
    )
    env = make(tmp_path, "humaneval", prompt=f"def total(xs):\n{doc}")
    assert submit(env, TOTAL).success
    for program, test, got in (
        ("def total(xs): return 7", "total([1]) # of one gives 1", "7"),
        ("def total(xs): return xs[0]", "total(xs)  # ) gives 3", "1"),
    ):
        told = submit(env, program).observation
        assert told.endswith(f"Test: {test}\nActual: got {got}") and "Wrong answer" in told


def test_an_example_that_the_reference_fails_is_not_held_against_anybody(tmp_path):
    prompt = HUMANEVAL["prompt"].replace("    1\n", "    15\n")
    env = make(tmp_path, "humaneval", prompt=prompt)
    assert submit(env, TOTAL).success
    told = submit(env, "def total(xs): return 0").observation
    assert told == "All public tests passed, but not all hidden tests."


def test_a_long_message_keeps_its_exception(plain):
    long = "'x' * 10**6"
    told = submit(plain["own"], f"raise ValueError({long})").observation
    assert told.startswith("Runtime error on public test 1: ValueError: xxx") and "(line 1)" in told
    result = submit(plain["mbpp"], "def total(xs):\n    return [0] * 10**6")
    assert result.info["status"] == "wrong" and "Actual: got [0, 0," in result.observation
    assert len(result.observation) < 2 * MAX_SHOWN


@pytest.mark.parametrize(
    "program",
    [
        r"print('\x1b[31mred\x07\x9b1m\rback\0')",
        r"import sys; sys.stdout.buffer.write(b'\xff\xed\xa0\x80\x00' * 10**6)",
        r"raise ValueError('\x1b]0;title\x07\udc80\x00')",
        r"import sys; sys.exit('\x1b[2J')",
        "print('\\ud800')",
        "\x1b = 1",
        "x = '\ud800'",
        "\x00",
    ],
)
def test_what_programs_print_reaches_the_observation_as_clean_text(plain, program):
    told = submit(plain["own"], program).observation
    assert told == clean(told) and len(told) < 2000
    json.dumps(told).encode(), told.encode()


def test_problem_data_reaches_the_observation_as_clean_text(tmp_path):
    dirty = "a\ud800\x1b[31m\r\nb\x00\rc"
    env = make(tmp_path, "own", statement=dirty, tests=[{"input": dirty, "output": dirty}])
    _, first = env.reset(env.tasks[0].task_id)
    for told in (first, submit(env, "print(1)").observation):
        assert "a\ufffd\\x1b[31m\nb\\x00\\x0dc" in told and told == clean(told)
    env.split_hash("test")


@given(st.text(st.characters()))  # surrogates included
def test_clean_text_is_text_for_everybody(text):
    done = clean(text)
    assert clean(done) == done and json.loads(json.dumps(done)) == done
    assert all(c in "\n\t" or c >= " " for c in done)
    done.encode()
    assert len(shorten(text * 50)) <= MAX_SHOWN + 40


def test_a_state_can_be_played_by_an_environment_that_has_loaded_nothing(tmp_path, plain):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(MBPP))
    env = envs.make("code", problems=[str(path)], layout="mbpp", workers=1, allow_weak=True)
    state, _ = plain["mbpp"].reset("test/mbpp/011")
    assert env.step(state, TOTAL)[1].success


# -- checkers --------------------------------------------------------------------------------------
ODD = "def check(i, e, a):\n    return int(a) == 3 and [1][len(a.split()) - 1] == 1\n"


@pytest.mark.parametrize(
    "checker, output, right",
    [
        (ODD, "3", True),
        (ODD, "4", False),
        (ODD, "x", False),  # ValueError
        (ODD, "", False),
        (ODD, "9" * 5000, False),
        ("def check(i, e, a):\n    print('looking')\n    return a == '3\\n'\n", "3", True),
        ("def check(i, e, a):\n    if a != e: exit()\n    return True\n", "True", False),
        ("def check(i, e, a):\n    if a != e: raise SystemExit\n    return True\n", "4", False),
        (
            "def check(i, e, a):\n    if a != e: import os; os._exit(0)\n    return True\n",
            "4",
            False,
        ),
        ("def check(i, e, a):\n    return len(a) < 3 or bytearray(1 << 40)\n", "1234", False),
    ],
)
def test_an_output_on_which_a_checker_raises_is_wrong(tmp_path, checker, output, right):
    result = submit(make(tmp_path, "own", checker=checker), f"print({output!r})")
    assert result.info["status"] == ("ok" if right else "wrong")


@pytest.mark.parametrize(
    "checker, fault",
    [
        (
            "def check(i, e, a): return 1 / 0\n",
            "runtime_error 'ZeroDivisionError: division by zero'",
        ),
        ("def check(i, e, a): return bytearray(1 << 40)\n", "memory_limit 'MemoryError'"),
        ("def check(i, e, a): return False\n", "ok 'False'"),
        ("def check(i, e, a): raise ValueError('\\x1b[2J')\n", "runtime_error"),
        ("x = 1\n", "runtime_error \"NameError: name 'check' is not defined\""),
        ("exit()\n", "ok ''"),
    ],
)
def test_a_checker_that_does_not_accept_the_expected_output_is_named(tmp_path, checker, fault):
    env = make(tmp_path, "own", checker=checker)
    with pytest.raises(EnvDataError) as error:
        submit(env, "print(4)")
    message = str(error.value)
    assert "own.jsonl, record 0: task 'test/easy/sum': its checker must accept" in message
    assert fault in message and message.isprintable()
