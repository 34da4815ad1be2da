"""PDDL reading and grounding against hand-computed cases and a direct evaluation of conditions."""

import itertools
import random

import pytest

from envs.alfworld import grounding, pddl
from envs.base import EnvDataError

DOMAIN = """
(define (domain d) ; a comment with ( in it
  (:requirements :adl :typing)
  (:types thing place - object cup - thing)
  (:constants HERE - place)
  (:predicates (at ?x - thing ?p - place) (on ?x) (heavy ?x) (done) (next ?p ?q) (seen ?p))
  (:action Move :parameters (?x - thing ?p - place ?q - place)
    :precondition (and (at ?x ?p) (next ?p ?q) (not (heavy ?x)))
    :effect (and (not (at ?x ?p)) (at ?x ?q) (seen ?q) (increase (total-cost) 1)))
  (:action Flip :parameters (?x - cup) :precondition ()
    :effect (and (when (on ?x) (not (on ?x))) (when (not (on ?x)) (on ?x))))
  (:action Clear :parameters () :precondition (exists (?x - thing) (on ?x))
    :effect (forall (?x - thing) (not (on ?x))))
  (:action Odd :parameters () :precondition (exists (?p - place,) (seen ?p)) :effect (done))
  (:action Finish :parameters (?x - thing)
    :precondition (imply (heavy ?x) (on ?x)) :effect (done))
)
"""
PROBLEM = """
(define (problem p) (:domain d)
  (:objects c1 c2 - cup rock - thing B - place)
  (:init (at c1 here) (at c2 b) (at rock b) (heavy rock) (next here b) (next b b) (= (total-cost) 0))
  (:goal (and (done) (exists (?x ?y - cup) (and (not (= ?x ?y)) (at ?x b) (at ?y b))))))
"""


def ground(domain=DOMAIN, problem=PROBLEM, asked=frozenset()):
    return grounding.Grounder(pddl.read_task(domain, problem, "test"), asked, "test")


def facts_of(grounder, mask):
    return {fact for fact, bit in grounder.fluents.items() if mask >> bit & 1}


def applicable(grounder, mask):
    return {
        (o.action, *o.arguments): o for o in grounder.operators if grounding.holds(o.branches, mask)
    }


def test_operators_by_hand():
    g = ground()
    assert facts_of(g, g.initial) == {("at", "c1", "here"), ("at", "c2", "b"), ("at", "rock", "b")}
    # Move from b to b changes `seen`; Odd quantifies over the type "place,", which has no objects.
    now = applicable(g, g.initial)
    assert set(now) == {
        ("move", "c1", "here", "b"), ("move", "c2", "b", "b"), ("flip", "c1"), ("flip", "c2"),
        ("finish", "c1"), ("finish", "c2"),
    }  # fmt: skip
    moved = now["move", "c1", "here", "b"].apply(g.initial)
    assert ("at", "c1", "b") in facts_of(g, moved) and ("at", "c1", "here") not in facts_of(
        g, moved
    )
    stayed = facts_of(g, now["move", "c2", "b", "b"].apply(g.initial))
    assert stayed == facts_of(g, g.initial) | {("seen", "b")}  # add wins over delete
    flipped = now["flip", "c2"].apply(g.initial)
    assert ("on", "c2") in facts_of(g, flipped)
    assert now["flip", "c2"].apply(flipped) == g.initial
    assert applicable(g, flipped)["clear",].apply(flipped) == g.initial
    assert not grounding.holds(g.goal, moved)
    assert grounding.holds(g.goal, applicable(g, moved)["finish", "c1"].apply(moved))


def test_an_operator_that_changes_nothing_is_none():
    quiet = DOMAIN.replace("(seen ?q) ", "").replace("(exists (?p - place,) (seen ?p))", "(done)")
    now = applicable(ground(quiet), ground(quiet).initial)
    assert ("move", "c2", "b", "b") not in now and ("move", "c1", "here", "b") in now


def test_what_nobody_asks_about_is_no_fact():
    assert not any(
        fact[0] == "seen" for fact in ground(DOMAIN.replace("(seen ?p)) :e", "(done)) :e")).fluents
    )
    asked = ground(asked=frozenset({"seen"}))
    moved = applicable(asked, asked.initial)["move", "c1", "here", "b"].apply(asked.initial)
    assert ("seen", "b") in facts_of(asked, moved)


