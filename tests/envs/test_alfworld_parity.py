"""The ALFWorld engine beside the real package: its transcripts, and live where it is installed.

The live tests are slow and need the extra `alfworld`; LEAFE_DATA names a folder with alfworld_game/ and
textworld_pddl/ for two more of them.
"""

import dataclasses
import gzip
import importlib.util
import json
import os
import pickle
import random
import time
from pathlib import Path

import pytest

import envs
from envs.alfworld import games as generator
from envs.alfworld.environment import Alfworld, generated_game
from envs.base import EnvDataError

TRANSCRIPTS = Path(__file__).with_name("data") / "alfworld_transcripts.json.gz"
DATA = os.environ.get("LEAFE_DATA", "")
LIVE = importlib.util.find_spec("textworld") and importlib.util.find_spec("alfworld")
live = pytest.mark.skipif(not LIVE, reason="the real package is not installed (extra alfworld)")


def load_transcripts():
    return json.loads(gzip.decompress(TRANSCRIPTS.read_bytes()))


def test_transcripts_of_the_real_package():
    """Every observation, list of commands, reward and `won`, character for character."""
    walks = load_transcripts()
    assert {name.split("/")[1] for name in walks} == set(generator.FAMILIES)
    assert sum(map(len, walks.values())) > 1000 and sum(w[-1][4] for w in walks.values()) > 20
    for name, rows in walks.items():
        game = generated_game(name.rpartition("/")[0])
        position, feedback = game.start, game.intro
        for number, (command, observation, admissible, reward, won, done) in enumerate(rows):
            if number:  # the first row is the start
                position, feedback, _ = game.play(position, command)
            assert feedback == observation, (name, command)
            assert list(game.admissible(position)) == admissible, (name, command)
            assert game.won(position) == won == done == (reward == 1), (name, command)


def test_transcripts_through_the_environment():
    env = Alfworld()
    for name, rows in list(load_transcripts().items())[1::6]:
        state, observation = env.reset(name.rpartition("/")[0])
        assert observation == rows[0][1]
        for command, observation, admissible, reward, won, done in rows[1:]:
            assert not state.done
            state, result = env.step(state, command)
            assert (result.observation, result.reward) == (observation, reward)
            assert (result.success, state.success) == (won, done)
            assert list(env.actions(state)) == admissible


@live
@pytest.mark.slow
def test_live_against_the_real_package():
    import alfworld_oracle as oracle

    steps = 0
    for name, data in oracle.generated(30):
        real_game = oracle.Real(data)
        for kind in ("random", "expert"):
            for command, real, ours in oracle.play_beside(data, f"live/{name}/{kind}", real_game):
                assert ours == real, (name, command)
                steps += 1
    assert steps > 1000


@live
@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="LEAFE_DATA is not set")
@pytest.mark.parametrize("which", ["alfworld_game", "textworld_pddl", "old wording"])
def test_live_on_games_of_others(which):
    import alfworld_oracle as oracle

    if which == "alfworld_game":
        (path,) = Path(DATA, which).rglob("game.tw-pddl")
        data = json.loads(path.read_text())
    else:
        folder = Path(DATA, "textworld_pddl")
        data = {
            "pddl_domain": (folder / "domain.pddl").read_text(),
            "grammar": (folder / "grammar.twl2").read_text(),
            "pddl_problem": (folder / "problem.pddl").read_text(),
        }
    if which == "old wording":
        # TextWorld's sample grammar, put X in/on Y, on an ALFWorld game.
        spec = generator.draw("train", "pick_cool_then_place_in_recep", 0)
        data = {**generator.game_data(spec), "grammar": data["grammar"]}
        data["grammar"] += 'action help { template :: "help"; feedback :: "#list_empty#"; }'
    won = 0
    real_game = oracle.Real(data, demangle=which != "textworld_pddl")
    for walk in range(3):
        for kind in ("random", "expert"):
            for command, real, ours in oracle.play_beside(data, f"{walk}/{kind}", real_game):
                assert ours == real, (walk, command)
                won += real[3]
    assert won


