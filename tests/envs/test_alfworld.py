"""ALFWorld engine against hand-computed cases and brute force, its planner, files and options."""

import hashlib
import importlib.util
import json
import pickle
import random
import re
import runpy
from pathlib import Path

import pytest
from alfworld_small import SMALL, follow, small_game

import envs
from envs.alfworld import games as generator
from envs.alfworld.engine import Game
from envs.alfworld.environment import Alfworld
from envs.base import EnvDataError


# -- rules and text, by hand -----------------------------------------------------------------------
def test_text_of_a_clean_mug_by_hand():
    game = small_game()
    assert game.intro == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly"
        " around you, you see a cabinet 1, a countertop 1, a desk 1, a fridge 1, a microwave 1, and a"
        " sinkbasin 1.\n\nYour task is to: do it."
    )
    told = [follow(game, *commands)[1] for commands in (
        ["look"], ["inventory"], ["go to countertop 1"], ["go to fridge 1"],
        ["go to countertop 1", "take knife 1 from countertop 1"],
        ["go to countertop 1", "take knife 1 from countertop 1", "inventory"],
        ["go to fridge 1", "open fridge 1"], ["go to fridge 1", "open fridge 1", "close fridge 1"],
        ["go to cabinet 1", "look"], ["go to desk 1", "use desklamp 1"],
    )]  # fmt: skip
    mug = follow(game, "go to fridge 1", "open fridge 1")[1].removesuffix(".")[-5:]
    other = "mug 1" if mug == "mug 2" else "mug 2"
    assert told == [
        # The original forgets its list here: `look` binds the place one stands at.
        "You are in the middle of a room. Looking quickly around you, you see nothing.",
        "You are not carrying anything.",
        f"You arrive at countertop 1. On the countertop 1, you see a knife 1, and a {other}.",
        "You arrive at fridge 1. The fridge 1 is closed.",
        "You pick up the knife 1 from the countertop 1.",
        "You are carrying: a knife 1.",
        f"You open the fridge 1. The fridge 1 is open. In it, you see a {mug}.",
        "You close the fridge 1.",
        "You are facing the cabinet 1, and desk 1. Next to it, you see nothing.",
        "You turn on the desklamp 1.",
    ]


def test_what_is_not_understood_changes_nothing():
    game = small_game()
    position, _ = follow(game, "go to countertop 1")
    for command in ("go to countertop 1", "Look", "take mug 9 from countertop 1", "", "open drawer 1",
                    "take apple 1 from sinkbasin 1", "examine knife 1", "go to  fridge 1"):  # fmt: skip
        assert game.play(position, command) == (position, "Nothing happens.", False)
    assert game.play(position, " \tlook\n")[2]


def test_heat_and_cool_undo_each_other_and_slicing_needs_the_knife_in_hand():
    game = small_game()
    to_apple = ("go to sinkbasin 1", "take apple 1 from sinkbasin 1")
    hot = (*to_apple, "go to microwave 1", "heat apple 1 with microwave 1")
    assert follow(game, *hot, "examine apple 1")[1] == "This is a hot apple 1."
    cold = (*hot, "go to fridge 1", "cool apple 1 with fridge 1")
    assert follow(game, *cold, "examine apple 1")[1] == "This is a cold apple 1."
    clean = (*cold, "go to sinkbasin 1", "clean apple 1 with sinkbasin 1")
    assert follow(game, *clean, "examine apple 1")[1] == "This is a cool and clean apple 1."
    knife = ("go to countertop 1", "take knife 1 from countertop 1", "go to sinkbasin 1")
    assert (
        follow(game, *knife, "slice apple 1 with knife 1")[1]
        == "You sliced the apple 1 with the knife 1."
    )
    assert "slice apple 1 with knife 1" not in game.admissible(follow(game, "go to sinkbasin 1")[0])


def test_an_object_put_down_beside_where_it_was_lies_next_to_it():
    """Two receptacles at one place: the grammar lists what was taken out of the other."""
    objects = (("Mug", 5), ("Mug", 0))
    game = small_game(objects=objects)
    position, feedback = follow(game, "go to desk 1")
    mug = feedback.removesuffix(".")[-5:]
    moved = (
        "go to desk 1",
        "open cabinet 1",
        f"take {mug} from desk 1",
        f"move {mug} to cabinet 1",
    )
    assert follow(game, *moved, "look")[1].endswith(f"Next to it, you see a {mug}.")
    # Never taken out of anything: the fact "not in it" does not exist, so nothing is listed.
    assert follow(game, "go to desk 1", "look")[1].endswith("Next to it, you see nothing.")


