"""Messages and parsers of the paper's benchmarks against the parts verl-agent's have.

The lists of parts are written down from agent_system/environments/prompts and env_manager.py, the
cases of the parsers from env_package/*/projection.py.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompting import prompts_for

import envs
from envs.prompts import Prompts, PromptsConfig
from envs.sokoban.environment import Sokoban

FORMS = [name for name in envs.REGISTRY if envs.find(name).form.variant]
THINK = "<think>x</think>"
HISTORY = [("obs one", "act one"), ("obs two", "act two")]


def message(env, history=(), step=1, actions=("a b", "c"), goal="buy it", told=(), **more):
    prompts = prompts_for("DESCRIPTION", env, style="react")
    return prompts.window("first", history, step, "NOW", told, goal, actions, **more)


def in_order(text, parts):
    """Every part once, one behind the other, nothing but one line of our words between them."""
    places = [text.index(part) for part in parts]
    assert places == sorted(places), text
    assert all(text.count(part) == 1 for part in parts), text
    return True


LATER = [
    "already taken 2 step(s)", "The last 2 observations and the actions you took:",
    "\n[Observation 1: 'obs one', Action 1: 'act one']\n"
    "[Observation 2: 'obs two', Action 2: 'act two']\n",
    "You are now at step 3.", "Your current observation is:\nNOW\n",
]  # fmt: skip
TAGS = ["<think> </think>", "<action> </action>"]


def test_alfworld_has_the_task_in_its_first_observation_and_no_description():
    # Role, observation, actions one a line, instruction.
    listed = "admissible now: ['a b'\n 'c']."
    first = message("alfworld")
    assert in_order(first, ["You are an expert agent", "ALFRED", "NOW", listed, *TAGS])
    for absent in ("DESCRIPTION", "buy it", "already taken", "step 1", "first"):
        assert absent not in first
    later = message("alfworld", HISTORY, 3)
    assert in_order(later, ["ALFRED", "Your task is to: buy it\n", *LATER, listed, *TAGS])
    assert "DESCRIPTION" not in later


def test_scienceworld_has_its_description_and_a_text_about_its_objects():
    first = message("scienceworld", actions="OBJ can be: a, b.")
    assert in_order(first, ["ScienceWorld", "DESCRIPTION", "NOW", "OBJ can be: a, b.", *TAGS])
    later = message("scienceworld", HISTORY, 3)
    assert in_order(later, ["DESCRIPTION", "Your task is to: buy it\n", *LATER, *TAGS])


def test_the_real_package_is_asked_as_the_native_engine():
    assert message("alfworld_real", HISTORY, 3) == message("alfworld", HISTORY, 3)


def test_webshop_states_the_task_in_every_message():
    listed = "admissible now: \n[\n'a b',\n'c',\n]."
    first = message("webshop")
    assert in_order(first, ["WebShop", "Your task is to: buy it\n", "NOW", listed, *TAGS])
    assert "already taken" not in first and "step 1" not in first and "DESCRIPTION" not in first
    later = message("webshop", HISTORY, 3)
    assert in_order(later, ["WebShop", "Your task is to: buy it\n", *LATER, listed, *TAGS])


def test_webshop_drops_the_history_of_an_overlong_message():
    room = 13_000 - len(message("webshop", [("", "act one")], 2))
    fits, long = ([("x" * size, "act one")] for size in (room, room + 1))
    assert len(message("webshop", fits, 2)) == 13_000
    assert message("webshop", long, 2) == message("webshop", (), 2)
    assert "x" * (room + 1) in message("alfworld", long, 2)
    assert "x" * (room + 1) in message("webshop", long, 2, actions=None)  # for a reflection


def test_sokoban_has_symbols_goal_and_rules_before_the_board():
    env = Sokoban()
    state, seen = env.reset("test/sokoban-6x6-1/0000")
    board = seen.removeprefix(env.description).lstrip("\n")
    prompts = Prompts(env, PromptsConfig(style="react"))
    first = prompts.window(seen, [], 1, seen, (), env.goal(seen), env.actions(state))
    listed = 'admissible now: ["up", "down", "left", "right"].'
    head = ["Sokoban environment", "Symbols: ", "Goal: ", "Rules: "]
    assert in_order(first, [*head, board, listed, *TAGS])
    assert "already taken" not in first and "Your task" not in first
    history = []
    for action in ("up", ""):
        history.append((seen, action))
        state, result = env.step(state, action)
        seen = result.observation
    later = prompts.window("", history, 3, seen, (), "", env.actions(state))
    assert later.count("Symbols: ") == 1  # the first observation's own is not repeated
    now = later.index("You are now at step 3.")
    assert f"[Observation 1: '{board}', Action 1: 'up']" in later[:now]
    assert "Action 2: 'still']" in later[:now]  # what verl-agent calls a reply without a move
    assert later.index("already taken 2 step(s)") < now < later.index(seen, now)


def test_a_window_of_nothing_is_the_first_message_with_the_task():
    for env in FORMS:
        text = message(env, (), 5)
        assert "already taken" not in text and "step 5" not in text
        assert "Your task is to: buy it\n" in text


@pytest.mark.parametrize("env", [*FORMS, "household"])
def test_each_experience_is_one_line_that_can_be_taken_out(env):
    told = message(env, HISTORY, 3, told=[(1, "open it."), (3, "close it.")])
    lines = "Experience: open it.\nExperience: close it.\n"
    assert told.replace(lines, "") == message(env, HISTORY, 3) != told


@pytest.mark.parametrize(
    ("env", "reply", "action", "well_formed"),
    [
        ("sokoban", THINK + "<action>Push RIGHT, then up</action>", "up", True),  # order of the pool
        ("sokoban", THINK + "<ACTION> left </ACTION>", "left", True),
        ("sokoban", "<action>left</action>", "left", False),  # played, but penalised
        ("sokoban", THINK + "<action>north</action>", "", False),
        ("sokoban", THINK + "<action>still</action>", "still", True),
        ("sokoban", "I go up", "", False),
        ("sokoban", THINK + "<action>up</action><action>left</action>", "up", True),
        ("sokoban", "<think>上</think><action>down</action>", "down", True),
        ("alfworld", THINK + "<action> Go To desk 1 </action>", "go to desk 1", True),
        ("alfworld", "<think>上</think><action>look</action>", "look", False),
        ("alfworld", "I will go and take the mug 1 from the desk 1", "take the mug 1 from the desk 1", False),
        ("webshop", "so I will click[Buy Now] at last", "l click[buy now] at last"[-20:], False),
        ("webshop", THINK + "<action>Search[Red Shoes]</action>", "search[red shoes]", True),
        ("webshop", "short", "short", False),
        ("alfworld_real", "<think>上</think><action>look</action>", "look", False),
        ("alfworld_real", "I will go and take the mug 1 from the desk 1", "take the mug 1 from the desk 1", False),
        ("scienceworld", THINK + "<action> Focus on the Thermometer </action>", "Focus on the Thermometer", True),
        ("scienceworld", THINK + "<Action>Look Around</Action>", "Look Around</Action>", False),
        ("scienceworld", "<think>上</think><action>wait1</action>", "wait1", False),
        ("scienceworld", "then I would open door to kitchen", "open door to kitchen", False),
        ("household", THINK + "</action><action>look</action>", "", True),  # between the first of each
        ("household", THINK + "<action>a<action>b</action></action>", "a<action>b", True),
        ("alfworld", "<think>end with </action>.</think><action>go to desk 1</action>", "", True),
        ("sokoban", "<think>end with </action>.</think><action>up</action>", "", False),
        ("sokoban", THINK + "<act\u0131on>up</act\u0131on>", "", False),
        ("alfworld", "w" * 20 + " Take mug 1 from countertop 12\n\n", "ake mug 1 from countertop 12\n\n", False),
        ("household", THINK + "<action>look</action>", "look", True),
        ("household", "<action>look</action>", "look", False),
    ],
)  # fmt: skip
def test_replies_are_read_as_verl_agent_reads_them(env, reply, action, well_formed):
    assert prompts_for("", env, style="react").parse_action(reply) == (action, well_formed)


def test_a_reply_of_opening_tags_takes_no_time():
    for reply in ("<action>" * 300_000, "<ACTION>" * 300_000 + "</action"):
        assert not prompts_for("", "household", style="react").parse_action(reply)[1]
    reply = "<action>" + "<action>" * 300_000 + "</action>"
    assert prompts_for("", "household", style="react").parse_action(reply)[0].startswith("<action>")


# -- totality --------------------------------------------------------------------------------------
PIECES = st.sampled_from(["<think>", "</think>", "<action>", "</action>", "up", "上", " ", "\x00"])


@given(st.sampled_from([*FORMS, "household"]), st.lists(st.one_of(PIECES, st.text()), max_size=8))
def test_any_reply_is_an_action(env, pieces):
    reply = "".join(pieces)
    action, well_formed = prompts_for("", env, style="react").parse_action(reply)
    assert isinstance(action, str) and isinstance(well_formed, bool)
    if well_formed:
        assert {"<think>", "</think>"} <= {p for p in PIECES_IN if p in reply}
    if env == "sokoban":
        assert action in ("", "up", "down", "left", "right", "still")


PIECES_IN = ("<think>", "</think>")
