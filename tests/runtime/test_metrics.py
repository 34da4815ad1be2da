"""metrics.jsonl after kills and resumes: no line is doubled, lost or incomplete."""

import errno
import json
import os
import re
import time

import pytest

from leafe_jax.errors import UserError
from leafe_jax.runtime import stopping
from leafe_jax.runtime.metrics import Metrics, code_block


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def events(directory):
    """All values of the event files: a record is length, crc, payload, crc."""
    from tensorboardX.proto import event_pb2  # here: Metrics has imported it without torch

    found = []
    for path in (directory / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found += [(event.step, value) for value in event.summary.value]
            data = data[16 + size :]
    return found


def test_lines_and_events_hold_the_same_values(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.scalars(3, {"distill/loss": 0.5, "distill/grad_norm": 2})
        assert lines(tmp_path) == [{"step": 3, "distill/loss": 0.5, "distill/grad_norm": 2.0}]
        metrics.scalars(4, {"distill/loss": float("nan"), "distill/grad_norm": 1.0})
    assert lines(tmp_path)[1] == {"step": 4, "distill/loss": None, "distill/grad_norm": 1.0}
    written = {(step, value.tag): value.simple_value for step, value in events(tmp_path)}
    assert written[3, "distill/loss"] == 0.5 and written[3, "distill/grad_norm"] == 2.0
    assert (4, "distill/loss") not in written and written[4, "distill/grad_norm"] == 1.0


def test_a_text_is_shown_verbatim(tmp_path):
    text = "# no title\n<img src=x>\n\U0001f600"
    with Metrics(tmp_path) as metrics:
        metrics.text(1, "explore/tree", text)
    ((step, value),) = events(tmp_path)
    shown = value.tensor.string_val[0].decode()
    assert step == 1 and shown == "    # no title\n    <img src=x>\n    \U0001f600\n"
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n", "\n\r", "\r\r"])
def test_no_line_of_a_text_leaves_its_code_block(end):
    """TensorBoard's Markdown ends lines at carriage returns, and loads images from anywhere."""
    text = f"first{end}![x](http://example.org/x.png){end}"
    for line in re.split("[\r\n]", code_block(text)):
        assert line == "" or line.startswith("    ")


@pytest.mark.parametrize(
    "character", "\x00\x02\x03\x0b\x0c\x1b\x1c\x1d\x1e\x85\u2028\u2029\u202e\ud800"
)
def test_control_characters_are_escaped(character):
    block = code_block(f"a{character}b")
    assert block.isascii() and block.count("\n") == 1 and len(block.splitlines()) == 1


def test_a_resumed_phase_replaces_its_own_later_lines(tmp_path):
    with Metrics(tmp_path) as metrics:
        for step in range(4):
            metrics.scalars(step, {"explore/solved": step})
            metrics.scalars(step, {"distill/loss": 1.0})
    with Metrics(tmp_path) as metrics:
        metrics.scalars(1, {"explore/solved": 5.0})
        metrics.scalars(2, {"explore/solved": 6.0})
    kept = lines(tmp_path)
    assert [r["explore/solved"] for r in kept if "explore/solved" in r] == [0.0, 5.0, 6.0]
    assert [r["step"] for r in kept if "distill/loss" in r] == [0, 1, 2, 3]


def test_every_cut_of_the_file_is_repaired(tmp_path):
    """A kill may leave any number of bytes of the last line, even all but its newline."""
    path = tmp_path / "metrics.jsonl"
    first, last = '{"step": 0, "a/x": 1.0}\n', '{"step": 1, "a/x": 2.0}\n'
    for cut in range(len(last) + 1):
        path.write_text(first + last[:cut])
        with Metrics(tmp_path):
            pass
        with Metrics(tmp_path) as metrics:
            metrics.scalars(2, {"a/x": 3.0})
        steps = [line["step"] for line in lines(tmp_path)]
        assert steps == ([0, 1, 2] if cut >= len(last) - 1 else [0, 2]), cut


def test_a_broken_line_in_the_middle_costs_that_line_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "a/x": 1.0}\n17\n\xff{\n[]\n{"step": 1, "b/x": 2.0}\n')
    with Metrics(tmp_path):
        pass
    assert lines(tmp_path) == [{"step": 0, "a/x": 1.0}, {"step": 1, "b/x": 2.0}]


def test_a_line_that_is_nested_deeply_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "a/x": 1.0}\n' + "[" * 100_000 + "\n")
    with Metrics(tmp_path) as metrics:
        assert metrics.last_step("a") == 0
    assert lines(tmp_path) == [{"step": 0, "a/x": 1.0}]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_something_else_in_place_of_the_lines_is_one_error(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(
        UserError, match=r"metrics.jsonl: cannot be read: not a regular file|Is a dir"
    ):
        Metrics(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text("")])
def test_something_else_in_place_of_the_events_is_one_error(tmp_path, make):
    make(tmp_path / "tensorboard")
    with pytest.raises(UserError, match="tensorboard: cannot be written: File exists"):
        Metrics(tmp_path)


def test_a_fifo_that_is_left_does_not_block_the_repair(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl.partial")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "a/x": 1.0}\n{"st')
    with Metrics(tmp_path):
        pass
    assert lines(tmp_path) == [{"step": 0, "a/x": 1.0}]


def test_a_run_with_nothing_to_do_touches_no_file(tmp_path):
    with Metrics(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "a/x": 1.0}\n')
    before = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    with Metrics(tmp_path):
        pass
    assert (tmp_path / "metrics.jsonl").stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_writer_that_dies_ends_the_run(tmp_path):
    """TensorBoard's events are written by a thread."""

    def full(event):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left on device"):
        with stopping.handlers(lambda line, code: None), Metrics(tmp_path) as metrics:
            metrics.scalars(0, {"a/loss": 1.0})
            worker = metrics._tensorboard().file_writer.event_writer._worker
            worker._record_writer.write_event = full
            metrics.scalars(1, {"a/loss": 1.0})
            time.sleep(20)
