"""Phases and their blocks: divided among processes (threads stand in for these, over the real
connections), damaged in every way, and made again."""

import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import jax
import pytest
from etils import epath

from envs.base import Task
from leafe_jax.errors import UserError
from leafe_jax.run import blocks
from leafe_jax.run.blocks import Blocks, run_blocks
from leafe_jax.run.config import RunConfig
from leafe_jax.run.phase import Phase
from leafe_jax.run.presets import load_config
from leafe_jax.runtime import files, processes, roll, sources
from leafe_jax.runtime.progress import Progress

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def several(monkeypatch):
    """several(count, run): run(number) in as many threads, each a process of its own."""

    class Mine(threading.local):  # as in a run of one process, outside of `start`
        number, count, peers = 0, 1, processes._Peers(0, 1, {})

    mine = Mine()
    monkeypatch.setattr(jax, "process_index", lambda: mine.number)
    monkeypatch.setattr(jax, "process_count", lambda: mine.count)
    monkeypatch.setattr(
        processes, "together",
        lambda what, value=None, decide=None, seconds=60, meanwhile=None: mine.peers.meet(
            what, value, decide, seconds, meanwhile
        ),
    )  # fmt: skip

    def start(count, run):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        problems = []

        def one(number):
            mine.number, mine.count = number, count
            place, sockets = ("127.0.0.1", port), {}
            if count > 1 and number:
                sockets = {0: roll.answer(place, count, number, "run", 20)}
            elif count > 1:
                sockets = roll.call(place, count, "run", 20)
            mine.peers = processes._Peers(number, count, sockets)
            try:
                run(number)
                mine.peers.meet("end", None, None, 60, None)
            except BaseException as problem:
                problems.append(problem)
            mine.peers.leave()

        threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
        assert not problems and not any(t.is_alive() for t in threads), problems

    return start


def config():
    return RunConfig.read(load_config("quickstart", "smoke"))


def blocks_of(directory, ids, size) -> Blocks:
    tasks = [Task(task_id=name, family="f", split="train") for name in ids]
    return Blocks(
        Phase(epath.Path(directory), "trees/tree", config()), tasks, size, "{:04d}.json",
        lambda file: files.read_json(file).get("tasks", []),
    )  # fmt: skip


def play(several, directory, count, ids, size, pause=lambda number: 0.0):
    """({block: process that made it}, blocks logged, what the first bar counted)."""
    made, logged, counted = {}, [], []

    def run(number):
        bar = Progress(len(ids), "task", "explore", shown=False)
        blocks = blocks_of(directory, ids, size)
        missing = blocks.missing()
        blocks.phase.begin()

        def work(block, file):
            time.sleep(pause(number))
            made[int(file.stem)] = number
            files.write_json(file, {"tasks": [task.task_id for task in block]})
            bar.update(2 * len(block))

        run_blocks(
            blocks, missing, work, bar=bar, units=2,
            log=lambda index, file: logged.append((index, files.read_json(file)["tasks"])),
        )  # fmt: skip
        blocks.phase.finish()
        if number == 0:
            counted.append(bar.count)

    several(count, run)
    return made, logged, counted


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_block_is_made_once_by_turns(several, tmp_path, count):
    tasks = [f"task {n}" for n in range(11)]
    made, logged, counted = play(
        several, tmp_path, count, tasks, 3, pause=lambda number: 0.1 * (number == 0)
    )
    assert made == {block: block % count for block in range(4)}
    assert logged == [(n, tasks[3 * n : 3 * n + 3]) for n in range(4)], "in order, whoever is slow"
    assert counted == [22]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 4)])
def test_another_number_of_processes_goes_on(several, tmp_path, before, after):
    tasks = [f"task {n}" for n in range(10)]
    play(several, tmp_path, before, tasks, 2)
    record = tmp_path / "trees" / "tree" / "phase.json"
    # Killed in the middle: two blocks are not there, and one has come after the record was written.
    files.write_json(record, files.read_json(record) | {"done": False, "files": {}})
    for block in (1, 2):
        (tmp_path / "trees" / "tree" / f"{block:04d}.json").unlink()
    made, logged, counted = play(several, tmp_path, after, tasks, 2)
    assert made == {1: 0, 2: 1 % after}
    assert [index for index, _ in logged] == [0, 1, 2, 3, 4] and counted == [20]
    again, _, _ = play(several, tmp_path, before, tasks, 2)
    assert again == {}


def test_a_file_that_never_shows(tmp_path):
    file = epath.Path(tmp_path) / "0001.json"
    with pytest.raises(UserError, match="0001.json: made by another process, but not seen"):
        blocks._await_files([file], seconds=0)
    file.write_text("")
    blocks._await_files([file], seconds=0)


# -- damage ----------------------------------------------------------------------------------------
IDS = [f"task {n}" for n in range(5)]


@pytest.fixture
def explored(several, tmp_path):
    """The directory of a finished phase of three blocks."""
    play(several, tmp_path, 1, IDS, 2)
    return tmp_path / "trees" / "tree"


def forget_checksums(directory):
    """Makes the record of a moment at which no block had a checksum yet."""
    record = files.read_json(directory / "phase.json")
    record["files"] = {}
    files.write_json(directory / "phase.json", record)