def test_wording_comes_from_the_grammar():
    spec = generator.GameSpec("pick_and_place_simple", 1, "Mug", "Cabinet", "do it", **SMALL)
    data = generator.game_data(spec)
    data["grammar"] = data["grammar"].replace("move {o} to {r}", "put {o} in/on {r}")
    data["grammar"] = data["grammar"].replace(
        "You move the {o.name} to the {r.name}.", "You put the {o.name} in/on the {r.name}."
    )
    game = Game(data, "old")
    position, _ = follow(game, "go to countertop 1", "take knife 1 from countertop 1")
    assert "put knife 1 in/on countertop 1" in game.admissible(position)
    assert not game.play(position, "move knife 1 to countertop 1")[2]
    assert game.play(position, "put knife 1 in/on countertop 1")[1] == (
        "You put the knife 1 in/on the countertop 1."
    )


def test_goal_of_two_needs_two_different_objects():
    game = small_game("pick_two_obj_and_place", "Cabinet")
    first = ["go to countertop 1"]
    one = follow(game, *first)[1].removesuffix(".")[-5:]
    other = "mug 1" if one == "mug 2" else "mug 2"
    first += [f"take {one} from countertop 1", "go to cabinet 1", "open cabinet 1",
              f"move {one} to cabinet 1"]  # fmt: skip
    assert not game.won(follow(game, *first)[0])
    both = [*first, "go to fridge 1", "open fridge 1", f"take {other} from fridge 1",
            "go to cabinet 1", f"move {other} to cabinet 1"]  # fmt: skip
    assert game.won(follow(game, *both)[0])


# -- the planner -----------------------------------------------------------------------------------
def shortest(game, most=12):
    """Length of the shortest plan, by breadth-first search over commands."""
    seen = layer = {game.start.facts: game.start}
    for length in range(most + 1):
        if any(game.won(position) for position in layer.values()):
            return length
        following = {}
        for position in layer.values():
            for command in game.admissible(position):
                new, _, _ = game.play(position, command)
                if new.facts not in seen:
                    following[new.facts] = new
        seen = {**seen, **following}
        layer = following
    return None


@pytest.mark.parametrize("family", generator.FAMILIES)
def test_plans_are_as_short_as_brute_force_finds_on_a_small_room(family):
    look, two = family == "look_at_obj_in_light", family == "pick_two_obj_and_place"
    last = "SinkBasin" if family == "pick_clean_then_place_in_recep" else "Desk"
    names = ("CounterTop", "Fridge", "Microwave", last)
    place = {"receptacles": tuple((name, n, False) for n, name in enumerate(names, 1))}
    objects = (("Mug", 0), ("DeskLamp", 3)) if look else (("Mug", 0), ("Mug", 1))
    parent = "" if look else "Microwave"
    game = small_game(family, parent, objects=objects, **place)
    plan = game.plan(game.start.facts, 50)
    assert game.won(follow(game, *plan)[0])
    assert len(plan) == shortest(game) >= (3 if look else 4) + two


def test_planner_from_the_middle_of_an_episode():
    env = Alfworld(horizon=30)
    rng = random.Random(5)
    for task in env.list_tasks("train")[:6]:
        state, _ = env.reset(task.task_id)
        for _ in range(8):
            if not state.done:
                state, _ = env.step(state, rng.choice(env.actions(state)))
        for action in env.solve(state):
            state, _ = env.step(state, action)
        assert state.success
    state, _ = Alfworld(horizon=2).reset(task.task_id)
    assert Alfworld(horizon=2).solve(state) is None


# -- files and options -----------------------------------------------------------------------------
def test_goals_of_the_corpus_are_in_no_other_split():
    def goals(split):
        return {
            (spec.scene, spec.target, spec.parent, family)
            for family in generator.FAMILIES
            for number in range(generator.GAMES_PER_FAMILY[split])
            for spec in (generator.draw(split, family, number),)
        }

    taken = goals("train") | goals("valid_seen") | goals("valid_unseen")
    assert len(goals("bootstrap")) > 1000 and not goals("bootstrap") & taken


