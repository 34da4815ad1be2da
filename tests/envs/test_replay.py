"""The replay adapter against a simulator that counts its calls and misbehaves when told to."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import envs
from envs.base import EnvDataError

TASK, OTHER = "train/count/0000", "train/count/0001"


@pytest.fixture
def make(tmp_path):
    made = []
    (tmp_path / "drift").write_text("")
    (tmp_path / "calls").write_text("")

    def create(**options):
        env = envs.make(
            "counting:CountingEnvironment",
            drift=tmp_path / "drift",
            calls=tmp_path / "calls",
            **options,
        )
        made.append(env)
        return env

    yield create
    for env in made:
        env.close()


def calls(tmp_path):
    return [line.split(" ", 1)[1] for line in (tmp_path / "calls").read_text().splitlines()]


def pids(env):
    return [worker.pid for worker in env._workers]


def walk(env, state, actions):
    results = []
    for action in actions:
        state, result = env.step(state, action)
        results.append(result)
    return state, results


def gone(pid: int) -> bool:
    """No such process, or a zombie that init has not reaped yet."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_live_episode_costs_no_replay_and_a_branch_only_its_prefix(make, tmp_path):
    env = make(num_workers=1)
    start, observation = env.reset(TASK)
    assert observation == TASK
    end, results = walk(env, start, "abcde")
    assert results[-1].observation == f"{TASK} a b c d e"
    assert [r.reward for r in results] == [1.0] * 5 and end.score == 5.0
    assert calls(tmp_path) == [f"reset {TASK}", *(f"step {a}" for a in "abcde")]
    # A snapshot is the value: branching from the third step replays two actions after one reset.
    kept, _ = walk(env, start, "ab")
    before = len(calls(tmp_path))
    branched, result = env.step(pickle.loads(pickle.dumps(kept)), "x")
    assert result.observation == f"{TASK} a b x"
    assert calls(tmp_path)[before:] == ["step x"]
    again, _ = env.step(branched, "y")
    walk(env, env.reset(OTHER)[0], "q")
    before = len(calls(tmp_path))
    assert env.step(branched, "y") == (again, env.step(branched, "y")[1])
    assert calls(tmp_path)[before : before + 5] == [
        f"reset {TASK}", "step a", "step b", "step x", "step y",
    ]  # fmt: skip


def test_a_branch_goes_to_the_worker_with_the_longest_common_prefix(make, tmp_path):
    env = make(num_workers=2)
    one, _ = walk(env, env.reset(TASK)[0], "abc")
    two, _ = walk(env, env.reset(OTHER)[0], "uv")
    before = len(calls(tmp_path))
    for _ in range(3):  # taking turns, both stay where they are
        one, _ = env.step(one, "s")
        two, _ = env.step(two, "t")
    assert calls(tmp_path)[before:] == ["step s", "step t"] * 3


def test_a_worker_keeps_several_episodes_alive(make, tmp_path):
    env = make(num_workers=2, episodes_per_worker=3)
    states = [env.reset(task.task_id)[0] for task in env.list_tasks("train")]
    states = [s for s, _ in env.step_many([(s, "a") for s in states])]
    before = len(calls(tmp_path))
    for turn in range(3):
        states = [s for s, _ in env.step_many([(s, f"b{turn}") for s in states])]
    assert sorted(calls(tmp_path)[before:]) == sorted(
        f"step b{n}" for n in range(3) for _ in states
    )
    assert len(pids(env)) == 2
    assert {s.observations[-1] for s in states} == {f"{s.task_id} a b0 b1 b2" for s in states}


def test_moves_played_side_by_side_give_what_they_give_one_by_one(make):
    many, single = make(num_workers=3), make(num_workers=1)
    states = [many.reset(t.task_id)[0] for t in many.list_tasks("train")]
    reference = list(states)
    for turn in range(3):
        actions = [f"{turn}{n}" for n in range(len(states))]
        played = many.step_many(list(zip(states, actions)))
        assert played == [single.step(s, a) for s, a in zip(reference, actions)]
        states = reference = [state for state, _ in played]
    branches = [(states[0], f"branch {n}") for n in range(7)]
    assert [r.observation.rpartition("branch ")[2] for _, r in many.step_many(branches)] == [
        str(n) for n in range(7)
    ]
    assert len(pids(many)) == 3


def test_a_dead_worker_costs_a_replay(make, tmp_path):
    env = make(num_workers=1)
    state, _ = walk(env, env.reset(TASK)[0], "abc")
    old = pids(env)[0]
    os.kill(old, signal.SIGKILL)
    state, result = env.step(state, "d")
    assert result.observation == f"{TASK} a b c d" and pids(env) != [old]
    # In the middle of a step, too.
    state, result = env.step(state, "die once")
    assert result.observation == f"{TASK} a b c d die once"
    assert calls(tmp_path).count(f"reset {TASK}") == 3


def test_a_simulator_that_keeps_breaking_is_one_clear_error(make):
    env = make(num_workers=1, timeout=0.5)
    state, _ = walk(env, env.reset(TASK)[0], "a")
    message = r"counting task 'train/count/0000', step 2 \(action 'break'\).*3 times.*pipe dream"
    with pytest.raises(EnvDataError, match=message):
        env.step(state, "break")
    with pytest.raises(EnvDataError, match=r"action 'hang'.*no answer to 'step' within 0.5 s"):
        env.step(state, "hang")
    assert env.step(state, "b")[1].observation == f"{TASK} a b"  # the environment goes on


