"""Blocks divided among processes: threads stand in for these, over the real connections."""

import json
import socket
import threading
import time

import jax
import pytest
from etils import epath

from leafe_jax import phase, processes
from leafe_jax.progress import Progress


@pytest.fixture
def several(monkeypatch):
    """several(count, run): run(number) in as many threads, each a process of its own."""
    mine = threading.local()
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
            call = processes._answer_roll if number else processes._call_roll
            sockets = call("127.0.0.1", port, count, number, 20) if count > 1 else {}
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


class Recorder:
    """A phase that counts seconds in the first process only, as the real one."""

    def __init__(self, directory):
        self.name, self.directory, self.seconds = "explore", epath.Path(directory), 0.0

    def add_seconds(self, seconds):
        self.seconds += seconds


def play(several, directory, count, tasks, size, pause=lambda number: 0.0):
    """({block: process that made it}, blocks logged, what the first bar counted)."""
    made, logged, counted = {}, [], []

    def run(number):
        bar = Progress(len(tasks), "task", "explore", shown=False)

        def work(block, file):
            time.sleep(pause(number))
            made[int(file.stem)] = number
            file.write_text(json.dumps(block))
            bar.update(2 * len(block))

        phase.run_blocks(
            Recorder(directory), tasks, size, "{:04d}.json", work, bar=bar, units=2,
            log=lambda index, file: logged.append((index, json.loads(file.read_text()))),
        )  # fmt: skip
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
    tasks = list(range(10))
    for block in (0, 3, 4):  # left by a run of `before`, whatever it was
        (tmp_path / f"{block:04d}.json").write_text(json.dumps(tasks[2 * block : 2 * block + 2]))
    made, logged, counted = play(several, tmp_path, after, tasks, 2)
    assert made == {1: 0, 2: 1 % after}
    assert [index for index, _ in logged] == [0, 1, 2, 3, 4] and counted == [20]
    again, _, _ = play(several, tmp_path, before, tasks, 2)
    assert again == {}


def test_a_file_that_never_shows(tmp_path):
    file = epath.Path(tmp_path) / "0001.json"
    with pytest.raises(phase.UserError, match="0001.json: made by another process, but not seen"):
        phase._await_files([file], seconds=0)
    file.write_text("")
    phase._await_files([file], seconds=0)
