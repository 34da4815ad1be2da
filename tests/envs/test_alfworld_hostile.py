"""Game files that were made to hang or break a run: refused in one line, at once."""

import json
import os
import random
import re
import sys
import time
import types

import pytest

import envs
from envs.alfworld import twl2
from envs.alfworld.engine import Game
from envs.base import EnvDataError

DOMAIN = """
(define (domain d)
  (:types spot thing - object)
  (:predicates (at ?p - spot) (near ?p - spot ?q - spot) (on ?x - thing))
  (:action go :parameters (?p - spot ?q - spot)
    :precondition (and (at ?p) (near ?p ?q)) :effect (and (at ?q) (not (at ?p))))
)
"""
PROBLEM = """
(define (problem p) (:domain d) (:objects a b c - spot x - thing)
  (:init (at a) (near a b) (near b c) (on x)) (:goal (at c)))
"""
RULES = {"intro": [{"rhs": "You are #where#."}], "where": [{"rhs": "{#one(p)# | at(p:spot)}"}],
         "one(p)": [{"rhs": "at {p.name}"}]}  # fmt: skip


def grammar(template="go {q.name}", feedback="Gone.", **rules):
    block = json.dumps(RULES | rules)
    return f'''grammar :: """{block}""";
        action go {{ template :: "{template}"; feedback :: "{feedback}"; }}'''


def game(domain=DOMAIN, problem=PROBLEM, text=None):
    text = grammar() if text is None else text
    return Game({"pddl_domain": domain, "pddl_problem": problem, "grammar": text}, "game.tw-pddl")


def refused(call, *arguments, **named) -> str:
    start = time.thread_time()
    with pytest.raises(EnvDataError) as error:
        call(*arguments, **named)
    assert time.thread_time() - start < 4
    assert "game.tw-pddl" in str(error.value) and str(error.value).isprintable()
    return str(error.value)


def test_the_small_game_itself_is_played():
    small = game()
    assert small.intro == "You are at a." and small.admissible(small.start) == ("go b",)
    position, feedback, valid = small.play(small.start, "go b")
    assert (feedback, valid, small.plan(position.facts, 9)) == ("Gone.", True, ["go c"])


def doubling(text, first):
    """Forty rules, each naming the next one twice."""
    return {f"{first}{n}": [{"rhs": f"#{first}{n + 1}##{first}{n + 1}#"}] for n in range(40)} | {
        f"{first}40": [{"rhs": text}]
    }


@pytest.mark.parametrize(
    "rules",
    [
        {"where": [{"rhs": "here #where#"}]},
        {"where": [{"rhs": "#there#"}], "there": [{"rhs": "#where#"}]},
        {"where": [{"rhs": "[{#where# | at(p:spot)}]"}]},
        {"where": [{"rhs": "[{#one(p)# | near(p:spot, q:spot)}]"}],
         "list_separator": [{"rhs": ", "}],
         "list_last_separator": [{"rhs": "[{#one(p)# | near(p:spot, q:spot)}]"}]},
        {"where": [{"rhs": "#w0#"}], **doubling("x", "w")},
        {"where": [{"rhs": "#w0#"}], **doubling("", "w")},
        {"where": [{"rhs": "x" * 2_000_000}]},
    ],
)  # fmt: skip
def test_grammars_without_end(rules):
    assert "expands to over" in refused(game, text=grammar(**rules))


def test_commands_and_answers_without_end():
    rules = {"w": [{"rhs": "#w#"}]}
    assert "expands to over" in refused(lambda: game(text=grammar("#w#", **rules)).commands)
    small = game(text=grammar(feedback="#w#", **rules))
    assert "expands to over" in refused(small.play, small.start, "go b")


def test_a_query_that_looks_at_too_many_facts():
    names = [f"s{n}" for n in range(60)]
    near = " ".join(f"(near {a} {b})" for a in names for b in names if a != b)
    problem = f"(define (problem p) (:objects {' '.join(names)} - spot) (:init (at s0) {near}) (:goal (at s1)))"
    query = " & ".join(f"near(v{n}:spot, v{n + 1}:spot)" for n in range(8)) + " & on(x:thing)"
    text = grammar(where=[{"rhs": "{#one(p)# | " + query + "}"}])
    assert "facts" in refused(game, problem=problem, text=text)


@pytest.mark.parametrize("source", ["(" * 9000 + "p" + ")" * 9000, "p+" * 9000 + "p", "p.name" * 9])
def test_expressions_beyond_reason(source):
    assert "may use names" in refused(game, text=grammar("go {" + source + "}"))


def test_a_row_of_blanks_takes_no_longer_than_words():
    start = time.thread_time()
    assert twl2.parse_symbols("a {b" + " " * 200_000, "test") == ("a ",)
    assert time.thread_time() - start < 4


def test_pddl_beyond_reason():
    many = " ".join(f"o{n}" for n in range(1_000_000))
    objects = PROBLEM.replace("(:objects", f"(:objects {many} - thing")
    assert "1000004 objects; at most 2000" in refused(game, problem=objects)
    kinds = " ".join(f"t{n} - t{n + 1}" for n in range(100_000))
    assert "types; at most 1000" in refused(
        game, domain=DOMAIN.replace("(:types", f"(:types {kinds}")
    )
    assert "open '('" in refused(game, domain=DOMAIN.replace("(at ?p) (near", "(not " * 5000))
    assert "open '('" in refused(game, problem="(" * 300_000)


def test_recursive_types_are_one_type():
    domain = DOMAIN.replace("(:types spot thing - object)", "(:types spot - thing thing - spot)")
    small = game(domain=domain)
    assert small.admissible(small.start) == ("go b",)