def test_rooms_can_be_kept_small():
    env = envs.make("alfworld", max_receptacles=12)
    kept = {task.task_id for task in env.list_tasks("train")}
    for task in Alfworld().list_tasks("train")[:90]:
        intro = env.reset(task.task_id)[1].partition("Your task")[0]
        named = re.findall(r"\ba (\w+ \d+)", intro)
        assert (task.task_id in kept) == (len(named) <= 12)
    assert 0 < len(kept) < 384
    for bad, allowed in (
        (-1, "at least 6"),
        (3, "at least 6"),
        (True, "integer"),
        (2.5, "integer"),
    ):
        with pytest.raises(EnvDataError, match=f"env.options.max_receptacles = {bad}: .*{allowed}"):
            envs.make("alfworld", max_receptacles=bad)


def test_placements_are_pinned():
    """Task hashes see first observations only; this one sees whole problems."""
    digest = hashlib.sha256()
    for split in ("train", "valid_seen", "valid_unseen"):
        for family in generator.FAMILIES:
            digest.update(generator.problem(generator.draw(split, family, 1)).encode())
    assert digest.hexdigest()[:16] == "d23682537dd45697"


def test_unseen_layouts_are_in_no_other_split():
    scenes = {
        split: {generator.draw(split, f, n).scene for f in generator.FAMILIES for n in range(16)}
        for split in generator.GAMES_PER_FAMILY
    }
    assert not scenes["valid_unseen"] & (scenes["train"] | scenes["valid_seen"])
    assert scenes["valid_seen"] & scenes["train"]
    for kind in generator.ROOMS:
        assert len(set(generator.layouts(kind))) == len(generator.layouts(kind))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("alfworld_data")
    return root, Alfworld().write(root, "valid_seen", 4)


def test_a_data_directory_with_the_skip_rules_of_the_original(written, caplog):
    root, paths = written
    trials = root / "json_2.1.1" / "valid_seen"

    def copy(folder, text=None):
        target = trials / folder
        target.mkdir(parents=True, exist_ok=True)
        (target / "traj_data.json").write_text(paths[0].with_name("traj_data.json").read_text())
        if text is not None:
            (target / "game.tw-pddl").write_text(text)

    text = paths[0].read_text()
    copy("pick_and_place_with_movable_recep-Egg-Bowl-Fridge-1/trial_a", text)
    copy("pick_and_place_simple-AppleSliced-None-Fridge-1/trial_a", text)
    copy("pick_and_place_simple-Apple-None-Fridge-1/trial_nofile")
    copy(
        "pick_and_place_simple-Apple-None-Fridge-1/trial_no",
        json.dumps({**json.loads(text), "solvable": False}),
    )
    env = envs.make("alfworld", data=str(root), split="valid_seen")
    expected = sorted(f"valid_seen/{p.parent.parent.name}/{p.parent.name}" for p in paths)
    assert [task.task_id for task in env.tasks] == expected
    assert "has 4 games, the official split 140" in caplog.text
    generated = Alfworld()
    first = {generated.reset(t.task_id)[1]: t for t in generated.list_tasks("valid_seen")[:4]}
    for task in env.tasks:
        state, observation = env.reset(task.task_id)
        assert first[observation].family == task.family
        assert env.solve(state) == generated.solve(generated.reset(first[observation].task_id)[0])
    with pytest.raises(EnvDataError, match="train is missing.*alfworld-download"):
        env.list_tasks("train")
    with pytest.raises(EnvDataError, match="is not in split valid_seen"):
        env.reset("valid_seen/nothing/trial_T0")


def test_given_games(written):
    _, paths = written
    for given in (paths[1], paths[1].parent):
        env = envs.make("alfworld", games=[str(given)])
        (task,) = env.tasks
        assert task.task_id == f"games/{paths[1].parent.parent.name}/{paths[1].parent.name}"
        assert task.family == "look_at_obj_in_light" and task.split == "games"
        state, observation = env.reset(task.task_id)
        assert observation == Alfworld().reset("valid_seen/look_at_obj_in_light/0000")[1]
        for action in env.solve(state):
            state, result = env.step(state, action)
        assert result.reward == 1.0 and state.success
    with pytest.raises(EnvDataError, match="same task id"):
        envs.make("alfworld", games=[str(paths[1]), str(paths[1].parent)])


