"""Progress with and without a terminal, with a simulated clock."""

import io
import sys
import threading

import pytest

from leafe_jax.runtime import progress
from leafe_jax.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_without_a_terminal(clock, capsys):
    with Progress(100, "tree", "explore") as bar:
        for number in range(100):
            bar.update(1, solved=number // 2)
            clock[0] += 0.5
    text = capsys.readouterr().err
    written = text.splitlines()
    assert "\r" not in text and "\x1b" not in text
    assert written[0] == "explore: 1/100 trees, ? a second, solved 0"
    # 2 per second: lines at 0, 10, 20, 30 and 40 seconds, and a last one.
    assert [line.split("/")[0] for line in written] == [
        f"explore: {n}" for n in (1, 21, 41, 61, 81, 100)
    ]
    assert written[2] == "explore: 41/100 trees, 2.0 a second, 30 s left, solved 20"
    assert written[-1] == "explore: 100/100 trees, 2.0 a second, took 50 s, solved 49"


def test_work_done_before_a_resume_does_not_count_for_the_rate(clock, capsys):
    with Progress(1, "step", "distill") as bar:
        clock[0] += 30  # loading
        bar.to(500, 1000)
        bar.update(100)  # more that was done before
        for _ in range(40):
            clock[0] += 3
            bar.update(1)
    written = capsys.readouterr().err.splitlines()
    assert written[0] == "distill: 500/1000 steps, ? a second"
    assert "604/1000 steps, 0.33 a second, 20 min left" in written[1]
    assert written[-1] == "distill: 640/1000 steps, 0.33 a second, took 2 min"


def test_a_stall_lowers_the_rate(clock, capsys):
    with Progress(1000, "step", "distill") as bar:
        for seconds in [1] * 60 + [20] * 30:
            clock[0] += seconds
            bar.update(1)
    assert "0.05 a second" in capsys.readouterr().err.splitlines()[-2]


def test_no_line_divides_by_zero(capsys):
    with Progress(0, "task", "empty"):
        pass
    with pytest.raises(RuntimeError), Progress(3, "task", "failing") as bar:
        bar.update(1)
        raise RuntimeError
    text = capsys.readouterr().err
    assert "empty: 0/0 tasks" in text and "failing: 1/3 tasks, ? a second, took 0 s" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (11_100, "3 h 05 min")],
)
def test_durations(seconds, words):
    assert progress._duration(seconds) == words


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(1, "step", "distill") as bar:
        bar.to(0, 4)
        bar.update(4, loss=0.25)
    text = screen.getvalue()
    assert "distill: 100%" in text and "4/4" in text and "loss=0.25" in text
    assert "a second" not in text


def test_a_bar_has_no_thread(monkeypatch):
    """tqdm's monitor would die with the terminal, and the run with it."""
    monkeypatch.setattr(progress.tqdm, "monitor", None)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    before = threading.enumerate()
    with Progress(3, "tree", "explore") as bar:
        bar.update(1)
        assert threading.enumerate() == before
    assert "explore" in terminal.getvalue()


def test_a_clock_that_is_set_back(clock, capsys):
    with Progress(100, "tree", "explore") as bar:
        bar.update(1)
        clock[0] -= 3600
        bar.update(150)
        clock[0] += 12
        bar.update(1)
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 4 and "-" not in text


def test_a_label_moves_no_cursor(capsys):
    with Progress(1, "tree", "\x1b[2Jexplore") as bar:
        bar.update(1, solved="\r\x1b[A")
    err = capsys.readouterr().err
    assert err.replace("\n", "").isprintable() and len(err.splitlines()) == 2


@pytest.mark.parametrize("columns", ["0", "1", "7", "-1", "many"])
def test_a_bar_on_any_terminal(monkeypatch, columns):
    class Gone(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            if len(self.getvalue()) > 40:
                raise OSError(5, "Input/output error")
            return super().write(text)

    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress(0, "step", "distill") as bar:
        for _ in range(3):
            bar.update(5, loss=0.25)
    assert bar.count == 15