def test_actions_with_too_many_arguments_are_refused_without_trying_them_all(monkeypatch):
    monkeypatch.setattr("envs.alfworld.grounding._MAX_WORK", 50_000)
    names = " ".join(f"s{n}" for n in range(500))
    problem = PROBLEM.replace("(:objects", f"(:objects {names} - spot")
    domain = DOMAIN.replace(
        ":parameters (?p - spot ?q - spot)", ":parameters (?p ?q ?r ?s ?t - spot)"
    )
    small = game(domain=domain.replace("(near ?p ?q)", "(not (near ?r ?s))"), problem=problem)
    assert "takes over 50000 steps" in refused(lambda: small.commands)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("spot thing - object", "spot thing - (either object spot)"),
        ("a b c - spot", "a b c - (spot)"),
        ("(near a b)", "(near a (b))"),
        ("(near a b)", "(near a)"),
        ("(near a b)", "(=)"),
        ("(near a b)", "((near) a b)"),
        ("(near ?p - spot ?q - spot)", "((near) ?p)"),
        (":effect", ""),
        (":effect", "(:effect)"),
        (":effect (and (at ?q) (not (at ?p)))", ":effect"),
        ("go :parameters", ""),
        (":action go", ":action"),
        ("(not (at ?p))", "(not at)"),
        ("(not (at ?p))", "(not ())"),
        ("(and (at ?p) (near ?p ?q))", "((at) ?p)"),
        ("(:predicates", "(:constants k - nowhere) (:predicates"),
    ],
)
def test_odd_pddl_is_refused_or_read(old, new):
    assert old in DOMAIN + PROBLEM
    try:
        small = game(DOMAIN.replace(old, new), PROBLEM.replace(old, new))
        small.admissible(small.start)
    except EnvDataError as error:
        assert "game.tw-pddl: pddl_" in str(error)


def test_a_query_with_more_places_than_a_fact():
    text = grammar(where=[{"rhs": "{#one(p)# | at(p:spot, q:spot)}here"}])
    assert game(text=text).intro == "You are here."


def written(folder, data):
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_text(data if isinstance(data, str) else json.dumps(data))
    return folder


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "[" * 300_000, '{"pddl_domain": NaN}', '{"a": 1e400}', "{}"]
)
def test_game_files_that_are_none(tmp_path, text):
    env = envs.make("alfworld", games=[str(written(tmp_path / "a" / "b", text))])
    refused(env.reset, env.tasks[0].task_id)


def test_the_real_package_is_not_given_a_game_without_end(tmp_path, monkeypatch):
    for name in ("alfworld", "alfworld.agents", "alfworld.agents.environment",
                 "alfworld.agents.environment.alfred_tw_env", "fast_downward"):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(
        "envs.alfworld.real._Loaded", lambda data, chain: pytest.fail("was given it")
    )
    data = {"pddl_domain": DOMAIN, "pddl_problem": PROBLEM,
            "grammar": grammar("#w#", w=[{"rhs": "#w#"}])}  # fmt: skip
    env = envs.make("alfworld_real", games=[str(written(tmp_path / "a" / "b", data))])
    assert "expands to over" in refused(env.reset, env.tasks[0].task_id)


def test_what_is_no_file(tmp_path):
    pipe = written(tmp_path / "a" / "b", "{}") / "game.tw-pddl"
    pipe.unlink()
    os.mkfifo(pipe)
    assert "is a pipe" in refused(envs.make, "alfworld", games=[str(pipe.parent)])
    (tmp_path / "a" / "game.tw-pddl").mkdir()
    assert "is a directory" in refused(envs.make, "alfworld", games=[str(tmp_path / "a")])
    with pytest.raises(EnvDataError, match="/dev/zero: is a device"):
        envs.make("alfworld", games=["/dev/zero"])


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"task_type": 5}', "[" * 300_000])
def test_trajectory_files_that_are_none(tmp_path, content):
    folder = written(tmp_path / "json_2.1.1" / "train" / "x" / "trial", {"solvable": True})
    trajectory = folder / "traj_data.json"
    if content is None:
        os.mkfifo(trajectory)
    else:
        trajectory.write_text(content)
    with pytest.raises(EnvDataError, match="traj_data.json"):
        envs.make("alfworld", data=str(tmp_path), split="train")


def test_a_damaged_game_is_refused_or_played():
    """Words dropped, doubled and swapped at random; the seeds are fixed."""
    whole = {"pddl_domain": DOMAIN, "pddl_problem": PROBLEM, "grammar": grammar()}
    outcomes = set()
    for seed in range(400):
        rng = random.Random(seed)
        field = rng.choice(sorted(whole))
        words = re.findall(r"[()]|[^\s()]+|\s+", whole[field])
        for _ in range(rng.choice((1, 1, 2, 5))):
            at, other = rng.randrange(len(words)), rng.randrange(len(words))
            stray = rng.choice(
                ["(", ")", "-", "()", "=", "(either a b)", "\x00", '"', "{", "#", "|"]
            )
            words[at : at + rng.choice((0, 0, 1, 9))] = [rng.choice([words[other], stray])]
        try:
            damaged = Game(whole | {field: "".join(words)}, "game.tw-pddl")
            position = damaged.start
            for command in damaged.admissible(position)[:1]:
                position, _, _ = damaged.play(position, command)
            damaged.won(position)
            outcomes.add("played")
        except EnvDataError as error:
            assert "game.tw-pddl" in str(error) and str(error).isprintable()
            outcomes.add("refused")
    assert outcomes == {"played", "refused"}
