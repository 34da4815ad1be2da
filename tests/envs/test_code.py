"""The code environment: judging, feedback, loaders and our own problem set."""

import json

import pytest
from code_problems import ADD, HUB, make, play, record, write

from envs import sandbox
from envs.base import EnvDataError
from envs.code import data as code_data
from envs.code import judge as code_judge
from envs.code import problems
from envs.code.judge import same_output


@pytest.fixture(scope="module")
def own():
    return make()


# -- comparing -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "expected, actual, same",
    [
        ("1 2\n3", "1\n2 3\n\n", True),
        ("1 2", "1 2 3", False),
        ("abc", "ABC", False),
        ("0.5", "0.500004", True),
        ("0.5", "0.50002", False),
        ("100000.0", "100000.9", True),  # relative
        ("100000.0", "100002.0", False),
        ("0.000001", "0", True),  # absolute
        ("1.0", "1", True),
        ("3", "3.0", True),
        ("3", "4", False),
        ("1000000007", "1000000008", False),  # integers are exact
        ("1000000007", "1000000008.0", False),
        ("12", "1_2", False),
        ("1.5", "nan", False),
        ("nan", "nan", True),
        ("1e400", "1e401", False),
        ("1e3", "1000", True),
        ("", "", True),
        ("", "x", False),
        ("-0", "0", False),
        ("07", "7", False),
    ],
)
def test_comparing_outputs(expected, actual, same):
    assert same_output(expected, actual) is same


def test_a_long_number_that_is_none_takes_no_time():
    # Minutes, where the digits can be divided between two repetitions in every way.
    digits = "1" * 1_000_000
    for actual in (f"{digits}x", f"{digits}.{digits}x", f"{digits}e{digits}", f".{digits}."):
        assert not same_output("1.5", actual) and not same_output("3", actual)
    assert same_output("1.5", f"1.5{'0' * 1_000_000}") and not same_output("1.5", digits)


def test_case_counts_unless_told_otherwise():
    assert same_output("Yes", "YES", ignore_case=True) and not same_output("Yes", "YES")


# -- judging ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def adder(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("own") / "p.jsonl", record())
    return make(problems=[path], split="train")


@pytest.mark.parametrize(
    "program, status, feedback",
    [
        ("print(4)", "wrong", "Wrong answer on public test 1.\nInput:\n1 2\nExpected output:\n3\n"
         "Actual output:\n4"),
        ("", "wrong", "Wrong answer on public test 1.\nInput:\n1 2\nExpected output:\n3\n"
         "Actual output:\n(nothing)"),
        ("\nx = [\n", "compile_error", "Compile error: SyntaxError: '[' was never closed (line 2)"),
        ("x = 1\nprint(y)", "runtime_error", "Runtime error on public test 1: NameError: name 'y'"
         " is not defined (line 2)\nInput:\n1 2"),
        ("while True: pass", "time_limit", "Time limit exceeded on public test 1.\nInput:\n1 2"),
        ("x = bytearray(1 << 40)", "memory_limit", "Memory limit exceeded on public test 1.\n"
         "Input:\n1 2"),
        ("while True: print('x' * 9999)", "output_limit", "Output limit exceeded on public test 1."
         "\nInput:\n1 2"),
        ("print(3)", "wrong", "All public tests passed, but not all hidden tests."),
        (ADD, "ok", "All tests passed."),
    ],
)  # fmt: skip
def test_feedback_shows_public_tests_only(adder, program, status, feedback):
    state, (result,) = play(adder, program)
    assert (result.info["status"], result.observation) == (status, feedback)
    assert result.success is state.done is (status == "ok")
    assert result.reward == float(status == "ok")
    assert result.info["valid"] == (status != "compile_error" and program != "")
    assert state.submissions[-1].program == program


def test_four_submissions_end_the_episode(adder):
    state, results = play(adder, "print(0)", "print(1)", "print(2)", "print(4)")
    assert state.done and not state.success and [r.done for r in results] == [False] * 3 + [True]
    assert len(state.submissions) == 4
    state, results = play(adder, "print(0)", ADD)
    assert state.done and state.success and adder.solve(state) is None


def test_long_texts_are_cut(tmp_path):
    long = "9 " * 5000
    path = write(tmp_path / "p.jsonl", record(tests=[{"input": long, "output": long}] * 2))
    _, (result,) = play(make(problems=[path], split="train"), "print('8 ' * 5000)")
    assert len(result.observation) < 1500 and "characters)" in result.observation


def test_only_the_first_tests_decide(tmp_path):
    tests = [{"input": f"{n}\n", "output": f"{min(n, 3)}\n"} for n in range(6)]
    path = write(tmp_path / "p.jsonl", record(tests=tests, num_public=2))
    for num_tests, success in ((4, True), (5, False), (0, False)):
        env = make(problems=[path], split="train", num_tests=num_tests)
        assert play(env, "print(input())")[1][0].success is success
    # One public test shown: the failure on the second is hidden.
    env = make(problems=[path], split="train", num_public=1)
    (result,) = play(env, "print(0)")[1]
    assert result.observation.startswith("All public tests passed")