DAMAGE = {
    "empty": lambda f: f.write_bytes(b""),
    "cut": lambda f: f.write_bytes(f.read_bytes()[:-9]),
    "zeros": lambda f: f.write_bytes(bytes(len(f.read_bytes()))),
    "zeros at the end": lambda f: f.write_bytes(f.read_bytes() + bytes(100)),
    "latin": lambda f: f.write_bytes(b'{"tasks": ["\xe9"]}'),
    "a list": lambda f: f.write_text("[1, 2]"),
    "another field": lambda f: f.write_text('{"task": []}'),
    "deep": lambda f: f.write_text("[" * 100_000),
    "a task less": lambda f: f.write_text('{"tasks": ["task 2"]}'),
    "a task twice": lambda f: f.write_text('{"tasks": ["task 2", "task 2"]}'),
    "another block": lambda f: shutil.copy(f.with_name("0000.json"), f),
    "a directory": lambda f: (f.unlink(), f.mkdir()),
    "a pipe": lambda f: (f.unlink(), os.mkfifo(f)),
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_block_is_put_aside_and_made_again(several, explored, how, older, caplog):
    before = {p.name: p.read_bytes() for p in explored.glob("0*.json")}
    if older:
        forget_checksums(explored)
    DAMAGE[how](explored / "0001.json")
    with pytest.raises(UserError, match=r"0001\.json.*put 'explore' into --config.phases"):
        list(blocks_of(explored.parents[1], IDS, 2))
    made, _, _ = play(several, explored.parents[1], 1, IDS, 2)
    assert list(made) == [1] and (explored / "0001.json.damaged").exists()
    assert {p.name: p.read_bytes() for p in explored.glob("0*.json")} == before
    assert [r.message for r in caplog.records if "0001.json" in r.message and "again" in r.message]
    assert play(several, explored.parents[1], 1, IDS, 2)[0] == {}


def test_changed_content_is_seen_by_its_checksum(several, explored):
    file = explored / "0001.json"
    file.write_text(file.read_text() + " ")  # the same tasks
    assert list(play(several, explored.parents[1], 1, IDS, 2)[0]) == [1]


def test_a_missing_block_is_made_again(several, explored):
    (explored / "0002.json").unlink()
    assert list(play(several, explored.parents[1], 1, IDS, 2)[0]) == [2]


def test_stray_copies_do_not_count(explored):
    for name in ("0001 (copy).json", "0001.json~", "0099.json", "0003.json", "0000.json.partial"):
        shutil.copy(explored / "0001.json", explored / name)
    found = list(blocks_of(explored.parents[1], IDS, 2))
    assert [file.name for file in found] == ["0000.json", "0001.json", "0002.json"]


def test_other_tasks_are_refused(explored):
    with pytest.raises(UserError, match="other content of the environment's list of tasks"):
        blocks_of(explored.parents[1], [*IDS[:4], "another"], 2)


def test_blocks_without_a_record_are_refused(explored):
    (explored / "phase.json").unlink()
    with pytest.raises(UserError, match=r"phase\.json: missing, but there are blocks"):
        blocks_of(explored.parents[1], IDS, 2).missing()


def record(**changes) -> str:
    whole = {"schema": 4, "phase": "trees/tree", "done": True, "config": {}, "seconds": 1.0,
             "files": {}, "made_of": {}, "made_by": []}  # fmt: skip
    return json.dumps(whole | changes)


RECORDS = {
    "": "not JSON",
    "{": "not JSON",
    "[]": "expected an object, found list",
    "\0" * 40: "not JSON",
    "[" * 100_000: "nested too deeply",
    '{"done": true}': "field 'schema' is missing",
    record(schema=9): "schema = 9: must be 4",
    record(schema=3): "schema = 3: must be 4; the workdir was made by another version",
    record(done=1): "done = 1: must be true or false",
    record(config=[]): "config = []: must be an object",
    record(
        made_by=[{"commit": 1}]
    ): "made_by = [{'commit': 1}]: must be a list of versions of the code",
    record(seconds=float("nan")): "seconds = nan: must be",
    '{"phase": "explore", "done": true, "done": true}': "done: named twice",
}


@pytest.mark.parametrize("text", RECORDS, ids=range(len(RECORDS)))
def test_a_damaged_record_is_named(explored, text):
    (explored / "phase.json").write_text(text)
    with pytest.raises(UserError) as caught:
        Phase(epath.Path(explored.parents[1]), "trees/tree", config())
    message = str(caught.value)
    assert f"{explored}/phase.json: " in message and RECORDS[text] in message
    assert "\n" not in message


# -- which code has worked in it -------------------------------------------------------------------
def test_each_start_that_works_notes_its_code(several, tmp_path, monkeypatch):
    """The code that was loaded when it ran; a start with nothing to do notes none."""
    codes = [
        {"version": "0.1.0", "commit": c * 40, "dirty": False, "sources": c * 12} for c in "abc"
    ]
    record = tmp_path / "trees" / "tree" / "phase.json"

    def made_by(code, count=1, lose=()):
        monkeypatch.setattr(sources, "code", lambda: code)
        for block in lose:
            (record.parent / f"{block:04d}.json").unlink()
        blocks = blocks_of(tmp_path, IDS, 2)
        if record.exists() and not lose:
            assert blocks.missing() == []
        else:
            play(several, tmp_path, count, IDS, 2)
        return json.loads(record.read_text())["made_by"]

    assert made_by(codes[0], count=2) == codes[:1]
    assert made_by(codes[1]) == codes[:1]
    assert made_by(codes[1], lose=[1]) == codes[:2]
    assert made_by(codes[0], lose=[0]) == codes[:2]
    assert made_by(codes[2], lose=[0, 2], count=3) == codes
