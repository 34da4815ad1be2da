"""Problem files as untrusted input: what they cost is bounded, and each fault is one line."""

import gzip
import json
import os
import time

import pyarrow
import pyarrow.parquet
import pytest

import envs
from envs import files
from envs.base import EnvDataError
from envs.code import data as code_data
from envs.code import files as code_files

OWN = {
    "name": "sum", "band": "easy", "split": "train", "statement": "Add.", "num_public": 1,
    "tests": [{"input": "1 2\n", "output": "3\n"}],
}  # fmt: skip
HUB = {
    "description": "Add.", "source": 2, "split": "train",
    "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
}  # fmt: skip


def refused(path, layout="own"):
    """The message of the error that a file gives."""
    with pytest.raises(EnvDataError) as error:
        for _ in code_data.load(str(path), layout, 10, 0):
            pass
    assert str(error.value).isprintable() and len(str(error.value)) < 2100
    return str(error.value)


@pytest.mark.parametrize(
    "name, block, fault",
    [
        ("zeros.jsonl.gz", b"0" * (1 << 20), "expands to over"),
        ("nul.jsonl.gz", b"\0" * (1 << 20), "expands to over"),
        ("blank.jsonl.gz", b" " * (1 << 20), "expands to over"),
        ("lines.jsonl.gz", b"\n" * (1 << 20), "expands to over"),
        ("list.json.gz", b"[" * (1 << 20), "expands to over"),
        ("many.jsonl.gz", (json.dumps({**HUB, "x": "1" * 10**5}) + "\n").encode() * 10, "expands to over"),
    ],
)  # fmt: skip
def test_what_a_packed_file_unpacks_to_is_bounded(tmp_path, name, block, fault, monkeypatch):
    monkeypatch.setattr(code_files, "MAX_RECORD_BYTES", 1 << 24)
    # As released, four million empty lines are read before it is refused: two seconds by themselves.
    monkeypatch.setattr(files, "_FREE_BYTES", 1 << 20)
    with gzip.open(tmp_path / name, "wb") as file:
        for _ in range(32):  # two times what is allowed; ten thousand times is no different
            file.write(block)
    start = time.thread_time()
    assert fault in refused(tmp_path / name, "codecontests")
    assert time.thread_time() - start < 2  # of this thread: others may be busy


def test_a_long_record_of_a_plain_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(code_files, "MAX_RECORD_BYTES", 1 << 20)
    path = tmp_path / "p.jsonl"
    tests = [{"input": "1" * (1 << 20), "output": "1"}]
    path.write_text(json.dumps(OWN) + "\n" + json.dumps({**OWN, "tests": tests}))
    assert "p.jsonl, line 2: has over 1048576" in refused(path)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "dir.jsonl").mkdir()
    for name in (
        "fifo.jsonl",
        "zero.jsonl",
        "loop.jsonl",
        "dir.jsonl",
        "x" * 5000,
        "a\0b",
        "\x1b[2J",
    ):
        message = refused(tmp_path / name)
        assert "must be a regular file" in message or "cannot be read" in message


