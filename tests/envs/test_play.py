"""The terminal player, through pipes and a pseudo-terminal, as a person starts it."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import envs
from envs import play
from envs.base import Environment, State, StepResult, Task

ROOT = str(Path(__file__).resolve().parents[2])


def start(*arguments, typed="", code=0):
    """(standard output, standard error) of the program."""
    done = subprocess.run(
        [sys.executable, "-m", "envs.play", *arguments], input=typed, capture_output=True,
        text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def answers(out):
    """What was shown after the opening and after each line."""
    return [part.strip("\n") for part in out.split("\n> ")]


def test_a_level_is_played_to_its_end_with_the_experts_hints():
    env = envs.make("sokoban")
    task = env.list_tasks("test")[3]
    state, first = env.reset(task.task_id)
    plan = env.solve(state)
    typed = [":hint", *plan, "up", ":undo", ":hint", ":restart", ":actions", ":what", ":quit"]
    out, err = start("--env=sokoban", "--split=test", "--task=3", typed="\n".join(typed))
    shown = answers(out)
    assert err == "" and shown[0].startswith(f"sokoban, task {task.task_id}\n")
    assert shown[0].endswith(first)
    assert shown[1] == f"{plan[0]}   ({len(plan)} actions to the goal)"
    total = 0.0
    for number, name in enumerate(plan):
        state, result = env.step(state, name)
        total += result.reward
        board, _, score = shown[2 + number].rpartition("\n")
        assert board == result.observation
        assert score.startswith(
            f"step {number + 1} of 15, reward {result.reward:g}, in all {total:g}"
        )
    assert state.success and score.endswith("; solved")
    after = shown[2 + len(plan) :]
    assert after[0] == "The episode is over; :undo, :restart or :quit."
    assert after[1] == shown[len(plan)].rpartition("\n")[0] or len(plan) == 1
    assert after[2] == f"{plan[-1]}   (1 actions to the goal)"
    assert after[3] == first
    assert after[4].split() == ["up", "down", "left", "right"]
    assert after[5].startswith(":what: no such command.")
    assert len(after) == 7


def test_undo_stops_at_the_start_and_a_strange_reply_is_said_to_be_strange():
    out, _ = start("--env=sokoban", typed=":undo\n\nnörth ☃\n:UNDO\n:undo")
    shown = answers(out)
    assert shown[1] == "This is the start."
    assert shown[2].startswith("> ")  # the empty line is no action
    assert shown[2].endswith("step 0 of 15, reward -0.1, in all -0.1; not understood")
    assert shown[3] in shown[0] and "stays there" in shown[3] and "reward" not in shown[3]
    assert shown[4] == "This is the start." and shown[5] == "" and len(shown) == 6


def test_options_and_task_ids_reach_the_environment():
    out, _ = start(
        "--env=sokoban", "--task=train/sokoban-7x6-2/0001", "--split=train",
        '--options={"size": [7, 6], "num_boxes": 2, "horizon": 40}', typed="up\n",
    )  # fmt: skip
    board = [line for line in answers(out)[1].splitlines() if "\t" in line]
    assert len(board) == 6 and all(line.count("\t") == 7 for line in board)
    assert "step 1 of 40" in out


def test_list_prints_sizes_and_hashes():
    env = envs.make("code")  # the game whose tasks are listed soonest
    out, _ = start("--env=code", "--list")
    rows = [line.split() for line in out.splitlines()]
    assert rows == [
        [s, str(len(env.list_tasks(s))), "tasks", "hash", env.split_hash(s)] for s in env.splits
    ]
    assert [r[:2] for r in rows][:3] == [["train", "89"], ["valid", "16"], ["test", "34"]]
    assert start("--env=code", "--list", "--split=valid")[0] == out.splitlines()[1] + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: --env"),
        (("--env=chess",), "env.name = 'chess': must be one of "),
        (("--env=sokoban", "--split=dev"), "sokoban split 'dev': must be one of train, valid, test"),
        (("--env=sokoban", "--task=128"), "--task=128: split 'test' has the tasks 0 to 127"),
        (("--env=sokoban", "--task=-1"), "--task=-1: split 'test'"),
        (("--env=sokoban", "--task=" + "9" * 5000), "split 'test' has the tasks"),
        (("--env=sokoban", "--task=train/sokoban-6x6-1/0000"), "split 'test' has the tasks"),
        (("--env=sokoban", "--options={"), "not JSON"),
        (("--env=sokoban", "--options=" + "[" * 9999 + "]" * 9999), "not JSON"),
        (("--env=sokoban", "--options=[1]"), "must be an object"),
        (("--env=sokoban", '--options={"split": "test"}'), "'split' is not an option"),
        (("--env=sokoban", '--options={"sise": 3}'), "sokoban has no option 'sise'; it has horizon, "),
        (("--env=sokoban", '--options={"size": [3, 3]}'), "env.options.size = (3, 3)"),
        (("--env=alfworld", '--options={"games": 5}'), "env.options.games = 5: must be a list of paths"),
        (("--env=code", '--options={"mechanism": []}'), "env.options.mechanism = []: must be one of"),
        (("--env=sokoban", "stray"), "unrecognized arguments: stray"),
        (("--env=sokoban", '--options={"levels": ["/no\\nwhere"]}'), "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_input_gives_one_line(arguments, message):
    out, err = start(*arguments, code=2)
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err and "Traceback" not in err


def test_programs_are_typed_line_by_line_and_hints_as_they_are_shown():
    program = ["", "import sys", "for line in sys.stdin:", "    if line:", "", "        pass  "]
    first = ["--env=code", '--options={"layout": "drills", "allow_weak": true}', "--split=test"]
    shown = answers(start(*first, typed=":hint\n:nothing\n:quit\n")[0])
    hint = shown[1].split("\n")
    assert hint[-1] == "." and len(hint) > 1 and "a full stop alone" in shown[2]
    typed = "\n".join([*program, ".", "x = [", ".", ":undo", *hint, "print("])
    out, err = start(*first, typed=typed)
    shown = answers(out)[1:]
    assert err == "" and "Compile error" not in shown[0] and "step 1 of 4" in shown[0]
    assert "Compile error" in shown[1] and "step 2 of 4" in shown[1]
    assert shown[2] == shown[0].removeprefix("| " * len(program)).rpartition("\n")[0]
    assert shown[3].endswith("step 2 of 4, reward 1, in all 1; solved")
    assert len(shown) == 5 and shown[4].replace("| ", "") == ""  # half a program is not played


def test_a_program_reaches_the_environment_as_it_was_typed(monkeypatch):
    env = Hostile()
    env.programs = True
    played = []
    monkeypatch.setattr(envs, "make", lambda name, **options: env)
    monkeypatch.setattr(Hostile, "_step", lambda self, state, action: (
        played.append(action) or (state, StepResult("x", 0.0, False, False))))  # fmt: skip
    typed = ["", "  a  ", ":b", "..", "", ".", ".", ":quit"]
    lines = iter(typed)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert play.main(["--env=hostile"]) == 0
    assert played == ["\n  a  \n:b\n..\n", ""]


class Hostile(Environment):
    """Says what a terminal would obey, has nothing to propose and takes no hint."""

    name = "hostile"
    splits = ("only",)

    def __init__(self, horizon=3):
        super().__init__(horizon)
        self.closed = False

    def _list_tasks(self, split):
        return [Task("only/\x1b[5m/0", "x", "only")]

    def _reset(self, task_id):
        return State(task_id), "clear \x1b[2J bell \x07 back \x08 lone \ud800 \x9b1m\u202e end"

    def _step(self, state, action):
        return state, StepResult(f"{action!r}\r\x1b]0;title\x07", -1.0, False, False)

    def actions(self, state):
        return ("\x1b[31m",)

    def solve(self, state):
        return None

    def close(self):
        self.closed = True


def test_control_characters_of_an_environment_do_not_reach_the_terminal(monkeypatch, capsys):
    env = Hostile()
    monkeypatch.setattr(envs, "make", lambda name, **options: env)
    lines = iter(["any\x00thing", ":actions", ":hint", "2", "3", "4", ":hint"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, ":quit"))
    assert play.main(["--env=hostile"]) == 0 and env.closed
    out = capsys.readouterr().out
    assert not {c for c in out if not c.isprintable()} - {"\n", "\t"}
    assert "clear \\x1b[2J bell \\x07" in out and "\\u202e end" in out and "lone \ufffd" in out
    assert out.startswith("hostile, task only/\\x1b[5m/0\n") and "\\x1b[31m" in out
    assert "The expert knows no way" in out and out.count("over, not solved") == 1
    assert "The episode is over; :undo" in out


def test_control_characters_in_errors_do_not_reach_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(envs, "make", lambda name, **options: Hostile())
    assert play.main(["--env=hostile", "--task=\x1b]0;x\x07"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        r"error: --task=\x1b]0;x\x07: split 'only' has the tasks 0 to 0, or ids such as"
    )
    assert err.endswith("\\x1b[5m/0\n") and err[:-1].isprintable()


def test_at_a_terminal_with_an_interrupt():
    controller, terminal = pty.openpty()

    def own_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # Ignored, and inherited so, where the tests themselves run in the background.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    game = subprocess.Popen(
        [sys.executable, "-m", "envs.play", "--env=sokoban"], stdin=terminal, stdout=terminal,
        stderr=terminal, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT}, start_new_session=True,
        preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(terminal)

    def until(text, seen=""):
        while text not in seen:
            seen += os.read(controller, 4096).decode(errors="replace")
        return seen

    try:
        assert "Goal: every box" in until("> ")
        os.write(controller, b"up\n\xff\n")
        assert "not understood" in until("not understood")
        os.write(controller, b"\x03")  # Ctrl-C
        assert game.wait(timeout=300) == 130
    finally:
        game.kill()
        os.close(controller)


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m envs.play --env=sokoban --list | head -c 1", shell=True,
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    assert done.stdout == "t" and done.stderr == ""


def test_playing_loads_no_model_library():
    code = "import sys, envs.play; envs.play.main(['--env=code', '--list']);" \
        " print({'jax', 'numpy', 'leafe_jax'} & {m.split('.')[0] for m in sys.modules})"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": ROOT})  # fmt: skip
    assert done.stdout.splitlines()[-1] == "set()", done.stdout + done.stderr
