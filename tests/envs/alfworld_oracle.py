"""Plays games in the real ALFWorld beside our engine; also records the transcripts kept for tests.

    python tests/envs/alfworld_oracle.py --record   # writes tests/envs/data/alfworld_transcripts.json.gz
    python tests/envs/alfworld_oracle.py --games=200 # compares live, prints one line per difference
    python tests/envs/alfworld_oracle.py --speed     # steps per CPU second of both, side by side

Needs textworld==1.7.0 with its pddl extra and alfworld==0.4.2; the tests that use the transcripts do not.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import envs
from envs.alfworld import games as alfworld_games
from envs.alfworld import planner
from envs.alfworld.engine import Game, Position
from envs.base import stable_seed

TRANSCRIPTS = Path(__file__).with_name("data") / "alfworld_transcripts.json.gz"
STEPS = 50
# Things a model says that no game understands, or only sometimes; {0} is an admissible command.
ODD = ("", " ", "LOOK", "  {0}  ", "{0}.", "go to nowhere 1", "take {0}", "examine", "\t{0}\n",
       "Look", "move mug 1 to desk 1", "put mug 1 in/on desk 1", "help me", "{0} {0}")  # fmt: skip


class Real:
    """The package's own chain, without its gym wrappers."""

    def __init__(self, data: dict, demangle: bool = True):
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs import PddlEnv

        _translate_once()
        argv = list(sys.argv)  # fast_downward overwrites it
        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        self._env = PddlEnv(infos)
        if demangle:
            self._env = AlfredDemangler(self._env, shuffle=False)
        self._env.load(data)
        sys.argv[:] = argv

    def first(self) -> list:
        """Begins anew: [observation, admissible commands, reward, won, done]."""
        argv = list(sys.argv)
        s = self._env.reset()
        sys.argv[:] = argv
        return [s.feedback, list(s["admissible_commands"]), 0, bool(s["won"]), False]

    def step(self, command: str) -> list:
        s, reward, done = self._env.step(command)
        return [s.feedback, list(s["admissible_commands"]), reward, bool(s["won"]), bool(done)]


@functools.cache
def _translate_once() -> None:
    """Drops the package's second translation of each game: only its planner reads that one."""
    import fast_downward

    translate = fast_downward.pddl2sas

    def once(*arguments, optimize=False, **options):
        return (None, "") if optimize else translate(*arguments, **options)

    fast_downward.pddl2sas = once


class Ours:
    """Our engine behind the same two methods."""

    def __init__(self, data: dict):
        self.game = Game(data, "oracle")
        self.position = self.game.start

    def first(self) -> list:
        return self._row(self.game.intro, 0)

    def step(self, command: str) -> list:
        self.position, feedback, _ = self.game.play(self.position, command)
        return self._row(feedback, int(self.game.won(self.position)))

    def _row(self, feedback: str, reward: int) -> list:
        won = self.game.won(self.position)
        return [feedback, list(self.game.admissible(self.position)), reward, won, bool(reward)]


def commands(game: Game, name: str, expert_share: float):
    """A walk: a generator that is sent each position and yields the next command."""
    rng = random.Random(stable_seed("alfworld-walk", name, expert_share))
    position: Position = yield
    for _ in range(STEPS):
        listed = game.admissible(position)
        drawn = rng.random()
        if drawn < 0.08:
            command = rng.choice(ODD).format(rng.choice(listed))
        elif drawn < 0.08 + expert_share:
            plan = planner.plan(game.grounder, position.facts, STEPS)
            command = game.commands[plan[0]] if plan else "look"
        else:
            # Half of the draws by kind: there are many more places to go than things to do.
            kinds = sorted({c.split(" ")[0] for c in listed})
            kind = rng.choice(kinds) if rng.random() < 0.5 else ""
            command = rng.choice([c for c in listed if c.startswith(kind)])
        position = yield command


def play_beside(data: dict, name: str, real) -> list[tuple[str, list, list]]:
    """[(command, the real row, ours)] of a walk; `real` has first() and step()."""
    rows = []
    ours = Ours(data)
    rows.append(("", real.first(), ours.first()))
    walk = commands(ours.game, name, 0.7 if name.endswith("expert") else 0.1)
    next(walk)
    for command in _sends(walk, ours):
        rows.append((command, real.step(command), ours.step(command)))
        if rows[-1][1][4] or rows[-1][2][4]:
            break
    return rows


def _sends(walk, ours: Ours):
    while True:
        try:
            yield walk.send(ours.position)
        except StopIteration:
            return


def generated(count: int) -> list[tuple[str, dict]]:
    """(name, game data) of generated games over all types and splits, a third from each split."""
    found = []
    for number in range(10_000):
        for split in alfworld_games.GAMES_PER_FAMILY:
            for family in alfworld_games.FAMILIES:
                if len(found) == count:
                    return found
                if number < alfworld_games.GAMES_PER_FAMILY[split]:
                    spec = alfworld_games.draw(split, family, number)
                    found.append((f"{split}/{family}/{number:04d}", alfworld_games.game_data(spec)))
    return found


def compare(count: int, first: int = 0) -> None:
    games = generated(count)[first:]
    steps = differences = won = 0
    for number, (name, data) in enumerate(games, first):
        real_game = Real(data)
        for kind in ("random", "expert"):
            for command, real, ours in play_beside(data, f"{name}/{kind}", real_game):
                steps += command != ""
                won += real[3]
                if real != ours:
                    differences += 1
                    print("DIFFERENT", name, kind, repr(command), real, ours, sep="\n  ")
        print(
            f"{number + 1} games, {steps} steps, {won} won, {differences} differences", flush=True
        )


def record(count: int = 24) -> None:
    """Real transcripts of `count` games; admissible lists are kept as changes of the one before."""
    kept = {}
    for name, data in generated(count):
        real_game = Real(data)
        for kind in ("random", "expert"):
            rows = play_beside(data, f"{name}/{kind}", real_game)
            kept[f"{name}/{kind}"] = [[command, *real] for command, real, _ in rows]
    TRANSCRIPTS.parent.mkdir(exist_ok=True)
    text = json.dumps(kept, separators=(",", ":")).encode()
    TRANSCRIPTS.write_bytes(gzip.compress(text, 9, mtime=0))
    print(
        f"{len(kept)} walks, {sum(map(len, kept.values()))} rows, {TRANSCRIPTS.stat().st_size} bytes"
    )


def speed(count: int = 6) -> None:
    """Steps per second of processor time, each step with its observation, admissible commands, reward and `won`."""
    for name, data in generated(count):
        rows = play_beside(data, f"{name}/random", Ours(data))
        walk = [command for command, _, _ in rows[1:]]
        seconds = []
        for make, repeats in ((Real, 1), (Ours, 20)):
            player = make(data)
            player.first()
            player.step("look")  # ours grounds its operators at the first step
            begun = time.thread_time()
            for _ in range(repeats):
                for command in walk:
                    player.step(command)
            seconds.append((time.thread_time() - begun) / repeats / len(walk))
        real, ours = seconds
        print(f"{name}: real {1 / real:.1f}/s, ours {1 / ours:.0f}/s, {real / ours:.0f} times")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--games", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    assert envs.REGISTRY["alfworld"]
    if options.record:
        record()
    if options.games:
        compare(options.games, options.first)
    if options.speed:
        speed()
