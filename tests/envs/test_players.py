"""Scripted players: aware of everything they win, unaware of one thing they fail by it."""

import random

import pytest

import envs
from envs.base import EnvDataError
from envs.player import make_player
from envs.prompts import Prompts

SCIENCE = ("find-living-thing", "find-non-living-thing", "use-thermometer", "mix-paint",
           "lifespan-longest-lived", "lifespan-shortest-lived")  # fmt: skip
# Game -> (options, held-out split, tasks drawn, least share that the aware player solves).
GAMES = {
    "household": ({}, "test", 60, 1.0),
    "alfworld": ({"max_receptacles": 20, "horizon": 40}, "valid_unseen", 14, 1.0),
    "sokoban": ({"min_moves": 4}, "test", 40, 1.0),
    "science": ({"task_types": SCIENCE, "horizon": 20}, "test", 60, 1.0),
    # Some instructions ask for what no title shows.
    "webshop": (
        {"num_products": 250, "show_instruction": False, "horizon": 8}, "test", 40, 0.9),
    "code": ({"layout": "drills", "num_tests": 4, "allow_weak": True}, "test", 24, 1.0),
}  # fmt: skip
# A player with one of these habits alone may be lucky: the object also lies in the open, the first
# result does as well.
MAY_BE_LUCKY = {("household", "closed"), ("webshop", "attribute"), ("webshop", "price")}
MAY_BE_RARE = {("alfworld", "heat"), ("alfworld", "cool"), ("code", "floor"), ("code", "end")}


@pytest.fixture(scope="module", params=sorted(GAMES))
def game(request):
    options, split, count, least = GAMES[request.param]
    env = envs.make(request.param, **options)
    tasks = list(env.list_tasks(split))
    random.Random(0).shuffle(tasks)
    player = make_player(env)
    ideal = {task.task_id: player.play(task.task_id, player.all_aware) for task in tasks[:count]}
    yield request.param, player, ideal, least
    env.close()


def test_every_environment_with_a_player_is_tested():
    assert set(GAMES) == {name for name in envs.REGISTRY if envs.find(name).player}


def test_the_aware_player_wins_and_the_unaware_one_does_not(game):
    _, player, ideal, least = game
    assert sum(played.success for played in ideal.values()) >= least * len(ideal)
    hasty = [player.play(task_id, frozenset()).success for task_id in ideal]
    assert sum(hasty) <= 0.15 * len(hasty)
    for task_id, played in ideal.items():
        if played.success:
            assert player.diagnose(task_id, played.actions, {}) is None


def test_one_habit_spoils_the_episode_and_its_advice_mends_it(game):
    name, player, ideal, _ = game
    prompts = Prompts(player.env)
    for habit in player.habits:
        spoilt = failed = 0
        for task_id, played in ideal.items():
            if not played.success:
                continue
            other = player.play(task_id, player.all_aware - {habit})
            # Where the two part is the mistake, by definition; the diagnosis does not see the other.
            pairs = zip(other.actions, played.actions, strict=False)
            tau = next((n for n, (a, b) in enumerate(pairs, 1) if a != b), None)
            if tau is None:
                assert other.actions == played.actions
                continue
            spoilt += 1
            failed += not other.success
            assert player.diagnose(task_id, other.actions, {}) == (tau, habit)
            assert player.diagnose(task_id, other.actions[: tau - 1], {}) is None
            text = player.advice(habit, task_id)
            assert 0 < len(text) <= 80
            reflection = prompts.parse_reflection(prompts.format_reflection(tau, text))
            assert (reflection.tau, reflection.experience) == (tau, text)
            told = player.play(task_id, player.all_aware, other.actions[: tau - 1])
            assert told.success and told.actions[: tau - 1] == other.actions[: tau - 1]
            assert player.diagnose(task_id, told.actions, {tau: text}) is None
            # Who was told and does not listen is not told the same again.
            again = player.diagnose(task_id, other.actions, {tau: text})
            assert again is None or player.advice(again[1], task_id) != text
        assert spoilt or (name, habit) in MAY_BE_RARE
        assert failed == spoilt or (name, habit) in MAY_BE_LUCKY


def test_slips_spoil_nothing(game):
    name, player, ideal, _ = game
    slipped = wins = 0
    for number, task_id in enumerate(ideal):
        slips: set[int] = set()
        played = player.play(
            task_id, player.all_aware, slip_rate=0.2, rng=random.Random(number), slips=slips
        )
        assert all(played.habits[step - 1] is None for step in slips)
        assert player.diagnose(task_id, played.actions, {}) is None
        slipped += bool(slips)
        wins += played.success and bool(slips)
    assert slipped or name == "code"
    assert wins >= 0.5 * slipped  # they cost steps, and some tasks have few to spare


def test_players_act_from_any_history(game):
    """Whatever a model did before, the player has an action and the diagnosis an answer."""
    _, player, ideal, _ = game
    for number, task_id in enumerate(list(ideal)[:12]):
        rng = random.Random(number)
        state, _ = player.env.reset(task_id)
        actions = []
        while not state.done and len(actions) < 12:
            listed = player.env.actions(state)
            plain = [a for a in listed if not a.startswith("search[")] or ["print(1)"]
            actions.append(rng.choice([*rng.sample(plain, min(3, len(plain))), "hello", ""]))
            state, _ = player.env.step(state, actions[-1])
            player.diagnose(task_id, actions, {1: "nothing"})
            if not state.done:
                assert player.next_action(task_id, actions, player.all_aware)


def test_clear_errors():
    with pytest.raises(EnvDataError, match="scienceworld.*has no scripted player"):
        make_player(type("Other", (), {"name": "scienceworld", "player": ""})())
    for path in ("nowhere:Player", "envs.player:Nobody", "envs.player:", "Player"):
        with pytest.raises(EnvDataError, match=f"guess: player = '{path}' cannot be imported: "):
            make_player(type("Guess", (), {"name": "guess", "player": path})())
    several = envs.make("sokoban", size=(7, 7), num_boxes=2, horizon=25)
    with pytest.raises(EnvDataError, match="2 boxes"):
        make_player(several).play(several.list_tasks("train")[0].task_id, frozenset())
    own = envs.make("code", allow_weak=True)
    with pytest.raises(EnvDataError, match='layout = "drills"'):
        make_player(own).play(own.list_tasks("train")[0].task_id, frozenset())
    laboratory = envs.make("science")
    with pytest.raises(EnvDataError, match="'boil'.*task_types"):
        make_player(laboratory).play("train/boil/0000", frozenset())
    shop = envs.make("webshop", goals="synthetic", num_products=60)
    with pytest.raises(EnvDataError, match='goals = "human"'):
        make_player(shop).play(shop.list_tasks("train")[0].task_id, frozenset())
