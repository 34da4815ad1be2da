"""The corpus of scripted players and the tokenizer made for it, over all games."""

import json
import random

import pytest

from envs.base import EnvDataError
from leafe_jax.agent.chat import ChatFormat
from leafe_jax.bootstrap import corpus, statistics
from leafe_jax.bootstrap.config import BootstrapConfig
from leafe_jax.bootstrap.examples import MAX_POSITIONS, to_example
from leafe_jax.bootstrap.vocabulary import build_tokenizer, spelt_share
from leafe_jax.errors import UserError
from leafe_jax.run.presets import load_config
from leafe_jax.runtime.settings import build


def get_config(mode="full"):
    config = load_config("bootstrap", mode)
    with config.unlocked():
        config.bootstrap.games.code.options.allow_weak = True
    return config


def bootstrap_of(config) -> BootstrapConfig:
    return build(BootstrapConfig, config.bootstrap.to_dict(), "bootstrap")


@pytest.fixture(scope="module")
def made():
    """The shipped config with few conversations, as many of each game."""
    config = get_config()
    config.bootstrap.num_conversations = 150
    for game in config.bootstrap.games.values():
        game.weight = 1.0
    config.bootstrap.games.alfworld.options.max_receptacles = 11  # fewer games to open
    config = bootstrap_of(config)
    with corpus.open_games(config) as games:
        found = list(corpus.write_corpus(config, games, 0))
        tokenizer = build_tokenizer([turns for _, turns in found], 2, games)
        yield config, games, found, tokenizer