def test_what_a_dying_worker_prints_is_in_the_error_alone(make, capfd):
    env = make(num_workers=1)
    state, _ = env.reset(TASK)
    with pytest.raises(
        EnvDataError, match=r"3 times, last: the worker ended \(fatal: out of beads"
    ):
        env.step(state, "die loudly")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("action", "field"),
    [
        ("none", "reply = None: must be a Reply"), ("no text", "observation = None"),
        ("bytes", "observation = b'x'"), ("nan", "score = nan"), ("no score", "score = None"),
        ("text score", "score = '1'"), ("no flag", "done = None"),
    ],
)  # fmt: skip
def test_wrong_replies_are_named(make, action, field):
    env = make(num_workers=1)
    state, _ = walk(env, env.reset(TASK)[0], "ab")
    with pytest.raises(EnvDataError, match=f"counting task '{TASK}', step 3: {field}"):
        env.step(state, action)
    assert env.step(state, "c")[1].observation == f"{TASK} a b c"


def test_a_lone_surrogate_is_replaced_and_replayed(make):
    env = make(num_workers=1)
    state, results = walk(env, env.reset(TASK)[0], ["lone", "b"])
    assert results[0].observation == "a \ufffd b" and results[0].reward == 3.0
    walk(env, env.reset(OTHER)[0], "q")
    assert walk(env, state, "c")[1][0].observation == f"{TASK} b c"


def test_an_unstable_simulator_is_named_with_both_texts(make, tmp_path):
    env = make(num_workers=1)
    state, _ = walk(env, env.reset(TASK)[0], "abc")
    walk(env, env.reset(OTHER)[0], "q")
    (tmp_path / "drift").write_text("?")
    message = (
        r"task 'train/count/0000', step 0 \(reset\): the replayed observation"
        r" 'train/count/0000\?' is not the recorded one 'train/count/0000'"
    )
    with pytest.raises(EnvDataError, match=message):
        env.step(state, "d")
    (tmp_path / "drift").write_text("")
    half, _ = walk(env, env.reset(TASK)[0], "ab")
    (tmp_path / "drift").write_text("!")
    with pytest.raises(EnvDataError, match=r"step 3 \(action 'c'\).* a b c!' is not .* a b c'"):
        env.step(state, "d")
    assert half.observations[-1] == f"{TASK} a b"


def test_questions_and_plans_belong_to_a_state(make):
    env = make(num_workers=1)
    start, _ = env.reset(TASK)
    on_plan, _ = walk(env, start, "ab")
    off_plan, _ = walk(env, start, "b")
    assert env.actions(on_plan) == ("actions", TASK, "a", "b")
    assert env.actions(off_plan) == ("actions", TASK, "b")
    assert env.solve(start) == ["a", "b", "win"] and env.solve(on_plan) == ["win"]
    assert env.solve(off_plan) is None
    won, results = walk(env, on_plan, ["win", "more"])
    assert won.success and won.done and results[1].observation == "The episode is over."
    assert make(horizon=2).solve(start) is None


def test_no_process_is_left_behind(make):
    env = make(num_workers=2)
    env.step_many([(env.reset(t)[0], "a") for t in (TASK, OTHER)])
    ended = pids(env)
    assert len(ended) == 2
    env.close()
    deadline = time.time() + 60
    while not all(map(gone, ended)):
        assert time.time() < deadline
        time.sleep(0.05)
    with pytest.raises(EnvDataError, match="has been closed"):
        env.reset("train/count/0003")


@pytest.mark.parametrize("ending", ["sys.exit(0)", "os.kill(os.getpid(), 9)"])
def test_workers_end_with_a_program_that_does_not_close(tmp_path, ending):
    """At exit, and when the program is killed and can do nothing any more."""
    for name in ("drift", "calls"):
        (tmp_path / name).write_text("")
    code = (
        "import os, sys, envs\n"
        f"env = envs.make('counting:CountingEnvironment', drift={str(tmp_path / 'drift')!r},"
        f" calls={str(tmp_path / 'calls')!r})\n"
        f"env.reset({TASK!r})\n"
        "print(*[w.pid for w in env._workers], flush=True)\n"
        f"{ending}\n"
    )
    paths = os.pathsep.join(str(Path(__file__).resolve().parents[n]) for n in (1, 2))
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    (worker,) = map(int, ran.stdout.split())
    deadline = time.time() + 60
    while not gone(worker):
        assert time.time() < deadline
        time.sleep(0.05)


def test_clear_errors(make):
    with pytest.raises(EnvDataError, match="env.options.num_workers = 0"):
        make(num_workers=0)
    with pytest.raises(EnvDataError, match="env.options.episodes_per_worker = 1.5"):
        make(episodes_per_worker=1.5)
    with pytest.raises(EnvDataError, match="env.options.timeout = 'soon'"):
        make(timeout="soon")
    with pytest.raises(EnvDataError, match="task 'refused': refused"):
        make().reset("refused")
    broken = make()
    broken.factory = "counting:Nothing"
    with pytest.raises(EnvDataError, match="reset.*broke 3 times.*Nothing"):
        broken.reset(TASK)