@pytest.mark.parametrize(
    "text, fault",
    [
        pytest.param("[" * 10**5 + "]" * 10**5, "not JSON", id="deep"),
        pytest.param('{"name": ' + "[" * 10**5, "not JSON", id="deep and open"),
        pytest.param('{"name": ' + '{"a":' * 900 + "1" + "}" * 901, "field", id="deep objects"),
        pytest.param('{"num_public": ' + "9" * 10**5 + "}", "not JSON", id="long integer"),
        pytest.param('{"split": ' + "9" * 10**4 + ".0}", "too large a number", id="long number"),
        ('{"split": NaN}', "NaN is not a JSON value"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"split": "\xed\xa0\x80"}', "not UTF-8"),
        ("{}", "field 'split' = 'nothing'"),
        ("3", "must be an object with fields, not 3"),
        pytest.param(
            json.dumps("\x1b[2J" * 10**6), "must be an object with fields, not '", id="long text"
        ),
    ],
)
def test_odd_json_is_one_line(tmp_path, text, fault):
    path = tmp_path / "p.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert fault in refused(path)


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", "a\x1b]0;b\x07"), ("name", "a\nb"), pytest.param("name", "x" * 10**5, id="long"),
        ("band", "\x9b2J"), ("band", {"\x1b": "\x1b"}), ("split", "train\x1b"),
        pytest.param("statement", ["\x1b" * 10**6] * 9, id="long"),
        ("num_public", True), ("num_public", 0), ("num_public", 1.0), ("tests", []),
        ("tests", [{"input": "\x1b", "output": 3}]), ("checker", b"".hex), ("reference", {}),
    ],
)  # fmt: skip
def test_odd_fields_are_named_and_shown_without_what_commands_a_terminal(tmp_path, field, value):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**OWN, field: value}, default=lambda _: 1))
    assert f"p.jsonl, record 0: field {field!r} = " in refused(path)


def test_a_bool_is_no_number(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"task_id": True, "text": "x", "test_list": ["assert 1"]}))
    assert "field 'task_id' = True" in refused(path, "mbpp")


def test_a_mark_at_the_start_of_a_file_is_read_over(tmp_path):
    for name, text in (("p.jsonl", json.dumps(OWN)), ("p.json", json.dumps([OWN]))):
        (tmp_path / name).write_text("\ufeff" + text)
        assert len(list(code_data.load(str(tmp_path / name), "own", 10, 0))) == 1


def test_tasks_of_several_codecontests_files_are_numbered_through(tmp_path):
    paths = [str(tmp_path / f"train-{n}.jsonl") for n in range(2)]
    for path in paths:
        with open(path, "w") as file:
            file.write((json.dumps(HUB) + "\n") * 2)
    env = envs.make("code", problems=paths, layout="codecontests", split="train", allow_weak=True)
    assert [t.task_id for t in env.tasks] == [f"train/codeforces/{n:05d}" for n in range(4)]


def test_a_task_that_is_there_twice_is_named_with_both_places(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps(OWN))
    with pytest.raises(EnvDataError, match=r"b.jsonl, record 0: task 'train/easy/sum' occurs twice"
                       r" .*a.jsonl, record 0"):  # fmt: skip
        envs.make("code", problems=[str(tmp_path / n) for n in ("a.jsonl", "b.jsonl")], split="train",
                  allow_weak=True)  # fmt: skip


@pytest.mark.parametrize(
    "option, value",
    [
        ("time_limit", float("nan")), ("time_limit", -1.0), ("time_limit", 1e18),
        pytest.param("time_limit", 10**5000, id="long"), ("time_limit", "\x1b"), ("memory_mb", float("inf")),
        ("memory_mb", [64]), ("num_tests", float("nan")), pytest.param("num_tests", -(10**5000), id="long"), ("layout", "\x1b"),
    ],
)  # fmt: skip
def test_odd_options_are_named(option, value):
    with pytest.raises(EnvDataError, match=f"env.options.{option} = ") as error:
        envs.make("code", **{option: value})
    assert str(error.value).isprintable()


def test_damaged_parquet_files_are_one_line(tmp_path):
    path = tmp_path / "p.parquet"

    def write(table):
        pyarrow.parquet.write_table(table, path)

    write(pyarrow.Table.from_pylist([{**HUB, "description": b"\xff"}]))
    assert "field 'description' = b'\\xff'" in refused(path, "codecontests")
    write(pyarrow.table({"t": pyarrow.array([2**52], pyarrow.timestamp("ms"))}))
    assert "cannot be read" in refused(path, "codecontests")  # a date that Python has not
    buffers = [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    write(pyarrow.table({"description": pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)}))
    assert "cannot be read" in refused(path, "codecontests")  # a string that is not UTF-8
    path.write_bytes(b"")
    assert "cannot be read" in refused(path, "codecontests")