@pytest.mark.slow
def test_every_game_writes_what_its_prompts_read(made):
    _, games, found, _ = made
    assert {game.name for game, _ in found} == {game.name for game in games}
    assert len(games) == 6
    reflections = experiences = 0
    for game, turns in found:
        assert [t["role"] for t in turns] == ["user", "assistant"] * (len(turns) // 2)
        for step, (said, reply) in enumerate(zip(turns[::2], turns[1::2], strict=True), 1):
            experiences += "\nExperience: " in said["text"]
            assert not said["trained"] and f"[{step}] " in said["text"]
            if said["text"].endswith("what should be done instead?") or "Reflect:" in said["text"]:
                reflection = game.prompts.parse_reflection(reply["text"])
                assert reflection.status == "no_mistake" or 1 <= reflection.tau < step
                assert step == len(turns) // 2
                reflections += 1
            else:
                action, well_formed = game.prompts.parse_action(reply["text"])
                assert well_formed and game.prompts.format_action(action) == reply["text"]
    assert reflections > 12 and experiences > 25


def test_the_experience_is_followed_where_it_is_shown(made):
    """Played again: the reply under an experience is what an aware player does there."""
    _, games, found, _ = made
    (game,) = [game for game in games if game.name == "household"]
    tasks = {
        game.prompts.observation(1, game.env.reset(task.task_id)[1]): task.task_id
        for tasks in game.tasks.values()
        for task in reversed(tasks)  # the first one with a text is taken
    }
    checked = 0
    for playing, turns in found:
        if playing is not game:
            continue
        task_id = tasks[turns[0]["text"].partition("\nExperience: ")[0]]
        replies = [turn["text"] for turn in turns[1::2]]
        for number, turn in enumerate(turns[::2]):
            if "\nExperience: " in turn["text"]:
                ideal = game.player.next_action(task_id, replies[:number], game.player.all_aware)
                assert replies[number] == ideal
                checked += 1
    assert checked >= 5


def test_conversations_are_short_and_are_decoded_exactly(made):
    _, _, found, tokenizer = made
    chat = ChatFormat(tokenizer)
    names = [game.name for game, _ in found]
    table = statistics.token_statistics(
        list(zip(names, [turns for _, turns in found], strict=True)), chat
    )
    for name, row in table.items():
        assert row["max"] <= MAX_POSITIONS and row["median"] < 500, (name, row)
        assert row["cut"] == 0
    # With so few conversations many words and product codes come up once only.
    assert all(row["spelt"] < (0.5 if name == "webshop" else 0.2) for name, row in table.items())
    for _, turns in found[::3]:
        for turn in turns:
            ids = tokenizer.encode(turn["text"], add_special_tokens=False)
            assert tokenizer.decode(ids) == turn["text"]
    text = "Zażółć gęślą jaźń \t {x: 1}\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_loss_lies_on_replies_and_a_long_conversation_ends_with_one(made):
    _, _, found, tokenizer = made
    chat = ChatFormat(tokenizer)
    _, turns = max(found, key=lambda item: len(item[1]))
    whole = to_example(turns, chat, 0.25)
    replies = [chat.tokenizer.encode(t["text"], add_special_tokens=False) for t in turns[1::2]]
    trained = sum(len(r) + 1 for r, t in zip(replies, turns[1::2], strict=True) if t["trained"])
    assert (whole.mass == 1.0).sum() == trained and whole.mass[0] == 0.0
    assert set(whole.mass.tolist()) <= {0.0, 0.25, 1.0}
    cut = to_example(turns, chat, 0.25, len(whole.ids) - 1)
    end = chat.reply_end
    assert len(cut.ids) < len(whole.ids) and cut.ids[-1] == end
    assert cut.ids.tolist() == whole.ids[: len(cut.ids)].tolist()
    left = whole.ids[len(cut.ids) :].tolist()
    assert left.count(end) == 1  # only the last turn is missing


def test_units_are_one_token_and_goals_are_read_word_by_word(made):
    _, _, _, tokenizer = made

    def pieces(text):
        return [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]

    assert " drawer 1" in pieces("You arrive at drawer 1.")
    goal = pieces("\nYour task is to: put a clean mug in shelf.")
    assert goal[:3] == ["\nYour task is to:", " put", " a"]
    row = pieces(" # \t _ \t P \t X \t O \t # \t")
    assert row == [" # \t", " _ \t", " P \t", " X \t", " O \t", " # \t"]
    assert spelt_share(tokenizer, [" Nothing happens."]) == 0.0
    assert spelt_share(tokenizer, ["qqxzq"]) == 1.0


@pytest.mark.parametrize("name", ["alfworld", "sokoban", "science", "webshop", "code"])
def test_the_corpus_plays_what_the_laptop_config_plays(name):
    game = get_config().bootstrap.games[name]
    config = load_config(name)
    assert config.env.horizon == game.horizon and config.prompts.style == game.prompts.style
    assert config.context.mode == "dialogue" and config.sampler.max_len == MAX_POSITIONS
    for option, value in game.options.items():
        if option != "allow_weak":
            assert config.env.options[option] == value, option


def test_the_corpus_is_a_function_of_the_seed(made):
    config, games, _, _ = made
    cheap = [game for game in games if game.name in ("household", "science")]
    one, again, other = (
        json.dumps([turns for _, turns in corpus.write_corpus(config, cheap, seed)])
        for seed in (0, 0, 1)
    )
    assert one == again != other


def test_player_statistics_of_a_game_with_known_rates(made):
    _, games, _, _ = made
    (game,) = [game for game in games if game.name == "household"]
    rates = statistics.player_statistics(game, 0.0, 40, 0)
    assert rates["aware"] == 1.0 and rates["unaided"] <= 0.3
    assert statistics.player_statistics(game, 1e9, 40, 0)["unaided"] == 1.0
    assert rates["clean"] == rates["lamp"] == 0.0
    drawn = [corpus.draw_awareness(game, 1.0, random.Random(n)) for n in range(4000)]
    for habit, rate in game.config.unaided_rates.items():
        share = sum(habit in aware for aware in drawn) / len(drawn)
        assert abs(share - rate) < 5 * (rate / len(drawn)) ** 0.5, habit


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sokoban.unaided_rates": {"wall": 0.1}}, "sokoban.unaided_rates: 'wall'.*side, on, turn"),
        ({"sokoban.family_weights": {"big": 2.0}}, "sokoban.family_weights: 'big'"),
        ({"sokoban.options": {"min_moves": 99}}, "min_moves = 99"),
        ({"webshop.options": {"goals": "synthetic"}}, "webshop.options: .*no split 'bootstrap'"),
    ],
)
def test_clear_errors(changes, message):
    ((field, value),) = changes.items()
    name, _, section = field.partition(".")
    config = get_config(name)
    with config.unlocked():
        config.bootstrap.games[name][section].update(value)
    with (
        pytest.raises((UserError, EnvDataError), match=message),
        corpus.open_games(bootstrap_of(config)),
    ):
        pass


def test_a_missing_rate_and_no_game_are_named():
    config = get_config("household")
    with config.unlocked():
        del config.bootstrap.games.household.unaided_rates.lamp
    with pytest.raises(UserError, match="household.unaided_rates: lamp missing"):
        with corpus.open_games(bootstrap_of(config)):
            pass
    config.bootstrap.games.household.weight = 0.0
    with pytest.raises(UserError, match="no game"), corpus.open_games(bootstrap_of(config)):
        pass
