"""Sokoban rules against hand-computed cases and a brute-force solver; level files."""

import os
import time
from pathlib import Path

import pytest

import envs
from envs.base import EnvDataError
from envs.sokoban.environment import render
from envs.sokoban.levels import parse_levels

LEVEL = """; 7
#####
#@$.#
#   #
#####
"""


def from_text(tmp_path, text, **options):
    path = tmp_path / "levels.txt"
    path.write_text(text)
    return envs.make("sokoban", levels=[str(path)], **options)


def test_rewards_and_rendering(tmp_path):
    env = from_text(tmp_path, LEVEL)
    (task,) = env.list_tasks("test")
    assert task.task_id == "test/levels/0000"
    state, observation = env.reset(task.task_id)
    grid = " # \t # \t # \t # \t # \t\n # \t P \t X \t O \t # \t\n # \t _ \t _ \t _ \t # \t\n"
    assert observation.endswith(grid + " # \t # \t # \t # \t # \t")
    same, result = env.step(state, "north")
    assert result.reward == pytest.approx(-0.1) and not result.info["valid"] and same.num_steps == 0
    done, result = env.step(state, " RIGHT ")
    assert result.reward == pytest.approx(-0.1 + 1 + 10) and result.success
    assert result.observation.splitlines()[1] == " # \t _ \t P \t √ \t # \t"
    blocked, result = env.step(state, "up")
    assert blocked.player == state.player and result.reward == pytest.approx(-0.1)
    assert result.info["valid"]


def test_pushing_off_a_target_and_against_things(tmp_path):
    env = from_text(tmp_path, "; 0\n#######\n#@*$. #\n#     #\n#######\n")
    state, _ = env.reset("test/levels/0000")
    blocked, result = env.step(state, "right")  # two boxes in a row
    assert blocked.boxes == state.boxes and result.reward == pytest.approx(-0.1)
    env = from_text(tmp_path, "; 0\n#######\n#@*  .#\n#   $ #\n#######\n")
    state, _ = env.reset("test/levels/0000")
    off, result = env.step(state, "right")
    assert result.reward == pytest.approx(-0.1 - 1)
    assert " S \t" in render(env.level("test/levels/0000"), off.boxes, off.player)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("; 0\n#####\n#@x.#\n#####\n", r"line 3, column 3: 'x' is not a cell"),
        ("; 0\n#####\n# $.#\n#####\n", r"level at line 2: 0 players"),
        ("; 0\n#####\n#@@.#\n#####\n", r"level at line 2: 2 players"),
        ("; 0\n#####\n#@..#\n#####\n", r"0 boxes and 2 targets"),
        ("; 0\n#####\n#@$.#\n# x #\n#####\n", r"line 4, column 3: 'x' is not a cell"),
        ("#####\n#@$$.#\n#####\n", r"line 1: 2 boxes and 1 targets"),
        ("Comment:\n#####\n#@$.#\n#####\n", r"line 1: 'Comment:' without a line 'Comment-End:'"),
        (f"{'#' * 101}\n#@$.#\n#####\n", r"3 rows of 101 cells; at most 100"),
        ("#####\n" + "#   #\n" * 101, r"102 rows of 5 cells; at most 100"),
        ("\x89PNG\r\n\x1a\n", r"no level"),
        ("; 0\n#@$.#\n", r"1 rows"),
        ("", r"no level"),
        (
            "; 0\n#####\n#@$. \n#####\n",
            r"level at line 2: row 2, column 5: the board is open to the outside",
        ),
        ("; 0\n#####\n#@$.#\n###\n", r"level at line 2: row 3, column \d: .*row of 3 of 5 cells"),
        ("; 0\n#####\n#@$.#\n\n#   #\n#####\n", r"level at line 2: 2 rows; a board has at least 3"),
        ("; 0\n#####\n#@* #\n#####\n", r"level at line 2: every box is on a target already"),
        ("; 0\n#####\n#@$\f.#\n#####\n", r"line 3, column 4: '\\x0c' is not a cell"),
    ],
)
def test_broken_level_files(tmp_path, text, message):
    with pytest.raises(EnvDataError, match=message) as error:
        from_text(tmp_path, text)
    assert "levels.txt" in str(error.value) and "\n" not in str(error.value)