def test_many_submissions_at_once_give_what_one_at_a_time_gives(own):
    tasks = own.list_tasks("train")[:6]
    moves = []
    for task in tasks:
        state, _ = own.reset(task.task_id)
        moves += [(state, own.problem(task.task_id).reference), (state, "print(1)"), (state, "x =")]
    together = own.step_many(moves)
    fresh = make()
    assert together == [fresh.step(*move) for move in moves]
    assert own.step_many(moves[::-1]) == together[::-1]


def test_without_public_tests_a_compile_error_is_told_and_nothing_else(tmp_path):
    fields = {"public_tests": {"input": [], "output": []}}
    env = make(problems=[write(tmp_path / "train.jsonl", {**HUB, **fields})],
               layout="codecontests", split="train")  # fmt: skip
    _, results = play(env, "\nx = [\n", "print(1 / 0)", "print(5)", ADD)
    assert [(r.observation, r.info["valid"]) for r in results] == [
        ("Compile error: SyntaxError: '[' was never closed (line 2)", False),
        ("Not all hidden tests.", True), ("Not all hidden tests.", True),
        ("All tests passed.", True),
    ]  # fmt: skip


CHECKER = {
    "memory": "def check(i, e, a):\n    return len(set(str(n) * 100 for n in range(int(a)))) == 3\n",
    "time": "def check(i, e, a):\n    for n in range(int(a) ** 9): pass\n    return int(a) == 3\n",
}


@pytest.mark.parametrize("what", CHECKER)
def test_an_output_that_is_too_much_for_the_checker_is_wrong(tmp_path, what, monkeypatch):
    limits = sandbox.Limits(cpu_seconds=0.5, memory_bytes=1 << 27)
    monkeypatch.setattr(code_judge, "_CHECKER_LIMITS", limits)
    tests = [{"input": "", "output": "3\n"}]
    env = make(problems=[write(tmp_path / "p.jsonl", record(checker=CHECKER[what], tests=tests))],
               split="train")  # fmt: skip
    _, results = play(env, "print(99999999)", "print(3)")
    assert [r.info["status"] for r in results] == ["wrong", "ok"]


def test_a_checker_has_limits_of_its_own(tmp_path):
    tests = [{"input": "", "output": "3\n"}]
    large = "def check(i, e, a):\n    return len(bytearray(1 << 29)) > int(a)\n"
    env = make(problems=[write(tmp_path / "large.jsonl", record(checker=large, tests=tests))],
               split="train", memory_mb=64)  # fmt: skip
    assert play(env, "print(3)")[1][0].success


def test_a_broken_sandbox_stops_the_run(adder, monkeypatch):
    """Submissions may not count as failures when nothing runs any more."""
    lost = sandbox.Result("sandbox_error", "", "no more memory", 0.0, 0, "bwrap")
    monkeypatch.setattr(adder.judge.pool, "run", lambda job: lost)
    with pytest.raises(EnvDataError, match="the sandbox stopped working: no more memory"):
        play(adder, "print('a program not judged before')")


# -- our own set -----------------------------------------------------------------------------------
def test_the_file_is_made_from_its_sources():
    records = [json.loads(line) for line in code_data.OWN_SET.read_text().splitlines()]
    sources = [(band, *entry) for band, entries in problems.BANDS.items() for entry in entries]
    assert len(records) == len(sources) >= 120
    for stored, (band, name, statement, reference, generator, *checker) in zip(records, sources):
        assert (stored["band"], stored["name"], stored["statement"]) == (band, name, statement)
        assert (stored["reference"], stored["checker"]) == (reference, "".join(checker))
        assert [t["input"] for t in stored["tests"]] == problems.draw_inputs(name, generator)
        outputs = [t["output"] for t in stored["tests"]]
        # No constant, and no answer that is right most of the time, solves a problem.
        assert len(outputs) >= 10 and max(map(outputs.count, outputs)) <= 0.8 * len(outputs), name
    for column in ("name", "statement", "reference"):
        assert len({r[column] for r in records}) == len(records)
    for band, least in (("easy", 40), ("medium", 40), ("hard", 40)):
        splits = [r["split"] for r in records if r["band"] == band]
        assert len(splits) >= least and {splits.count(s) > 4 for s in code_data.SPLITS} == {True}
    longest = max(r["reference"].count("\n") + 1 for r in records if r["band"] == "easy")
    assert longest <= 3


