"""Parser for PDDL as in TextWorld's ALFRED games: typing, ADL conditions, conditional effects.

`read_task` parses a domain and a problem; grounding.py turns the operators into bit masks over the
facts that can change. Both follow the Fast Downward translator that TextWorld embeds
(fast_downward/translate, 20.6): names are lower case; `object` is the supertype of everything; an
undeclared type has no objects; add has precedence over delete; an operator that changes nothing does
not exist (`go to` the current place). One undeclared type is alfred.pddl's `?l - location,` with a
stray comma: for this reason only a held object can be examined.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from envs.base import EnvDataError

Fact = tuple[str, ...]  # (predicate, object, ...)
_MAX_DEPTH = 100  # parentheses inside parentheses; ALFRED's domain has 9
_MAX_OBJECTS = 2_000  # the generated games have up to 100
_MAX_TYPES = 1_000


# -- what a file says ------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Literal:
    predicate: str
    arguments: tuple[str, ...]
    negated: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """`and`, `or`, `exists` or `forall` over `parts`; the latter two bind `parameters`."""

    kind: str
    parts: tuple[Condition, ...]
    parameters: tuple[tuple[str, str], ...] = ()  # (variable, type)


Condition = Literal | Group


@dataclasses.dataclass(frozen=True)
class Effect:
    literal: Literal
    condition: Condition
    parameters: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Action:
    name: str
    parameters: tuple[tuple[str, str], ...]
    precondition: Condition
    effects: tuple[Effect, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem with its domain.

    Attributes:
      supertypes: type -> its supertypes and itself.
      objects: object -> type, in the order of the files.
      actions: in the order of the domain.
      initial: facts that hold at the start.
      measured: objects that numeric statements such as distances name.
      goal: the goal condition.
    """

    supertypes: Mapping[str, frozenset[str]]
    objects: Mapping[str, str]
    actions: tuple[Action, ...]
    initial: frozenset[Fact]
    measured: frozenset[str]
    goal: Condition

    def of_type(self, kind: str) -> tuple[str, ...]:
        """Objects of a type or its subtypes; () for a type that is not declared."""
        return self._extensions.get(kind, ())

    @functools.cached_property
    def _extensions(self) -> dict[str, tuple[str, ...]]:
        found = defaultdict(list)
        for name, kind in self.objects.items():
            for supertype in self.supertypes[kind]:
                found[supertype].append(name)
        return {kind: tuple(names) for kind, names in found.items()}


def parse_lisp(text: str, where: str) -> list:
    """Nested lists of lower-case words; `;` begins a comment."""
    stack: list[list] = [[]]
    for number, line in enumerate(text.split("\n"), 1):
        line = line.partition(";")[0].lower()
        for word in line.replace("(", " ( ").replace(")", " ) ").replace("?", " ?").split():
            if word == "(":
                stack.append([])
                if len(stack) > _MAX_DEPTH:
                    raise EnvDataError(f"{where}, line {number}: over {_MAX_DEPTH} open '('")
            elif word != ")":
                stack[-1].append(word)
            elif len(stack) == 1:
                raise EnvDataError(f"{where}, line {number}: a ')' too many")
            else:
                stack[-2].append(stack.pop())
    if len(stack) != 1 or len(stack[0]) != 1 or not isinstance(stack[0][0], list):
        raise EnvDataError(f"{where}: must be one (define ...), all parentheses closed")
    return stack[0][0]


def _typed(words: Sequence, default: str = "object") -> list[tuple[str, str]]:
    """`a b - t c` -> [(a, t), (b, t), (c, default)]."""
    out: list[tuple[str, str]] = []
    pending: list[str] = []
    words = iter(words)
    for word in words:
        if word != "-":
            pending.append(word)
            continue
        kind = next(words, default)
        out += [(name, kind) for name in pending]
        pending = []
    return out + [(name, default) for name in pending]


def _joined(sections: Sequence[list]) -> list:
    """The words of all sections with one name."""
    return list(itertools.chain.from_iterable(sections))


