"""A small game of ALFWorld, for tests that search through it or play it by hand."""

from envs.alfworld import games as generator
from envs.alfworld.engine import Game

# A kitchen small enough to search through, in the layout of GameSpec.
SMALL = {
    "receptacles": (("CounterTop", 1, False), ("Fridge", 2, False), ("Microwave", 3, False),
                    ("SinkBasin", 4, False), ("Cabinet", 5, False), ("Desk", 5, False)),
    "objects": (("Mug", 0), ("Mug", 1), ("DeskLamp", 5), ("Knife", 0), ("Apple", 3)),
}  # fmt: skip


def small_game(family="pick_and_place_simple", parent="Cabinet", **changes):
    spec = generator.GameSpec(family, 1, "Mug", parent, "do it", **{**SMALL, **changes})
    return Game(generator.game_data(spec), "small")


def follow(game, *commands):
    """Plays understood commands; returns (position, last feedback)."""
    position, feedback = game.start, game.intro
    for command in commands:
        position, feedback, understood = game.play(position, command)
        assert understood, (command, game.admissible(position))
    return position, feedback