def test_a_level_file_belongs_to_one_split(tmp_path):
    paths = []
    for name in ("train/000.txt", "valid/000.txt", "mine/a_test_1.txt", "mine/other.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(LEVEL)
        paths.append(str(path))
    env = envs.make("sokoban", levels=paths)
    ids = {
        split: [t.task_id for t in env.list_tasks(split)] for split in ("train", "valid", "test")
    }
    assert ids == {
        "train": ["train/000/0000"],
        "valid": ["valid/000/0000"],
        "test": ["test/a_test_1/0000", "test/other/0000"],
    }
    for task_id in ("test/000/0000", "train/other/0000", "nowhere/000/0000", "train/000/0001"):
        with pytest.raises(EnvDataError, match="not in any split"):
            env.reset(task_id)
    with pytest.raises(EnvDataError, match="must be one of train, valid, test"):
        env.list_tasks("nowhere")
    with pytest.raises(EnvDataError, match="split 'train': must be one of test"):
        envs.make("sokoban", levels=paths[3:]).list_tasks("train")
    with pytest.raises(EnvDataError, match="a second train file named 000"):
        envs.make("sokoban", levels=[paths[0], paths[0]])


LONG = """; 0
########
#@ $   #
#      #
#    . #
########
"""


def test_a_reply_that_is_no_move(tmp_path):
    """verl-agent: -0.1, one of the loop's replies, no step of the environment."""

    def played(*replies, **options):
        env = from_text(tmp_path, LONG, **{"horizon": 3, **options})
        state, _ = env.reset("test/levels/0000")
        results = []
        for reply in replies:
            state, result = env.step(state, reply)
            results.append(result)
        assert all(r.reward == pytest.approx(-0.1) for r in results)
        return (state.num_steps, state.num_replies, state.done), [r.info["valid"] for r in results]

    assert played("jump", "right", "jump") == ((1, 3, True), [False, True, False])
    assert played("jump", "right", "still", max_replies=9) == ((1, 3, False), [False, True, True])
    assert played("jump", "down", "", "up", "down", max_replies=9)[0] == (3, 5, True)
    assert played("x", "y", "z", "still", max_replies=4)[0] == (0, 4, True)
    assert played("jump", "still", invalid_action="step", max_replies=9)[0] == (2, 2, False)
    assert played("still", "right", invalid_action="end")[0] == (1, 2, False)
    assert played("right", "jump", invalid_action="end")[0] == (1, 2, True)
    env = from_text(tmp_path, LONG, horizon=12, max_replies=6)
    state, _ = env.reset("test/levels/0000")
    assert env.solve(state) is None  # seven moves, six replies


def test_feedback_is_said_only_where_it_is_asked_for(tmp_path):
    def said(*moves, feedback):
        env = from_text(tmp_path, LONG, feedback=feedback)
        state, _ = env.reset("test/levels/0000")
        for name in moves:
            state, result = env.step(state, name)
        lines = result.observation.splitlines()
        assert lines[-5] == lines[-1] == " # \t" * 8
        return lines[:-5]

    every = ("invalid", "blocked", "deadlock")
    for moves in (["jump"], ["up"], ["right"] * 4, ["right"] * 5):
        assert said(*moves, feedback=()) == []
    assert said("jump", feedback=every) == ["That is no move; the moves are up, down, left, right."]
    assert said("still", feedback=every) == []
    assert said("up", feedback=every) == ["You did not move: up of you is a wall."]
    # One step up to the box, three pushes; the third puts it into the corner.
    assert said(*["right"] * 3, feedback=every) == []
    assert said(*["right"] * 4, feedback=every) == [
        "The box you pushed is in a corner and no target is there: it is stuck for good."
    ]
    assert said(*["right"] * 5, feedback=every) == [
        "You did not move: right of you is a box that cannot be pushed."
    ]
    assert said("up", feedback=("invalid", "deadlock")) == []
    assert said("jump", feedback=["blocked"]) == []
    assert said(*["right"] * 4, feedback=["blocked"]) == []


def test_a_corner_with_a_target_is_no_deadlock(tmp_path):
    env = from_text(
        tmp_path, "; 0\n######\n#@ $.#\n#    #\n#$  .#\n######\n", feedback=("deadlock",)
    )
    state, _ = env.reset("test/levels/0000")
    for _ in range(2):
        state, result = env.step(state, "right")
    assert "√" in result.observation and "stuck" not in result.observation


def test_files_from_other_editors(tmp_path):
    path = tmp_path / "l.txt"
    path.write_text(LEVEL)
    plain = parse_levels(path)
    for floor in "-_":  # other signs for floor
        path.write_text(LEVEL.replace(" ", floor).replace(f";{floor}7", "; 7"))
        assert parse_levels(path) == plain
    path.write_bytes(b"\xef\xbb\xbf" + LEVEL.replace("\n", "\r\n").encode())
    assert parse_levels(path) == plain


def test_collections_as_people_write_them(tmp_path):
    """Titles, authors, comments and blank lines around boards; each board is one level."""
    path = tmp_path / "mine.xsb"
    box, room = "#####\n#@$.#\n#####\n", "  ####\n###  #\n#@$ .#\n######\n"
    first, second = (only(tmp_path, text) for text in (box, room))
    collection = (
        "Two Rooms\n\nCollection of 2 levels, (c) somebody; e-mail a@b.c\n::\nTitle: # 1 $\n\n"
        f"{box}Title: The Box\nAuthor: J\xf6rg\nSolution: R\n\n\n; a comment # with a wall\n"
        f"{room}; 2\n\nComment:\n{box}Comment-End:\n#2 is the last one\n"
    )
    for encoding in ("latin-1", "utf-8", "utf-8-sig", "utf-16"):
        for end in ("\n", "\r\n", "\r"):
            path.write_bytes(collection.replace("\n", end).encode(encoding))
            assert parse_levels(path) == [first, second], (encoding, end)


def only(tmp_path, text):
    path = tmp_path / "one.xsb"
    path.write_text(text)
    (level,) = parse_levels(path)
    return level


def test_rows_as_programs_write_them(tmp_path):
    plain = only(tmp_path, "  ####\n###  #\n#@$ .#\n######\n")
    for text in (
        "--####\n###--#\n#@$-.#\n######",  # signs for floor
        "__####\n###__#\n#@$_.#\n######",
        "  ####  \n###  #\t\n#@$ .# \n######\t\n\t",  # blanks and tabs at the end
        "2-4#|3#2-#|#@$-.#|6#",  # run lengths
        "; 1\n|2 4#|3#2 #|#@$ .#|6#|\n; 2",
    ):
        assert only(tmp_path, text) == plain, text
    # A tab stands for blanks up to the next column of eight.
    tabs = only(tmp_path, "\t####\n    ##### #\n    #@$  .#\n    #######\n")
    assert tabs == only(tmp_path, "        ####\n    ##### #\n    #@$  .#\n    #######\n")
    # All seven signs, and floor outside the walls left out.
    level = only(tmp_path, "   ###\n   #.#\n####$####\n#.*  +$ #\n####$ ###\n   ####")
    assert len(level.boxes) == 4 and len(level.targets) == 4 and level.player in level.targets


def test_levels_that_the_horizon_cannot_solve_are_announced(tmp_path, caplog):
    far = LEVEL.replace("#@$.#", "#@     $       .#").replace("#   #", "#" + " " * 15 + "#")
    far = far.replace("#####", "#" * 17)
    path = str(tmp_path / "levels.txt")
    for horizon, lost in ((12, 1), (13, 0), (120, 0)):
        caplog.clear()
        from_text(tmp_path, LEVEL + far, horizon=horizon)
        expected = f"{path}: 1 of 2 levels tried have no solution of {horizon} moves"
        assert (expected in caplog.text) == bool(lost), caplog.text
    from_text(tmp_path, far, horizon=50, max_replies=9)
    assert "1 of 1 levels tried have no solution of 9 moves" in caplog.text


def test_a_level_file_beyond_reason_is_refused_at_once(tmp_path):
    start = time.thread_time()
    path = tmp_path / "wide.txt"
    path.write_text("#" * 10_000 + "\n" + ("#" + " " * 998 + "#\n") * 10_000)
    os.mkfifo(tmp_path / "pipe.txt")
    for name, message in (
        (path, "10001 rows of 10000 cells; at most 100 of each"), (tmp_path / "pipe.txt", "a pipe"),
        ("/dev/zero", "a device"), (tmp_path, "a directory"), (tmp_path / "none", "No such file"),
    ):  # fmt: skip
        with pytest.raises(EnvDataError, match=message) as error:
            envs.make("sokoban", levels=[str(name)])
        assert str(name) in str(error.value)
    assert time.thread_time() - start < 4


def test_options():
    for options, field in (
        (dict(size=(3, 3)), "env.options.size"), (dict(num_boxes=0), "env.options.num_boxes"),
        (dict(size=6), "env.options.size"), (dict(num_boxes=True), "env.options.num_boxes"),
        (dict(levels=["/nowhere.txt"]), "/nowhere.txt: cannot be read"), (dict(levels="a.txt"), "a list of paths"),
        (dict(levels=[1]), "a list of paths"), (dict(levels=3), "a list of paths"),
        (dict(invalid_action="skip"), "env.options.invalid_action = 'skip': must be one of reply, step, end"),
        (dict(max_replies=-1), "env.options.max_replies"), (dict(max_replies=True), "env.options.max_replies"),
        (dict(feedback=["walls"]), r"env.options.feedback = \['walls'\]: must be a list out of invalid, blocked, deadlock"), (dict(feedback="blocked"), "must be a list"),
    ):  # fmt: skip
        with pytest.raises(EnvDataError, match=field):
            envs.make("sokoban", **options)


BOXOBAN = os.environ.get("LEAFE_BOXOBAN")


# Within 20,000 positions the solver finds 96% of a sample of both published files.
@pytest.mark.skipif(not BOXOBAN, reason="set LEAFE_BOXOBAN to a folder of Boxoban level files")
def test_all_boxoban_levels():
    signs = {"_": " ", "O": ".", "X": "$", "P": "@"}
    for path in sorted(Path(BOXOBAN).glob("*.txt")):
        if path.name.startswith("LICENSE"):
            continue
        levels = parse_levels(path)
        rows = [r for r in path.read_text().splitlines() if r and not r.startswith(";")]
        drawn = []
        for level in levels:
            assert (level.rows, level.columns, len(level.boxes)) == (10, 10, 4)
            for line in render(level, level.boxes, level.player).splitlines():
                cells = [line[i : i + 4].strip() for i in range(0, len(line), 4)]
                drawn.append("".join(signs.get(c, c) for c in cells))
        assert drawn == rows
        env = envs.make("sokoban", horizon=200, levels=[str(path)])
        (split,) = {s for s in ("train", "valid", "test") if s in path.name} or {"test"}
        tasks = env.list_tasks(split)
        assert len(tasks) == len(levels)
        for task in tasks:
            state, _ = env.reset(task.task_id)
            for action in ("up", "left", "?", "down", "right"):
                state, _ = env.step(state, action)
            assert (len(state.boxes), state.num_steps, state.num_replies) == (4, 4, 5)
        solved = 0
        for task in tasks[::100]:
            state, _ = env.reset(task.task_id)
            plan = env.solve(state, max_nodes=20_000)
            for name in plan or []:
                state, _ = env.step(state, name)
            assert plan is None or state.success
            solved += state.success
        assert solved >= 0.8 * len(tasks[::100])


def test_short_levels_can_be_left_out():
    whole, kept = envs.make("sokoban"), envs.make("sokoban", min_moves=6)
    listed = {task.task_id for task in kept.list_tasks("test")}
    for task in whole.list_tasks("test"):
        plan = whole.solve(whole.reset(task.task_id)[0])
        assert (task.task_id in listed) == (len(plan) >= 6)
        assert kept.reset(task.task_id) == whole.reset(task.task_id)
    assert 0 < len(listed) < 128
    for bad in (-1, 16, True, 2.5):
        with pytest.raises(EnvDataError, match="env.options.min_moves"):
            envs.make("sokoban", min_moves=bad)