class _Reader:
    """Reads conditions, effects and sections; every error names the file."""

    def __init__(self, where: str):
        self.where = where

    def fail(self, what: str) -> EnvDataError:
        return EnvDataError(f"{self.where}: {what}")

    def sections(self, tree: list) -> dict[str, list]:
        """Keyword -> all sections with it, without the keyword."""
        if not tree or tree[0] != "define":
            raise self.fail("must begin with (define")
        out = defaultdict(list)
        for section in tree[1:]:
            if not isinstance(section, list) or not section or not isinstance(section[0], str):
                raise self.fail(f"{section!r} is not a section")
            out[section[0]].append(section[1:])
        return out

    def typed(self, words: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise self.fail(f"{words!r} is not a list of names")
        return tuple(_typed(words))

    def literal(self, tree: object, negated: bool) -> Literal:
        right = isinstance(tree, list) and tree and all(isinstance(word, str) for word in tree)
        if not right:
            raise self.fail(f"{tree!r} is not an atom")
        return Literal(tree[0], tuple(tree[1:]), negated)

    def condition(self, tree: object, negated: bool = False) -> Condition:
        """In negation normal form."""
        if not isinstance(tree, list):
            raise self.fail(f"{tree!r} is not a condition")
        if not tree:
            return Group("or" if negated else "and", ())
        match tree[0], len(tree):
            case "not", 2:
                return self.condition(tree[1], not negated)
            case "and" | "or", _:
                parts = tuple(self.condition(part, negated) for part in tree[1:])
                return Group("and" if (tree[0] == "and") != negated else "or", parts)
            case "imply", 3:
                parts = (self.condition(tree[1], not negated), self.condition(tree[2], negated))
                return Group("and" if negated else "or", parts)
            case "exists" | "forall", 3:
                kind = "exists" if (tree[0] == "exists") != negated else "forall"
                return Group(kind, (self.condition(tree[2], negated),), self.typed(tree[1]))
            case "not" | "imply" | "exists" | "forall", size:
                raise self.fail(f"({tree[0]} ...) with {size - 1} parts")
        return self.literal(tree, negated)

    def effects(self, tree: object, condition: Condition, parameters=()) -> list[Effect]:
        if not isinstance(tree, list):
            raise self.fail(f"{tree!r} is not an effect")
        match tree[0] if tree else "and", len(tree):
            case "and", _:
                return [e for part in tree[1:] for e in self.effects(part, condition, parameters)]
            case "increase", _:
                return []  # costs; nothing here depends on them
            case "when", 3:
                both = Group("and", (condition, self.condition(tree[1])))
                return self.effects(tree[2], both, parameters)
            case "forall", 3:
                return self.effects(tree[2], condition, parameters + self.typed(tree[1]))
            case "not", 2:
                return [Effect(self.literal(tree[1], True), condition, parameters)]
            case "when" | "forall" | "not", size:
                raise self.fail(f"effect ({tree[0]} ...) with {size - 1} parts")
        return [Effect(self.literal(tree, False), condition, parameters)]

    def check(self, place: str, arity: Mapping[str, int], *conditions: Condition) -> None:
        """Refuses predicates that are undeclared or have the wrong number of arguments."""
        for literal in literals(*conditions):
            wanted = 2 if literal.predicate == "=" else arity.get(literal.predicate)
            if wanted is None:
                raise self.fail(f"{place}: no predicate {literal.predicate!r}")
            if wanted != len(literal.arguments):
                raise self.fail(
                    f"{place}: {literal.predicate} with {len(literal.arguments)} arguments, not {wanted}"
                )

    def action(self, words: list) -> Action:
        name, *keys = words[:1] + words[1::2] or [None]
        if not all(isinstance(word, str) for word in (name, *keys)):
            raise self.fail(f"action {name!r}: must be a name, then keywords, each with its part")
        fields = dict(zip(keys, words[2::2], strict=False))  # a last keyword may lack its part
        if ":effect" not in fields:
            raise self.fail(f"action {name!r} has no :effect")
        return Action(
            name,
            self.typed(fields.get(":parameters", [])),
            self.condition(fields.get(":precondition", [])),
            tuple(self.effects(fields[":effect"], Group("and", ()))),
        )


def read_task(domain: str, problem: str, where: str) -> Task:
    """Parses a domain and a problem.

    Raises:
      EnvDataError: the texts are not the PDDL described at the top of this module.
    """
    reader = _Reader(f"{where}: pddl_domain")
    sections = reader.sections(parse_lisp(domain, reader.where))
    for unsupported in (":derived", ":durative-action"):
        if unsupported in sections:
            raise reader.fail(f"{unsupported} is not supported")
    parents = {"object": set()}
    for name, parent in reader.typed(_joined(sections[":types"])):
        parents.setdefault(name, set()).add(parent)
        parents.setdefault(parent, set())
    if len(parents) > _MAX_TYPES:
        raise reader.fail(f":types has {len(parents)} types; at most {_MAX_TYPES} are allowed")
    arity = {
        words[0]: len(reader.typed(words[1:]))
        for group in sections[":predicates"]
        for words in group
        if isinstance(words, list) and words and isinstance(words[0], str)
    }
    objects = dict(reader.typed(_joined(sections[":constants"])))
    for name, kind in objects.items():
        if kind not in parents:
            raise reader.fail(f"constant {name!r} has the unknown type {kind!r}")
    actions = tuple(reader.action(words) for words in sections[":action"])
    for action in actions:
        reader.check(f"action {action.name}", arity, action.precondition)
        for effect in action.effects:
            reader.check(f"action {action.name}", arity, effect.condition, effect.literal)

    reader = _Reader(f"{where}: pddl_problem")
    sections = reader.sections(parse_lisp(problem, reader.where))
    for name, kind in reader.typed(_joined(sections[":objects"])):
        if name in objects or kind not in parents:
            reason = "is declared twice" if name in objects else f"has the unknown type {kind!r}"
            raise reader.fail(f"object {name!r} {reason}")
        objects[name] = kind
    if len(objects) > _MAX_OBJECTS:
        raise reader.fail(f"has {len(objects)} objects; at most {_MAX_OBJECTS} are allowed")
    if len(sections[":init"]) != 1 or len(sections[":goal"]) != 1 or not sections[":goal"][0]:
        raise reader.fail("must have one (:init ...) and one (:goal ...)")
    initial, measured = _initial(reader, sections[":init"][0], objects, dict(arity))
    goal = reader.condition(sections[":goal"][0][0])
    reader.check(":goal", arity, goal)
    supertypes = {kind: _closure(kind, parents) for kind in parents}
    return Task(supertypes, objects, actions, initial, measured, goal)


def _initial(reader: _Reader, statements: list, objects: Mapping[str, str], arity: dict[str, int]):
    """(facts, measured objects) of `:init`; adds the predicates that it alone names to `arity`."""
    facts, measured = set(), set()
    for statement in statements:
        if not isinstance(statement, list) or not statement:
            raise reader.fail(f":init has {statement!r}")
        if statement[0] == "=":
            if len(statement) > 1 and isinstance(statement[1], list):
                measured.update(name for name in statement[1][1:] if isinstance(name, str))
        elif statement[0] != "not":  # what is not stated is false anyway
            fact = reader.literal(statement, False)
            for name in fact.arguments:
                if name not in objects:
                    raise reader.fail(f":init {statement!r}: no object {name!r}")
            arity.setdefault(fact.predicate, len(fact.arguments))
            reader.check(f":init {statement!r}", arity, fact)
            facts.add((fact.predicate, *fact.arguments))
    return frozenset(facts), frozenset(measured)


def _closure(kind: str, parents: Mapping[str, set[str]]) -> frozenset[str]:
    found, new = set(), {kind}
    while new:
        found |= new
        new = set().union(*(parents[k] for k in new)) - found
    return frozenset(found)


def literals(*conditions: Condition) -> Iterator[Literal]:
    for condition in conditions:
        if isinstance(condition, Literal):
            yield condition
        else:
            yield from literals(*condition.parts)