@live
@pytest.mark.slow
def test_live_on_facts_that_our_generator_does_not_write():
    """Things in things, distances, facts that already are as an action would make them."""
    import alfworld_oracle as oracle

    spec = generator.draw("train", "pick_heat_then_place_in_recep", 1)
    data = generator.game_data(spec)
    words = data["pddl_problem"].split()
    mine = [w for w in words if w.lower().startswith("loc_bar")]
    held = [
        w for w in words if "_bar_" in w and w.split("_bar_")[0] in ("Mug", "Cup", "Bowl", "Plate")
    ]
    inner = next(
        w for w in words if w.startswith(("Apple_bar", "Egg_bar", "Knife_bar", "Fork_bar"))
    )
    extra = f"(inReceptacleObject {inner} {held[0]}) (= (distance {mine[0]} {mine[1]}) 7)"
    extra += f" (checked {mine[0]}) (isClean {inner}) (isHot {held[0]}) (isOn {inner})"
    data["pddl_problem"] = data["pddl_problem"].replace("(:init", f"(:init {extra}")
    real_game = oracle.Real(data)
    examined = set()
    for walk in range(4):
        for command, real, ours in oracle.play_beside(data, f"{walk}/random", real_game):
            assert ours == real, command
            examined.add(real[0])
    assert any(text.startswith("This is a normal") for text in examined)


@live
@pytest.mark.slow
def test_the_packages_own_loader_finds_and_plays_what_we_write(tmp_path):
    import alfworld_oracle as oracle
    from alfworld.agents.environment.alfred_tw_env import AlfredTWEnv

    paths = Alfworld().write(tmp_path, "valid_unseen", 6)
    config = {
        "env": {"goal_desc_human_anns_prob": 0, "task_types": [1, 2, 3, 4, 5, 6]},
        "dataset": {
            "eval_ood_data_path": str(tmp_path / "json_2.1.1" / "valid_unseen"),
            "num_eval_games": -1,
        },
    }
    found = AlfredTWEnv(config, train_eval="eval_out_of_distribution").game_files
    assert sorted(found) == sorted(map(str, paths))
    for path in found:
        game = oracle.Real(path)
        game.first()
        rows = [game.step(command) for command in json.loads(Path(path).read_text())["walkthrough"]]
        assert [row[2] for row in rows] == [0] * (len(rows) - 1) + [1] and rows[-1][3]


@live
@pytest.mark.slow
def test_the_adapter_plays_as_the_native_engine_and_goes_back():
    ours, real = envs.make("alfworld"), envs.make("alfworld_real")
    task_id = ours.list_tasks("train")[2].task_id
    rng = random.Random(3)
    seen = [(ours.reset(task_id)[0], real.reset(task_id)[0])]
    for number in range(40):
        mine, theirs = rng.choice(seen) if number % 3 == 0 else seen[-1]
        assert ours.actions(mine) == real.actions(theirs)
        action = rng.choice((*ours.actions(mine), "nonsense"))
        (mine, expected), (theirs, result) = ours.step(mine, action), real.step(theirs, action)
        assert result == expected
        if not mine.done:
            seen.append((mine, theirs))
    for task in ours.list_tasks("train")[:6]:  # more games than are held at a time
        assert ours.reset(task.task_id)[1] == real.reset(task.task_id)[1]
    mine, theirs = seen[-1]
    assert real.actions(theirs) == ours.actions(mine) and real.solve(theirs) == ours.solve(mine)
    # Another process knows the value only: it replays, and notices when something else comes out.
    other = envs.make("alfworld_real")
    assert other.actions(pickle.loads(pickle.dumps(theirs))) == ours.actions(mine)
    with pytest.raises(EnvDataError, match="replaying"):
        other.actions(dataclasses.replace(theirs, observation="Something else."))
    real.close()
    other.close()


@live
@pytest.mark.slow
def test_a_hundred_times_the_steps_per_second():
    import alfworld_oracle as oracle

    name, data = oracle.generated(1)[0]
    walk = [c for c, _, _ in oracle.play_beside(data, f"{name}/random", oracle.Ours(data))[1:]]
    seconds = []
    for player in (oracle.Real(data), oracle.Ours(data)):
        player.first()
        player.step("look")
        begun = time.thread_time()
        for command in walk:
            player.step(command)
        seconds.append(time.thread_time() - begun)
    assert seconds[0] > 100 * seconds[1]
