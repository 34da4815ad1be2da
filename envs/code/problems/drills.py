"""Drills: short problems with a small vocabulary, each with one thing that is easy to get wrong.

They are for models too small for the easy band (layout "drills" of `code`). A drill is a way of reading
input, an operation, and at most one more step. What is easy to get wrong is its trap, and `flawed` is a
program that falls into it. The hash of its statement decides a drill's split: half of them are for
scripted corpora only ("bootstrap").
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Iterator

from envs.base import stable_seed
from envs.code.data import Case, Problem
from envs.code.problems.inputs import Make, numbers, row, whole

TRAPS = ("int", "floor", "part", "end", "list", "order")
SPLITS = ("train", "valid", "test", "bootstrap")
NUM_PUBLIC = 1
NUM_TESTS = 4
_MOST_DRAWS = 1000
_SPLIT_OF = ("test", "valid", "train", "train", *["bootstrap"] * 4)
_READ = {
    "numbers": ("Read a number n.", "n = int(input())", "n = input()"),
    "pairs": (
        "Read two numbers a and b.", "a, b = map(int, input().split())", "a, b = input().split()"),
    "lists": (
        "Read numbers on one line.", "xs = list(map(int, input().split()))", "xs = input().split()"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drill:
    """One drill.

    Attributes:
      family: the input: "numbers", "pairs" or "lists".
      statement: the problem.
      reference: a solution.
      flawed: a program that falls into the trap.
      trap: one of TRAPS.
      advice: one line that avoids the trap.
      make: draws an input.
    """

    family: str
    statement: str
    reference: str
    flawed: str
    trap: str
    advice: str
    make: Make

    @property
    def split(self) -> str:
        return _SPLIT_OF[stable_seed("code-drill-split", self.statement) % len(_SPLIT_OF)]

    @property
    def name(self) -> str:
        asked = self.statement.removeprefix(_READ[self.family][0]).removeprefix(" Print ")
        return asked.replace(",", "").rstrip(".").replace(" ", "-")


ADVICE = {
    "int": "turn the input into numbers with int.",
    "floor": "use // to round down.",
    "end": "range leaves out its end: add 1 to it.",
    "list": "print with * to leave out the brackets.",
    "order": "sort with reverse=True.",
}


def _drill(
    family: str, asked: str, right: str, wrong: str, trap: str, make: Make, advice: str = ""
) -> Drill:
    """A drill, from its print lines without and with the mistake."""
    words, read, careless = _READ[family]
    return Drill(
        family,
        f"{words} Print {asked}.",
        f"{read}\nprint({right})",
        f"{careless if trap == 'int' else read}\nprint({wrong})",
        trap,
        advice or ADVICE[trap],
        make,
    )


_OPERATIONS = (("plus", "+"), ("minus", "-"), ("times", "*"))


def _more(family: str, asked: str, value: str, make: Make) -> Iterator[Drill]:
    """Drills with a last step, which the flawed program forgets."""
    whole_value = f"({value})" if " " in value and "(" not in value else value
    for word, sign in (("plus", "+"), ("times", "*")):
        for k in (2, 3, 5, 7):
            used = whole_value if sign == "*" else value
            yield _drill(
                family, f"{asked}, {word} {k}", f"{used} {sign} {k}", value, "part", make,
                f"do not forget the last part: {word} {k}.",
            )  # fmt: skip


def _of_numbers() -> Iterator[Drill]:
    make = whole(11, 60)
    for k in range(2, 16):
        for word, sign in _OPERATIONS:
            yield _drill("numbers", f"n {word} {k}", f"n {sign} {k}", f"n {sign} {k}", "int", make)
        yield _drill(
            "numbers", f"the rest of n divided by {k}", f"n % {k}", f"n % {k}", "int", make
        )
        yield _drill(
            "numbers", f"n divided by {k}, rounded down", f"n // {k}", f"n / {k}", "floor", make
        )
    for k in range(2, 10):
        yield from _more("numbers", f"n times {k}", f"n * {k}", make)
    short = whole(12, 16)
    for k in range(1, 10):
        yield _drill("numbers", f"the numbers from {k} to n", f"*range({k}, n + 1)",
                     f"*range({k}, n)", "end", short)  # fmt: skip
        yield _drill("numbers", f"the sum of the numbers from {k} to n", f"sum(range({k}, n + 1))",
                     f"sum(range({k}, n))", "end", short)  # fmt: skip


def _of_pairs() -> Iterator[Drill]:
    make = row(whole(21, 60), whole(3, 9))
    values = [(f"a {word} b", f"a {sign} b") for word, sign in _OPERATIONS]
    values += [("the rest of a divided by b", "a % b")]
    values += [("the larger one", "max(a, b)"), ("the smaller one", "min(a, b)")]
    for asked, value in values:
        yield _drill("pairs", asked, value, value, "int", make)
        yield from _more("pairs", asked, value, make)
    yield _drill("pairs", "a divided by b, rounded down", "a // b", "a / b", "floor", make)
    near = row(whole(1, 9), whole(12, 18))
    yield _drill(
        "pairs", "the numbers from a to b", "*range(a, b + 1)", "*range(a, b)", "end", near
    )
    yield _drill("pairs", "the sum of the numbers from a to b", "sum(range(a, b + 1))",
                 "sum(range(a, b))", "end", near)  # fmt: skip


def _of_lists() -> Iterator[Drill]:
    make = numbers(4, 6, 1, 12)
    for asked, value in (("their sum", "sum(xs)"), ("the largest", "max(xs)"),
                         ("the smallest", "min(xs)")):  # fmt: skip
        yield _drill("lists", asked, value, value, "int", make)
        yield from _more("lists", asked, value, make)
    yield from _more("lists", "how many there are", "len(xs)", make)
    made = [("them", "xs")]
    for k in range(2, 10):
        made += [(f"each of them {w} {k}", f"[x {s} {k} for x in xs]") for w, s in _OPERATIONS]
        made += [(f"those above {k}", f"[x for x in xs if x > {k}]"),
                 (f"those below {k + 2}", f"[x for x in xs if x < {k + 2}]")]  # fmt: skip
    for asked, values in made:
        if values != "xs":
            yield _drill("lists", asked, f"*{values}", values, "list", make)
        yield _drill("lists", f"{asked} from small to large", f"*sorted({values})",
                     f"sorted({values})", "list", make)  # fmt: skip
        yield _drill("lists", f"{asked} from large to small", f"*sorted({values}, reverse=True)",
                     f"*sorted({values})", "order", make)  # fmt: skip


def run(program: str, text: str) -> str | None:
    """What a program of a drill prints on an input; None where it fails. Only for our own."""
    lines, printed = iter(text.splitlines()), []

    def show(*values: object) -> None:
        printed.append(" ".join(map(str, values)) + "\n")

    try:
        exec(program, {"input": lambda: next(lines), "print": show})  # noqa: S102 - our own text
    except TypeError:
        return None
    return "".join(printed)


def problem(drill: Drill) -> Problem:
    """The drill as a problem of `code`; the flawed program fails on its first test."""
    first, inputs = "", []
    for number in range(_MOST_DRAWS):
        if first and len(inputs) == NUM_TESTS - 1:
            break
        rng = random.Random(stable_seed("code-drill", drill.statement, number))
        text = drill.make(rng) + "\n"
        said = run(drill.flawed, text)
        if not first and (said is None or not _same(said, run(drill.reference, text))):
            first = text
        elif text not in (first, *inputs) and len(inputs) < NUM_TESTS - 1:
            inputs.append(text)
    assert first, f"{drill.statement}: nobody fails by its trap"
    cases = tuple(Case(text, run(drill.reference, text)) for text in (first, *inputs))
    statement = (
        f"{drill.statement}\n\nExample input:\n{first.rstrip()}\n\n"
        f"Example output:\n{cases[0].output.rstrip()}"
    )
    return Problem(
        f"{drill.split}/{drill.family}/{drill.name}", drill.family, statement,
        cases[:NUM_PUBLIC], cases, reference=drill.reference,
    )  # fmt: skip


def _same(said: str, wanted: str) -> bool:
    """As code_judge.same_output judges the outputs of drills: 8.0 is as good as 8."""
    return [w.removesuffix(".0") for w in said.split()] == wanted.split()


@functools.cache
def drills(split: str) -> dict[str, Drill]:
    """The drills of a split by task id, in an order that says nothing about them."""
    found = {
        f"{drill.split}/{drill.family}/{drill.name}": drill
        for make in (_of_numbers, _of_pairs, _of_lists)
        for drill in make()
    }
    order = sorted(found, key=lambda name: stable_seed("code-drill-order", name))
    return {name: found[name] for name in order if found[name].split == split}
