"""Household rules and wording, line by line, against alfred.pddl and alfred.twl2 as read by hand."""

import dataclasses

import pytest

from envs.household.environment import (
    FAMILIES,
    NOTHING,
    Household,
    HouseholdState,
    Room,
    apply,
    make_room,
    reached_goal,
    room_split,
)
from envs.household.player import HouseholdPlayer

KITCHEN = Room(
    "heat", "put a hot mug in shelf", "mug", "shelf",
    ("fridge 1", "microwave 1", "sinkbasin 1", "shelf 1", "countertop 1"),
    (("egg 1",), (), (), (), ("apple 2", "knife 1", "mug 1")),
)  # fmt: skip


def talk(room: Room, lines: str) -> HouseholdState:
    """Plays `> command` lines and compares the line after each with the feedback."""
    state = HouseholdState(task_id="", contents=room.contents)
    pairs = [line.strip() for line in lines.strip().splitlines()]
    for command, expected in zip(pairs[::2], pairs[1::2], strict=True):
        state, feedback = apply(room, state, command.removeprefix("> "))
        assert feedback == expected, command
    return state


def test_a_conversation_with_the_kitchen():
    state = talk(
        KITCHEN,
        """
        > look
        You are in the middle of a room. Looking quickly around you, you see a fridge 1, a microwave 1, a sinkbasin 1, a shelf 1, and a countertop 1.
        > inventory
        You are not carrying anything.
        > examine fridge 1
        Nothing happens.
        > go to fridge 1
        You arrive at fridge 1. The fridge 1 is closed.
        > go to fridge 1
        Nothing happens.
        > take egg 1 from fridge 1
        Nothing happens.
        > open fridge 1
        You open the fridge 1. The fridge 1 is open. In it, you see an egg 1.
        > open fridge 1
        Nothing happens.
        > look
        You are facing the fridge 1. Next to it, you see nothing.
        > close fridge 1
        You close the fridge 1.
        > close fridge 1
        Nothing happens.
        > examine fridge 1
        The fridge 1 is closed.
        > go to countertop 1
        You arrive at countertop 1. On the countertop 1, you see an apple 2, a knife 1, and a mug 1.
        > Take mug 1 from countertop 1
        Nothing happens.
        > take mug 1 from  countertop 1
        Nothing happens.
        > take mug 1 from countertop 1
        You pick up the mug 1 from the countertop 1.
        > take apple 2 from countertop 1
        Nothing happens.
        > inventory
        You are carrying: a mug 1.
        > examine mug 1
        There's nothing special about mug 1.
        > heat mug 1 with microwave 1
        Nothing happens.
        > go to microwave 1
        You arrive at microwave 1. The microwave 1 is closed.
        > heat mug 1 with microwave 1
        You heat the mug 1 using the microwave 1.
        > examine mug 1
        This is a hot mug 1.
        > go to sinkbasin 1
        You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing.
        > clean mug 1 with sinkbasin 1
        You clean the mug 1 using the sinkbasin 1.
        > examine mug 1
        This is a hot and clean mug 1.
        > go to fridge 1
        You arrive at fridge 1. The fridge 1 is closed.
        > cool mug 1 with fridge 1
        You cool the mug 1 using the fridge 1.
        > examine mug 1
        This is a cool and clean mug 1.
        > move mug 1 to fridge 1
        Nothing happens.
        """,  # noqa: E501
    )
    assert state.hot == frozenset() and state.cool == {"mug 1"} and not reached_goal(KITCHEN, state)


def test_goal_needs_the_right_object_treated_and_placed():
    state = talk(
        KITCHEN,
        """
        > go to countertop 1
        You arrive at countertop 1. On the countertop 1, you see an apple 2, a knife 1, and a mug 1.
        > take mug 1 from countertop 1
        You pick up the mug 1 from the countertop 1.
        > go to microwave 1
        You arrive at microwave 1. The microwave 1 is closed.
        > heat mug 1 with microwave 1
        You heat the mug 1 using the microwave 1.
        > go to shelf 1
        You arrive at shelf 1. On the shelf 1, you see nothing.
        > move mug 1 to shelf 1
        You move the mug 1 to the shelf 1.
        """,
    )
    assert reached_goal(KITCHEN, state)
    assert not reached_goal(KITCHEN, dataclasses.replace(state, hot=frozenset()))
    assert not reached_goal(dataclasses.replace(KITCHEN, object_class="cup"), state)


