"""What the adapter to the real ALFWorld package does by itself; the package is not needed here.

Beside the package it is tested in test_alfworld_parity.py.
"""

import random
import types

import pytest

import envs
from envs.alfworld import real as alfworld_real
from envs.alfworld.environment import Alfworld
from envs.base import EnvDataError


def test_it_takes_the_options_of_the_native_engine():
    real = alfworld_real.AlfworldReal
    assert (real.Options, real.horizon) == (Alfworld.Options, Alfworld.horizon)
    with pytest.raises(EnvDataError, match="env.options.max_receptacles = 3: must be 0"):
        envs.make("alfworld_real", max_receptacles=3)


class Counter:
    """A stand-in for the package: a position is the list of commands, numbered as they are met."""

    def __init__(self):
        self.met = [()]
        self.steps = 0
        self.chain = types.SimpleNamespace(state=(), downward_lib=self)
        facts = {name: {} for name in alfworld_real._FACTS}
        self.chain._pddl_state = types.SimpleNamespace(_operators=(), **facts)

    def get_state_id(self):
        return self.number

    def set_state_id(self, number):
        self.number = number

    number = 0

    def step(self, command):
        self.steps += 1
        assert self.chain.state == self.met[self.number]  # it stands where the library stands
        self.met.append((*self.met[self.number], command))
        self.number = len(self.met) - 1
        self.chain.state = self.met[self.number]
        self.chain._pddl_state._facts[command] = {self.number}


def loaded(package):
    game = object.__new__(alfworld_real._Loaded)
    game.chain, game._env = package.chain, package
    game._start = game._snapshot()
    game._kept = alfworld_real.collections.OrderedDict()
    return game


def test_positions_that_were_given_up_are_played_again(monkeypatch):
    monkeypatch.setattr(alfworld_real, "_MAX_KEPT", 20)
    package = Counter()
    game = loaded(package)
    rng = random.Random(0)
    for _ in range(300):
        commands = tuple(rng.choice("abc") for _ in range(rng.randrange(30)))
        assert game.restore(commands) == commands
        assert set(package.chain._pddl_state._facts) == set(commands)
        assert len(game._kept) <= 20
    # What is kept costs no step.
    game.restore(tuple("abcabc"))
    before = package.steps
    assert game.restore(tuple("abc")) == tuple("abc") and game.restore(()) == ()
    assert game.restore(tuple("abcabc")) == tuple("abcabc") and package.steps == before