def test_states_pickle_small():
    env = Alfworld()
    state, _ = env.reset("train/pick_heat_then_place_in_recep/0000")
    for action in env.solve(state)[:3]:
        state, _ = env.step(state, action)
    assert len(pickle.dumps(state)) < 500


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data": "/nowhere"}, "env.options.data = '/nowhere'.*json_2.1.1.*alfworld-download"),
        (
            {"games": ["/nowhere/game.tw-pddl"]},
            "/nowhere/game.tw-pddl is missing.*alfworld-download",
        ),
        ({"games": "one.tw-pddl"}, "env.options.games = 'one.tw-pddl': must be a list"),
        ({"games": ["a"], "data": "b"}, "env.options.data = 'b': cannot go with"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(EnvDataError, match=message):
        envs.make("alfworld", **options)


@pytest.mark.parametrize(
    "field, old, new, message",
    [
        ("pddl_problem", "(:goal", "(:gaol", "one .:init .* and one .:goal"),
        ("pddl_problem", "(define", "(define (", "parentheses"),
        ("pddl_problem", "agent1 - agent", "agent1 - robot", "'agent1' has the unknown type 'robot'"),
        ("pddl_problem", "(atLocation agent1", "(atLocation agent9", "no object 'agent9'"),
        ("pddl_domain", "(openable ?r)\n            (atLocation", "(open ?r)\n            (atLocation", "no predicate 'open'"),
        ("grammar", '"rhs": "You close', '"rsh": "You close', "string `rhs`"),
        ("grammar", "{r.name} is closed", "{open(r)} is closed", "may use names"),
        ("grammar", 'action look {', 'action look ;', "line"),
        ("grammar", "#examineReceptacle.feedback#", "#nothing.here#", "no rule 'nothing.here'"),
    ],
)  # fmt: skip
def test_broken_games_say_what_is_wrong(tmp_path, field, old, new, message):
    spec = generator.GameSpec("pick_and_place_simple", 1, "Mug", "Cabinet", "do it", **SMALL)
    data = generator.game_data(spec)
    assert old in data[field]
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps({**data, field: data[field].replace(old, new)}))
    env = envs.make("alfworld", games=[str(path)])
    with pytest.raises(EnvDataError, match=message) as caught:
        env.step(env.reset(env.tasks[0].task_id)[0], "go to countertop 1")
    assert str(path) in str(caught.value) and field in str(caught.value)


DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 5000


@pytest.mark.parametrize("text", ["", "[]", "5", "{}", '{"grammar": 1}', "\x00", DEEP, DIGITS])
def test_files_that_are_no_games(tmp_path, text):
    path = tmp_path / "game.tw-pddl"
    path.write_text(text)
    env = envs.make("alfworld", games=[str(path)])
    with pytest.raises(EnvDataError, match="game.tw-pddl"):
        env.reset(env.tasks[0].task_id)


@pytest.mark.parametrize("file", ["game.tw-pddl", "traj_data.json"])
@pytest.mark.parametrize("text", ["[]", DEEP, DIGITS])
def test_a_broken_file_among_the_official_ones_is_named(tmp_path, file, text):
    envs.make("alfworld").write(tmp_path, "valid_seen", 1)
    (path,) = tmp_path.rglob(file)
    path.write_text(text)
    with pytest.raises(EnvDataError, match=file):
        envs.make("alfworld", data=str(tmp_path)).list_tasks("valid_seen")


LIVE = importlib.util.find_spec("textworld") and importlib.util.find_spec("alfworld")


@pytest.mark.skipif(bool(LIVE), reason="the real package is installed")
def test_without_the_package_the_adapter_says_what_to_install():
    with pytest.raises(EnvDataError, match=r"pip install -e '\.\[alfworld\]'"):
        envs.make("alfworld_real")


@pytest.mark.parametrize("name", ["alfworld", "alfworld_qwen2_5_7b", "alfworld_llama3_1_8b"])
def test_configs_make_the_environment(name):
    pytest.importorskip("ml_collections")
    path = Path(__file__).resolve().parents[2] / "configs" / f"{name}.py"
    for mode in ("full", "smoke"):
        c = runpy.run_path(str(path))["get_config"](mode)
        env = envs.make(c.env.name, horizon=c.env.horizon, **c.env.options.to_dict())
        assert {c.search.tree.split, c.evaluate.split} <= set(env.splits)
        if mode == "full" and name != "alfworld":
            assert (env.horizon, c.context.mode, c.context.window) == (50, "window", 2)
            assert c.leafe.train.learning_rate == 1e-6 and c.leafe.train.num_epochs == 2