def test_slicing_needs_the_knife_in_hand():
    talk(
        KITCHEN,
        """
        > go to countertop 1
        You arrive at countertop 1. On the countertop 1, you see an apple 2, a knife 1, and a mug 1.
        > slice apple 2 with knife 1
        Nothing happens.
        > take knife 1 from countertop 1
        You pick up the knife 1 from the countertop 1.
        > slice mug 1 with knife 1
        Nothing happens.
        > slice apple 2 with knife 1
        You sliced the apple 2 with the knife 1.
        > examine apple 2
        This is a sliced apple 2.
        """,
    )


def test_lamp():
    room = Room("look", "look at cd under the desklamp", "cd", "", ("desk 1", "bed 1"),
                (("cd 1", "desklamp 1"), ()))  # fmt: skip
    state = talk(
        room,
        """
        > use desklamp 1
        Nothing happens.
        > go to desk 1
        You arrive at desk 1. On the desk 1, you see a cd 1, and a desklamp 1.
        > examine desklamp 1
        This desklamp 1 is off.
        > take desklamp 1 from desk 1
        Nothing happens.
        > use desklamp 1
        You turn on the desklamp 1.
        > examine desklamp 1
        This desklamp 1 is on.
        """,
    )
    assert not reached_goal(room, state)
    state, _ = apply(room, state, "take cd 1 from desk 1")
    assert reached_goal(room, state)
    state, _ = apply(room, state, "go to bed 1")
    assert not reached_goal(room, state)


def test_capacity_by_class():
    room = dataclasses.replace(KITCHEN, contents=((), (), (), (), ("knife 1", "pan 1")))
    state = HouseholdState(task_id="", contents=room.contents)
    for action in ("go to countertop 1", "take knife 1 from countertop 1", "go to microwave 1",
                   "open microwave 1"):  # fmt: skip
        state, feedback = apply(room, state, action)
        assert feedback != NOTHING
    assert apply(room, state, "move knife 1 to microwave 1") == (state, NOTHING)


def test_held_out_rooms_are_nowhere_else():
    """By content, not by name: corpus and stage-1 rooms are checked against every held-out room."""
    env = Household()
    held_out = {make_room(t.task_id) for s in ("valid", "test") for t in env.list_tasks(s)}
    assert len(held_out) == 192
    for split in ("train", "bootstrap"):
        tasks = env.list_tasks(split)[:3000]
        rooms = {make_room(t.task_id) for t in tasks}
        assert not rooms & held_out and {room_split(r) for r in rooms} == {split}


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_aware_players_win_and_unaware_ones_fail_by_a_diagnosed_habit(split):
    env = Household()
    player = HouseholdPlayer(env)
    for task in env.list_tasks(split):
        told: list[str] = []
        for _ in range(4):
            played = player.play(task.task_id, frozenset(told))
            heard = {
                step: player.advice(habit, task.task_id) for step, habit in enumerate(told, start=1)
            }
            mistake = player.diagnose(task.task_id, played.actions, heard)
            if played.success:
                break
            assert mistake is not None and mistake[1] in player.habits
            told.append(mistake[1])
        assert played.success, (task.task_id, told)
        ideal = player.play(task.task_id, player.all_aware)
        assert ideal.success and player.diagnose(task.task_id, ideal.actions, {}) is None
    assert set(FAMILIES) == {t.family for t in env.list_tasks(split)}


@pytest.mark.parametrize("family", FAMILIES)
def test_admissible_commands_are_all_that_do_something(family):
    """Against every sentence of the grammar over all names of the room, along a solution."""
    env = Household()
    state, _ = env.reset(f"train/{family}/0002")
    room = make_room(state.task_id)
    names = [*room.receptacles, *(name for names in room.contents for name in names)]
    two = [("take", "from"), ("move", "to"), ("slice", "with")]
    two += [(verb, "with") for verb in ("clean", "heat", "cool")]
    sentences = ["look", "inventory", *(f"go to {n}" for n in names)]
    sentences += [f"{v} {n}" for v in ("open", "close", "use", "examine") for n in names]
    sentences += [f"{v} {a} {p} {b}" for v, p in two for a in names for b in names]
    for action in env.solve(state):
        understood = {s for s in sentences if apply(room, state, s)[1] != NOTHING}
        assert set(env.actions(state)) == understood
        assert action in understood
        state, _ = env.step(state, action)