# The same answers by another way, or another right answer; and what must not pass.
OTHERWISE = {
    "double": ("n = int(input())\nprint(n + n)", "print(int(input()) ** 2)"),
    "median": ("xs = sorted(map(int, input().split()))\nwhile len(xs) > 1:\n    xs = xs[1:-1]\nprint(xs[0])",
               "xs = input().split()\nprint(xs[len(xs) // 2])"),
    "to-binary": ("n = int(input())\ns = ''\nwhile n:\n    s = str(n % 2) + s\n    n //= 2\nprint(s or 0)",
                  "print(bin(int(input())))"),
    "is-prime": ("n = int(input())\nprint('yes' if n > 1 and all(n % d for d in range(2, n)) else 'no')",
                 "n = int(input())\nprint('yes' if n % 2 else 'no')"),
    "edits": ("from functools import cache\ns, t = input(), input()\n@cache\ndef d(i, j):\n"
              "    if not i or not j: return i + j\n"
              "    return min(d(i-1, j) + 1, d(i, j-1) + 1, d(i-1, j-1) + (s[i-1] != t[j-1]))\n"
              "print(d(len(s), len(t)))", "s, t = input(), input()\nprint(abs(len(s) - len(t)))"),
    "largest-sum": ("xs = list(map(int, input().split()))\nprint(max(sum(xs[i:j]) for i in range(len(xs))"
                    " for j in range(i + 1, len(xs) + 1)))", "print(sum(map(int, input().split())))"),
    "backpack": ("from itertools import combinations\nc = int(input())\nt = [tuple(map(int, input().split()))"
                 " for _ in range(int(input()))]\nprint(max(sum(v for _, v in s) for k in range(len(t) + 1)"
                 " for s in combinations(t, k) if sum(w for w, _ in s) <= c))", "print(0)"),
    "equal-halves": ("from itertools import combinations as k\nx = list(map(int, input().split()))\n"
                     "print('yes' if any(2 * sum(c) == sum(x) for i in range(len(x)) for c in k(x, i)) else 'no')",
                     "x = list(map(int, input().split()))\nprint('no' if sum(x) % 2 else 'yes')"),
    "pair-with-sum": ("t = int(input())\nx = list(map(int, input().split()))\n"
                      "p = [(j, i) for i in range(len(x)) for j in range(i) if x[i] + x[j] == t]\n"
                      "print(*(p[-1][0] + 1, p[-1][1] + 1) if p else ['none'])",
                      "t = int(input())\nprint(1, 1)"),
    "shortest-way": ("n, m = map(int, input().split())\ne = [tuple(map(int, input().split())) for _ in range(m)]\n"
                     "ways = [[1]]\nfor _ in range(n):\n    done = [w for w in ways if w[-1] == n]\n"
                     "    if done: print(*done[-1]); break\n"
                     "    ways = [w + [b] for w in ways for p, q in e for a, b in ((p, q), (q, p))"
                     " if a == w[-1] and b not in w]\nelse: print('none')", "print('none')"),
    "order-of-work": ("n, m = map(int, input().split())\ne = [tuple(map(int, input().split())) for _ in range(m)]\n"
                      "from itertools import permutations\n"
                      "print(*next(p for p in permutations(range(1, n + 1))"
                      " if all(p.index(a) < p.index(b) for a, b in e)))",
                      "n, m = map(int, input().split())\nprint(*range(n, 0, -1))"),
    "no-sevens": ("n = int(input())\nprint(*next((n - a, a) for a in range(1, n) if '7' not in str(a) + str(n - a)))",
                  "n = int(input())\nprint(n - 1, 1)"),
    "growing-part": ("from itertools import combinations\nx = list(map(int, input().split()))\n"
                     "print(*next(c for k in range(len(x), 0, -1) for c in combinations(x, k)"
                     " if list(c) == sorted(set(c))))", "print(*sorted(map(int, input().split())))"),
    "half-life": ("v, p, low = (float(input()) for _ in range(3))\nk = 0\nx = v\nwhile x >= low:\n    k += 1\n"
                  "    x = v * (1 - p) ** k\nprint(k, f'{x:.7f}')", "print(1, 1.0)"),
}  # fmt: skip


def test_other_right_answers_pass_and_wrong_ones_do_not(own):
    ids = {t.task_id.rpartition("/")[2]: t.task_id for t in own.tasks}
    moves = []
    for name, programs in OTHERWISE.items():
        moves += [(own.reset(ids[name])[0], program) for program in programs]
    results = [result for _, result in own.step_many(moves)]
    for (name, _), right, wrong in zip(OTHERWISE.items(), results[::2], results[1::2]):
        assert right.success, (name, right.observation)
        assert not wrong.success, name
    checked = {t.task_id.rpartition("/")[2] for t in own.tasks if own.problem(t.task_id).checker}
    assert checked <= set(OTHERWISE) and len(checked) == 5


def test_checkers_stand_up_to_any_output(own):
    ids = [t.task_id for t in own.tasks if own.problem(t.task_id).checker]
    outputs = [
        "",
        "none",
        "0",
        "-1 -1",
        "1 1",
        "9" * 5000,
        "²",
        "1.5 x",
        "nan nan",
        "[]",
        "1 2 " * 999,
    ]
    moves = [(own.reset(i)[0], f"print({text!r})") for i in ids for text in outputs]
    for _, result in own.step_many(moves):
        assert result.info["status"] in ("wrong", "ok")


@pytest.mark.slow
def test_the_reference_solutions_give_the_stored_outputs():
    with sandbox.Sandbox(allow_weak=True) as pool:
        assert "".join(problems.build(pool)) == code_data.OWN_SET.read_text()
    env = make(num_tests=0)
    assert all(env.solve(env.reset(t.task_id)[0]) for t in env.tasks)