def truth(condition, true, binding, task):
    """A condition's value, straight from its definition."""
    if isinstance(condition, pddl.Literal):
        fact = (condition.predicate, *(binding.get(a, a) for a in condition.arguments))
        value = fact[1] == fact[2] if fact[0] == "=" else fact in true
        return value != condition.negated
    if condition.kind in ("and", "or"):
        values = [truth(part, true, binding, task) for part in condition.parts]
        return all(values) if condition.kind == "and" else any(values)
    names = [name for name, _ in condition.parameters]
    values = [
        truth(condition.parts[0], true, {**binding, **dict(zip(names, chosen))}, task)
        for chosen in itertools.product(*(task.of_type(kind) for _, kind in condition.parameters))
    ]
    return all(values) if condition.kind == "forall" else any(values)


GOALS = (
    "(not (exists (?x - thing) (and (heavy ?x) (on ?x))))",
    "(forall (?x - cup) (or (on ?x) (at ?x b)))",
    "(exists (?x - cup) (forall (?p - place) (imply (next here ?p) (at ?x ?p))))",
    "(or (and (on c1) (not (on c2))) (not (or (at rock b) (done))))",
    "(exists (?x ?y - thing) (and (not (= ?x ?y)) (on ?x) (not (on ?y)) (at ?y b)))",
    "(forall (?x - thing) (exists (?y - thing) (and (on ?y) (at ?x b))))",
)


@pytest.mark.parametrize("goal", GOALS)
def test_ground_conditions_against_their_definition(goal):
    head = PROBLEM.partition("(:goal")[0]
    task = pddl.read_task(DOMAIN, f"{head} (:goal {goal}))", "test")
    g = grounding.Grounder(task, frozenset({"on", "at", "done"}), "test")
    _ = g.goal, g.operators
    static = {fact for facts in g.static.values() for fact in facts}
    rng = random.Random(1)
    values = []
    for _ in range(300):
        mask = rng.getrandbits(len(g.fluents)) & rng.getrandbits(len(g.fluents))
        if rng.random() < 0.5:
            mask |= rng.getrandbits(len(g.fluents))
        values.append(truth(task.goal, facts_of(g, mask) | static, {}, task))
        assert grounding.holds(g.goal, mask) == values[-1]
    assert len(set(values)) == 2  # both values came up


def test_applicable_operators_against_their_definition():
    g = ground()
    task = pddl.read_task(DOMAIN, PROBLEM, "test")
    static = {fact for facts in g.static.values() for fact in facts}
    reached, new = set(), {g.initial}
    while new:
        reached |= new
        after = set()
        for mask in new:
            true = facts_of(g, mask) | static
            expected = {
                (action.name, *chosen)
                for action in task.actions
                for chosen in itertools.product(*(task.of_type(k) for _, k in action.parameters))
                if truth(
                    action.precondition,
                    true,
                    dict(zip((name for name, _ in action.parameters), chosen)),
                    task,
                )
            }
            now = applicable(g, mask)
            assert set(now) == expected
            after |= {operator.apply(mask) for operator in now.values()}
        new = after - reached
    assert len(reached) == 24  # c1 here or at b with b seen or not (3), either cup on (4), done (2)


@pytest.mark.parametrize(
    "domain, problem, message",
    [
        ("(define", PROBLEM, "pddl_domain: must be one .define"),
        (DOMAIN, "(define (problem p)))", "pddl_problem, line 1: a '.' too many"),
        (DOMAIN, PROBLEM.replace("c1 c2 - cup", "c1 c1 - cup"), "'c1' is declared twice"),
        (DOMAIN, PROBLEM.replace("(at c1 here)", "(at c7 here)"), "no object 'c7'"),
        (DOMAIN, PROBLEM.replace("(done) (exists", "(done) (exists (?z)"), "with 3 parts"),
        (DOMAIN.replace("(when (on ?x) (not (on ?x)))", "(when (on ?x))"), PROBLEM, "with 1 parts"),
        (DOMAIN.replace(":effect (done)", ":precondition (done)"), PROBLEM, "has no :effect"),
        (DOMAIN, PROBLEM.replace("(at ?x b)", "(at ?x b b)"), ":goal: at with 3 arguments, not 2"),
        (DOMAIN, PROBLEM.replace("(done)", "(won)"), ":goal: no predicate 'won'"),
        (DOMAIN + "x", PROBLEM, "must be one .define"),
        (DOMAIN.replace("(:action Odd", "(:derived Odd"), PROBLEM, ":derived is not supported"),
    ],
)
def test_errors(domain, problem, message):
    with pytest.raises(EnvDataError, match=message) as caught:
        pddl.read_task(domain, problem, "some file")
    assert str(caught.value).startswith("some file: pddl_")
