"""Rules, rewards, statistics and speed beside the real gym-sokoban, where it is installed.

    pip install 'setuptools<80' 'gym<0.26' gym-sokoban==0.0.6
    pytest -m 'slow or not slow' -s tests/envs/test_sokoban_gym.py

prints the table of docs/ENVIRONMENTS.md.
"""

import itertools
import random
import statistics
import sys
import time

import pytest

np = pytest.importorskip("numpy")
gym_env = pytest.importorskip("gym_sokoban.envs.sokoban_env")

from gym_sokoban.envs.room_utils import generate_room  # noqa: E402
from test_sokoban_generator import count_pushes  # noqa: E402

import envs  # noqa: E402
from envs.sokoban.environment import render  # noqa: E402
from envs.sokoban.generator import draw_level  # noqa: E402
from envs.sokoban.levels import MOVES, Level  # noqa: E402
from envs.sokoban.solver import solve_level  # noqa: E402


def to_gym(level, horizon):
    """The real environment, on our level."""
    env = gym_env.SokobanEnv(
        dim_room=(level.rows, level.columns), max_steps=horizon, num_boxes=len(level.boxes),
        reset=False,
    )  # fmt: skip
    env.room_fixed = np.array(
        [[0 if (r, c) in level.walls else 2 if (r, c) in level.targets else 1
          for c in range(level.columns)] for r in range(level.rows)]
    )  # fmt: skip
    env.room_state = env.room_fixed.copy()
    for box in level.boxes:
        env.room_state[box] = 3 if box in level.targets else 4
    env.room_state[level.player] = 5
    env.player_position = np.array(level.player)
    env.num_env_steps = env.boxes_on_target = env.reward_last = 0
    return env


def symbols(env):
    """The board in verl-agent's symbols."""
    state = np.where((env.room_state == 5) & (env.room_fixed == 2), 6, env.room_state)
    return "\n".join("".join(f" {'#_O√XPS'[cell]} \t" for cell in row) for row in state)


@pytest.mark.parametrize(("size", "boxes"), [((6, 6), 1), ((7, 7), 2), ((8, 8), 3)])
def test_every_step_is_the_same(size, boxes):
    ours = envs.make("sokoban", horizon=40, size=size, num_boxes=boxes)
    rng = random.Random(0)
    ends = set()
    for task in ours.list_tasks("train")[:25]:
        level = ours.level(task.task_id)
        state, _ = ours.reset(task.task_id)
        theirs = to_gym(level, 40)
        # Half of the episodes follow the expert, so that boxes come onto targets and off again.
        plan = ours.solve(state) if rng.random() < 0.5 else []
        while not state.done:
            name = plan.pop(0) if plan and rng.random() < 0.9 else rng.choice([*MOVES])
            state, result = ours.step(state, name)
            _, reward, done, _ = theirs.step(1 + [*MOVES].index(name), "tiny_rgb_array")
            assert (result.reward, result.done) == (pytest.approx(reward), done)
            assert result.observation == symbols(theirs) == render(level, state.boxes, state.player)
            assert state.num_steps == theirs.num_env_steps
            assert state.success == theirs._check_if_all_boxes_on_target()
        ends.add(state.success)
    assert ends == {True, False}


def gym_level(size, boxes, seed):
    """(level or None where it gives up, CPU seconds)."""
    random.seed(seed)
    np.random.seed(seed)
    begin = time.thread_time()
    try:
        fixed, state, _ = generate_room((size, size), num_steps=int(3.4 * size), num_boxes=boxes)
    except (RuntimeError, RuntimeWarning):
        return None, time.thread_time() - begin
    spent = time.thread_time() - begin
    cells = list(itertools.product(range(size), repeat=2))

    def where(board, *kinds):
        return frozenset(cell for cell in cells if board[cell] in kinds)

    (player,) = where(state, 5)
    level = Level(size, size, where(fixed, 0), where(fixed, 2), where(state, 3, 4), player)
    return level, spent


def our_level(size, boxes, seed):
    begin = time.thread_time()
    level = draw_level(size, size, boxes, random.Random(seed))
    return level, time.thread_time() - begin


def measure(level):
    """Wall density, displacement (least sum over all ways to give boxes to targets), pushes."""
    displacement = min(
        sum(abs(b[0] - t[0]) + abs(b[1] - t[1]) for b, t in zip(level.boxes, order))
        for order in itertools.permutations(level.targets)
    )
    plan = solve_level(level, level.boxes, level.player, 300_000, "pushes")
    density = len(level.walls) / (level.rows * level.columns)
    return density, displacement, count_pushes(level, plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "boxes", "theirs", "ours", "speed"),
    [(6, 1, 2000, 2000, 5), (7, 2, 1000, 1000, 20), (10, 4, 80, 200, 50)],
)
def test_statistics_and_speed(size, boxes, theirs, ours, speed, capsys):
    sys.setrecursionlimit(10_000)  # theirs calls itself 300 deep
    rows, seconds = {}, {}
    for name, make, count in (("gym", gym_level, theirs), ("ours", our_level, ours)):
        drawn, spent = zip(*(make(size, boxes, 5000 + seed) for seed in range(count)))
        levels = [level for level in drawn if level]
        seconds[name] = sum(spent) / len(levels)
        rows[name] = list(zip(*map(measure, levels)))
    with capsys.disabled():
        for name, columns in rows.items():
            cells = [
                f"{statistics.mean(c):.3f} ± {statistics.stdev(c) / len(c) ** 0.5:.3f}"
                for c in columns
            ]
            print(f"\n{size}x{size}, {boxes} | {name} | {len(columns[0])} | " + " | ".join(cells)
                  + f" | {1000 * seconds[name]:.1f} ms", end="")  # fmt: skip
    for gym, own, tolerance in zip(rows["gym"], rows["ours"], (0.02, 0.1, 0.1)):
        error = (statistics.variance(gym) / len(gym) + statistics.variance(own) / len(own)) ** 0.5
        difference = abs(statistics.mean(gym) - statistics.mean(own))
        assert difference <= tolerance * statistics.mean(gym) + 2 * error
    assert seconds["gym"] >= speed * seconds["ours"]
