"""`code` on the layouts of MBPP, HumanEval and CodeContests, and what is said about wrong files."""

import gzip
import json
import os
from pathlib import Path

import pytest
from code_problems import ADD, HUB, make, play, record, write

from envs.base import EnvDataError
from envs.code import data as code_data

DATA = os.environ.get("LEAFE_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="LEAFE_DATA names no directory with data files")


# -- functions: MBPP and HumanEval -----------------------------------------------------------------
MBPP = {
    "task_id": 700, "text": "Write a function that doubles.", "code": "def twice(x): return 2 * x",
    "test_list": ["assert twice(1) == 2", "assert twice(3) == 6", "assert twice('a') == 'aa'"],
    "test_setup_code": "", "challenge_test_list": [],
}  # fmt: skip
HUMANEVAL = {
    "task_id": "HumanEval/7", "entry_point": "twice",
    "prompt": 'import math\n\n\ndef twice(x):\n    """Doubles.\n    >>> twice(2)\n    4\n    """\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n",
}  # fmt: skip
# What looks like a pass to whoever counts exit codes.
CHEATS = (
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "def twice(x):\n    import os\n    os._exit(0)",
    "def twice(x):\n    raise SystemExit",
    "exit()",
    "def twice(x): return 2 * x\nx = '''",
    "def twice(x): return 0\nimport sys\nclass Quiet:\n    def write(self, x): pass\n    def flush(self): pass\n"
    "sys.stdout = Quiet()",
)


@pytest.fixture(scope="module")
def mbpp(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("mbpp") / "mbpp.jsonl", MBPP, {**MBPP, "task_id": 11},
                 {**MBPP, "task_id": 510}, {**MBPP, "task_id": 511}, {**MBPP, "task_id": 3})  # fmt: skip
    return make(problems=[path], layout="mbpp")


@pytest.fixture(scope="module")
def humaneval(tmp_path_factory):
    path = tmp_path_factory.mktemp("humaneval") / "h.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(HUMANEVAL) + "\n")
    return make(problems=[str(path)], layout="humaneval", split="test")


def test_mbpp(mbpp):
    ids = {split: [t.task_id for t in mbpp.list_tasks(split)] for split in mbpp.splits}
    assert ids == {"train": ["train/mbpp/700"], "valid": ["valid/mbpp/511"],
                   "test": ["test/mbpp/011", "test/mbpp/510"]}  # fmt: skip
    _, observation = mbpp.reset("train/mbpp/700")
    assert "doubles" in observation and "assert twice('a') == 'aa'" in observation
    (wrong,) = play(mbpp, "def twice(x): return x + 1")[1]
    assert wrong.observation == (
        "Wrong answer on public test 2.\nTest: assert twice(3) == 6\nActual: got 4"
    )
    assert play(mbpp, MBPP["code"])[1][0].success
    assert "NameError" in play(mbpp, "def other(x): return x")[1][0].observation


def test_setup_code_and_imports_are_lines_of_their_own(tmp_path):
    fields = {"test_setup_code": "k = 2", "test_imports": ["import math", "import cmath"],
              "test_list": ["assert twice(1) == math.floor(k) + cmath.pi * 0"]}  # fmt: skip
    path = write(tmp_path / "m.jsonl", {**MBPP, **fields})
    assert play(make(problems=[path], layout="mbpp", split="train"), MBPP["code"])[1][0].success


def test_humaneval(humaneval):
    (right,) = play(humaneval, "    return 2 * x\n")[1]  # a bare body, as base models write it
    assert right.success
    assert play(humaneval, "def twice(x):\n    return math.floor(2 * x)")[1][0].success
    (wrong,) = play(humaneval, "def twice(x):\n    return x * x")[1]
    assert wrong.observation == "All public tests passed, but not all hidden tests."
    (wrong,) = play(humaneval, "def twice(x):\n    return x")[1]
    assert wrong.observation.endswith("Test: twice(2) gives 4\nActual: got 2")


@pytest.mark.parametrize("program", CHEATS)
def test_early_exits_are_no_passes(mbpp, humaneval, program):
    assert not play(mbpp, program)[1][0].success
    assert not play(humaneval, program)[1][0].success


# -- CodeContests ----------------------------------------------------------------------------------
PROTO = {
    "name": "1_A. Sum", "description": "Add.", "source": "CODEFORCES", "difficulty": "A",
    "publicTests": [{"input": "1 2\n", "output": "3\n"}],
    "privateTests": [{"input": "2 2\n", "output": "4\n"}],
    "generatedTests": [{"input": "9 9\n", "output": "18\n"}, {"input": "0 0\n", "output": "0\n"}],
    "solutions": [{"language": "CPP", "solution": "int main(){}"}, {"language": "PYTHON3", "solution": ADD}],
}  # fmt: skip


def test_the_codecontests_layouts_hold_the_same(tmp_path):
    paths = [write(tmp_path / name / "code_contests_valid.jsonl", r) for name, r in
             (("hub", HUB), ("proto", PROTO)) if not (tmp_path / name).mkdir()]  # fmt: skip
    (hub,), (proto,) = ([*code_data.load(p, "codecontests", 10, 0)] for p in paths)
    assert hub == proto and hub[0] == "valid"
    problem = hub[1]
    assert problem.task_id == "valid/codeforces/00000" and problem.reference == ADD
    assert [c.input for c in problem.judged] == ["1 2\n", "2 2\n", "9 9\n", "0 0\n"]
    assert problem.public == problem.judged[:1]
    ((_, three),) = code_data.load(paths[0], "codecontests", 3, 0)
    assert len(three.judged) == 3
    env = make(problems=paths[:1], layout="codecontests", split="valid")
    assert play(env, ADD)[1][0].success and env.list_tasks("test") == ()


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "test-00000-of-00001-abc.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([HUB]), path)
    ((split, problem),) = code_data.load(str(path), "codecontests", 10, 0)
    assert split == "test" and problem.reference == ADD and len(problem.judged) == 4
    path.write_bytes(b"PAR1 not")
    with pytest.raises(EnvDataError, match="cannot be read"):
        list(code_data.load(str(path), "codecontests", 10, 0))


@pytest.mark.parametrize(
    "layout, change, field",
    [
        ("own", {"statement": 3}, "statement"),
        ("own", {"split": "dev"}, "split"),
        ("own", {"tests": [{"input": 1, "output": ""}]}, "tests"),
        ("own", {"tests": {"input": ["1"], "output": []}}, "tests"),
        ("own", {"num_public": 3}, "num_public"),
        ("own", {"checker": 1}, "checker"),
        ("mbpp", {"task_id": "x"}, "task_id"),
        ("mbpp", {"test_list": "assert"}, "test_list"),
        ("mbpp", {"text": ""}, "text"),
        ("humaneval", {"entry_point": "other"}, "prompt"),
        ("humaneval", {"test": None}, "test"),
        ("codecontests", {"source": 99}, "source"),
        ("codecontests", {"public_tests": "none"}, "public_tests"),
        ("codecontests", {"description": None}, "description"),
        ("codecontests", {"solutions": "x"}, "solutions"),
        ("codecontests", {"solutions": 5}, "solutions"),
        ("codecontests", {"solutions": {"language": None, "solution": []}}, "solutions"),
        ("codecontests", {"solutions": {"language": [3], "solution": 5}}, "solutions"),
        ("codecontests", {"solutions": {"language": [3], "solution": []}}, "solutions"),
        ("mbpp", {"test_list": ["assert " + "-" * 100_000 + "1"]}, "test_list"),
        ("humaneval", {"prompt": f"x = {'-' * 100_000}1\ndef twice(x):\n    pass\n"}, "prompt"),
    ],
)
def test_bad_records_are_named(tmp_path, layout, change, field):
    good = {"own": record(), "mbpp": MBPP, "humaneval": HUMANEVAL, "codecontests": HUB}[layout]
    path = write(tmp_path / "train.jsonl", good, {**good, **change})
    with pytest.raises(EnvDataError, match=rf"train\.jsonl, record 1: field '{field}' = .*must be"):
        list(code_data.load(path, layout, 10, 0))


def test_bad_files_and_options_are_named(tmp_path):
    for text, match in (("{", "line 1"), ("[1]\n", "record 0"), ("", "No such file")):
        path = tmp_path / "x.jsonl"
        path.write_text(text)
        name = str(path) if text else str(tmp_path / "absent.jsonl")
        with pytest.raises(EnvDataError, match=match):
            make(problems=[name], split="train")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(EnvDataError, match="not UTF-8"):
        make(problems=[str(path)], split="train")
    damaged = bytearray(gzip.compress(b"x" * 100))
    damaged[12] ^= 255
    (tmp_path / "x.jsonl.gz").write_bytes(damaged)
    with pytest.raises(EnvDataError, match="x.jsonl.gz: (cannot be expanded|not UTF-8)"):
        make(problems=[str(tmp_path / "x.jsonl.gz")], split="train")
    for name, where in (("y.json", "y.json: "), ("y.jsonl", "y.jsonl, line 1: ")):
        for text in ("9" * 5000, "[" * 100_000 + "]" * 100_000):
            (tmp_path / name).write_text(text)
            with pytest.raises(EnvDataError, match=f"{where}not JSON that can be read"):
                make(problems=[str(tmp_path / name)], split="train")
    twice = write(tmp_path / "twice.jsonl", record(), record())
    with pytest.raises(EnvDataError, match="record 1: task 'train/easy/sum' occurs twice"):
        make(problems=[twice], split="train")
    nameless = write(tmp_path / "some.jsonl", HUB)
    with pytest.raises(EnvDataError, match="which split"):
        make(problems=[nameless], layout="codecontests", split="train")
    for options, match in (
        ({"layout": "csv"}, "env.options.layout = 'csv'"),
        ({"layout": "mbpp"}, "env.options.problems"),
        ({"problems": "x.jsonl"}, "env.options.problems = 'x.jsonl'"),
        ({"num_tests": -1}, "env.options.num_tests = -1"),
        ({"time_limit": 0}, "env.options.time_limit = 0"),
        ({"memory_mb": 1}, "env.options.memory_mb = 1"),
        ({"mechanism": "docker"}, "env.options.mechanism = 'docker'"),
        ({"workers": "two"}, "env.options.workers = 'two'"),
    ):
        with pytest.raises(EnvDataError, match=match):
            make(**options)


# -- real files ------------------------------------------------------------------------------------
@needs_data
@pytest.mark.slow
def test_humaneval_references():
    path = f"{DATA}/humaneval/HumanEval.jsonl.gz"
    env = make(problems=[path], layout="humaneval", split="test", time_limit=10.0)
    assert len(env.tasks) == 164
    passed = [bool(env.solve(env.reset(t.task_id)[0])) for t in env.tasks]
    assert sum(passed) == 164
    cheats = [(env.reset(t.task_id)[0], cheat) for t in env.tasks for cheat in CHEATS[:3]]
    assert not any(result.success for _, result in env.step_many(cheats))


# Written for this test: the sample file has no solutions of its own.
SOLUTIONS = {
    2: "from collections import deque, defaultdict\ns = input().strip()\np = defaultdict(list)\n"
    "for i, c in enumerate(s): p[c].append(i)\nd = {0: 0}\nq = deque([0])\nwhile q:\n    i = q.popleft()\n"
    "    for j in p.pop(s[i], []) + [i - 1, i + 1]:\n"
    "        if 0 <= j < len(s) and j not in d:\n            d[j] = d[i] + 1\n            q.append(j)\n"
    "print(d[len(s) - 1])",
    3: "from collections import Counter\nn = int(input())\na = Counter(input().strip() for _ in range(n))\n"
    "b = Counter(input().strip() for _ in range(n))\nprint(sum((a - b).values()))",
    5: "import sys\nd = sys.stdin.read().split()\nn = int(d[0])\np = list(map(float, d[1:n + 1]))\n"
    "e = [(int(d[i]), int(d[i + 1])) for i in range(n + 1, 3 * n - 1, 2)]\nk = 3 * n\n"
    "parent = [[] for _ in range(n)]\n"
    "for a, b in e:\n    parent[a].append(b)\n    parent[b].append(a)\n"
    "alive = [1 - x for x in p]\ntotal = sum(alive) - sum(alive[a] * alive[b] for a, b in e)\n"
    "for i in range(k, len(d) - 1, 2):\n    v, x = int(d[i]), 1 - float(d[i + 1])\n"
    "    change = x - alive[v]\n    total += change * (1 - sum(alive[u] for u in parent[v]))\n"
    "    alive[v] = x\n    print(total)",
    9: "import sys\nd = list(map(int, sys.stdin.read().split()))\nn, k = d[:2]\ng = list(range(n + 1))\n"
    "def find(x):\n    while g[x] != x:\n        g[x] = g[g[x]]\n        x = g[x]\n    return x\n"
    "for i in range(2, 3 * n - 1, 3):\n    if d[i + 2] == 0: g[find(d[i])] = find(d[i + 1])\n"
    "size = {}\nfor x in range(1, n + 1): size[find(x)] = size.get(find(x), 0) + 1\n"
    "m = 10**9 + 7\nprint((pow(n, k, m) - sum(pow(s, k, m) for s in size.values())) % m)",
}


@needs_data
@pytest.mark.slow
def test_real_codecontests_problems(tmp_path):
    records = []
    for line in (
        (Path(DATA) / "codecontests_samples/code_contests_10.jsonl").read_text().splitlines()
    ):
        sample = json.loads(line)
        tests = [(t["input"]["stdin"], t["output"]["stdout"]) for t in json.loads(sample["test"])]
        inputs, outputs = map(list, zip(*tests))
        records.append({"description": sample["content"], "source": 2,
                        "public_tests": {"input": inputs[:2], "output": outputs[:2]},
                        "private_tests": {"input": inputs[2:], "output": outputs[2:]}})  # fmt: skip
    path = write(tmp_path / "test.jsonl", *records)
    env = make(problems=[path], layout="codecontests", split="test", num_tests=0, time_limit=10.0)
    assert len(env.tasks) == 10
    for number, program in SOLUTIONS.items():
        _, (result,) = play(env, program, number=number)
        assert result.success, (number, result.observation)
        _, (result,) = play(env, "print(0)", number=number)
        assert not result.success
