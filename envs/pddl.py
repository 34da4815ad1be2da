"""PDDL as TextWorld's ALFRED games use it: typing, ADL conditions, conditional effects.

`read_task` parses a domain and a problem; `Grounder` turns the operators into bit masks over the
facts that can change. Both follow the translator of Fast Downward that TextWorld embeds
(fast_downward/translate, 20.6): names are lower case, `object` is the supertype of everything, a
type that nobody declared has no objects (alfred.pddl's `?l - location,` with its stray comma is one:
that is why an object can be examined in the hand only), add wins over delete, and an operator that
would change nothing is none (`go to` where one already stands).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from envs.base import EnvDataError

Fact = tuple[str, ...]  # (predicate, object, ...)
Masks = tuple[int, int]  # (facts that must hold, facts that must not)
_MAX_TERMS = 100_000
_MAX_DEPTH = 100  # parentheses inside parentheses; ALFRED's domain has 12
_MAX_OBJECTS = 2_000  # the generated games have up to 100
_MAX_TYPES = 1_000
_MAX_WORK = 1_000_000  # conditions and bindings tried while grounding; up to 40,000 here


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
      supertypes: type -> the types it is one of, itself included.
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
    """The words of all sections of a name."""
    return list(itertools.chain.from_iterable(sections))


class _Reader:
    """Reads conditions, effects and sections; every complaint names the file."""

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

    def literal(self, tree: list, negated: bool) -> Literal:
        if not all(isinstance(word, str) for word in tree):
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
        """Refuses predicates that are not declared, or have another number of arguments."""
        for literal in _literals(*conditions):
            wanted = 2 if literal.predicate == "=" else arity.get(literal.predicate)
            if wanted is None:
                raise self.fail(f"{place}: no predicate {literal.predicate!r}")
            if wanted != len(literal.arguments):
                raise self.fail(
                    f"{place}: {literal.predicate} with {len(literal.arguments)} arguments, not {wanted}"
                )

    def action(self, words: list) -> Action:
        name, fields = words[0], dict(zip(words[1::2], words[2::2], strict=False))
        if not isinstance(name, str) or ":effect" not in fields:
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


def _literals(*conditions: Condition) -> Iterator[Literal]:
    for condition in conditions:
        if isinstance(condition, Literal):
            yield condition
        else:
            yield from _literals(*condition.parts)


# -- grounding -------------------------------------------------------------------------------------
@dataclasses.dataclass(slots=True)
class Operator:
    """An action with all its arguments.

    Attributes:
      action: its name.
      arguments: objects, aligned with the action's parameters.
      branches: it applies where one of these does.
      add, delete: facts set and unset; add wins.
      conditional: (branches, add, delete) of effects that depend on the state.
    """

    action: str
    arguments: tuple[str, ...]
    branches: tuple[Masks, ...]
    add: int
    delete: int
    conditional: tuple[tuple[tuple[Masks, ...], int, int], ...] = ()

    def apply(self, facts: int) -> int:
        """The facts after it, given those before."""
        add, delete = self.add, self.delete
        for branches, also_add, also_delete in self.conditional:
            if holds(branches, facts):
                add |= also_add
                delete |= also_delete
        return facts & ~delete | add


def holds(branches: Sequence[Masks], facts: int) -> bool:
    """Whether one of the branches does."""
    return any(facts & need == need and not facts & no for need, no in branches)


class Grounder:
    """The facts and operators of a task.

    Args:
      task: the parsed task.
      asked: predicates that are asked about from outside (by the grammar).

    Attributes:
      fluents: fact -> bit number, for the facts that can change and matter; it grows as operators
        and goal are grounded.
      static: facts that no action touches, by predicate.
      initial: mask of the fluents that hold at the start.
      changing: predicates that actions change.
    """

    def __init__(self, task: Task, asked: frozenset[str], where: str):
        self._task = task
        self._where = where
        self.fluents: dict[Fact, int] = {}
        self._work = 0
        self.changing = frozenset(e.literal.predicate for a in task.actions for e in a.effects)
        # `checked` and the like change and nobody asks: two states that differ there are the same.
        self._matters = self._relevant(asked)
        self.static: dict[str, list[Fact]] = defaultdict(list)
        for fact in sorted(task.initial):
            if fact[0] not in self.changing:
                self.static[fact[0]].append(fact)
        self._static = frozenset(f for facts in self.static.values() for f in facts)
        self._index: dict[tuple, dict[tuple, list[Fact]]] = {}
        self._free: dict[int, tuple[Condition, frozenset[str]]] = {}
        for fact in sorted(task.initial):
            if fact[0] in self._matters:
                self._bit(fact)
        self.initial = (1 << len(self.fluents)) - 1

    @functools.cached_property
    def goal(self) -> tuple[Masks, ...]:
        """Branches of the goal."""
        return tuple(self._ground(self._task.goal, {}))

    @functools.cached_property
    def operators(self) -> tuple[Operator, ...]:
        """Every operator that can ever apply, in a fixed order."""
        operators = [
            operator
            for action in self._task.actions
            for binding in self._bindings(action.parameters, _conjuncts(action.precondition), {})
            if (operator := self._operator(action, binding))
        ]
        return self._reachable(operators)

    def _relevant(self, asked: frozenset[str]) -> frozenset[str]:
        matters = set(asked)
        matters.update(lit.predicate for lit in _literals(self._task.goal))
        for action in self._task.actions:
            matters.update(lit.predicate for lit in _literals(action.precondition))
        effects = [e for action in self._task.actions for e in action.effects]
        size = -1
        while size != len(matters):
            size = len(matters)
            for effect in effects:
                if effect.literal.predicate in matters:
                    matters.update(lit.predicate for lit in _literals(effect.condition))
        return frozenset(matters) & self.changing

    def _spend(self, cost: int = 1) -> None:
        self._work += cost
        if self._work > _MAX_WORK:
            raise EnvDataError(
                f"{self._where}: grounding its actions and goal takes over {_MAX_WORK} steps"
            )

    def _bit(self, fact: Fact) -> int:
        return 1 << self.fluents.setdefault(fact, len(self.fluents))

    # -- conditions --------------------------------------------------------------------------------
    def _fact(self, literal: Literal, binding: Mapping[str, str]) -> Fact:
        return literal.predicate, *(binding.get(a, a) for a in literal.arguments)

    def _truth(self, condition: Condition, binding: Mapping[str, str]) -> bool | None:
        """Its value where that never changes, else None."""
        if isinstance(condition, Literal):
            fact = self._fact(condition, binding)
            if fact[0] == "=":
                return (fact[1] == fact[2]) != condition.negated
            if fact[0] in self.changing:
                return None
            return (fact in self._static) != condition.negated
        if condition.kind in ("exists", "forall"):
            return None
        values = [self._truth(part, binding) for part in condition.parts]
        decided = condition.kind == "or"
        if decided in values:
            return decided
        return None if None in values else not decided

    def _ground(self, condition: Condition, binding: Mapping[str, str]) -> list[Masks]:
        """Disjunctive normal form: [] is false, [(0, 0)] is true."""
        self._spend()
        truth = self._truth(condition, binding)
        if truth is not None:
            return [(0, 0)] if truth else []
        if isinstance(condition, Literal):
            bit = self._bit(self._fact(condition, binding))
            return [(0, bit) if condition.negated else (bit, 0)]
        if condition.kind == "or":
            return _unique(m for part in condition.parts for m in self._ground(part, binding))
        if condition.kind == "exists":
            inner = condition.parts[0]
            found = self._bindings(condition.parameters, _conjuncts(inner), binding)
            return _unique(m for extended in found for m in self._ground(inner, extended))
        parts = ((part, binding) for part in condition.parts)
        if condition.kind == "forall":
            kinds = [self._task.of_type(kind) for _, kind in condition.parameters]
            names = [name for name, _ in condition.parameters]
            parts = (
                (condition.parts[0], {**binding, **dict(zip(names, objects, strict=True))})
                for objects in itertools.product(*kinds)
            )
        terms: list[Masks] = [(0, 0)]
        for part, extended in parts:
            grounded = self._ground(part, extended)
            terms = _unique(
                (a | c, b | d)
                for (a, b), (c, d) in itertools.product(terms, grounded)
                if not (a | c) & (b | d)
            )
            if len(terms) > _MAX_TERMS:
                raise EnvDataError(f"{self._where}: a condition with over {_MAX_TERMS} cases")
        return terms

    def _variables(self, condition: Condition) -> frozenset[str]:
        """Free variables; kept per condition, which stays alive in the same entry."""
        kept = self._free.get(id(condition))
        if kept is None:
            if isinstance(condition, Literal):
                free = frozenset(a for a in condition.arguments if a.startswith("?"))
            else:
                free = frozenset().union(*map(self._variables, condition.parts))
                free -= {name for name, _ in condition.parameters}
            kept = self._free[id(condition)] = (condition, free)
        return kept[1]

    def _is_static(self, condition: Condition) -> bool:
        """Whether it may turn out false for good once its variables are bound."""
        return any(
            lit.predicate not in self.changing and lit.predicate != "="
            for lit in _literals(condition)
        )

    def _bindings(self, parameters, parts: Sequence[Condition], binding) -> Iterator[dict]:
        """Assignments of `parameters` for which no part is false for good."""
        self._spend()
        waiting = []
        for part in parts:
            if self._variables(part) <= binding.keys():
                if self._truth(part, binding) is False:
                    return
            else:
                waiting.append(part)
        if not parameters:
            yield dict(binding)
            return
        kinds = dict(parameters)
        best: list[Fact] | None = None
        for part in waiting:
            if isinstance(part, Literal) and not part.negated and self._is_static(part):
                matches = self._matches(part, binding)
                if best is None or len(matches) < len(best):
                    best, chosen = matches, part
        if best is not None:
            for fact in best:
                extended = self._unify(chosen.arguments, fact[1:], kinds, binding)
                if extended is not None:
                    rest = [p for p in parameters if p[0] not in extended]
                    yield from self._bindings(rest, waiting, extended)
            return
        # What completes a part soonest is bound first, so that a false part ends the search early.
        name, kind = min(
            parameters,
            key=lambda p: min(
                (
                    len(self._variables(part) - binding.keys())
                    for part in waiting
                    if p[0] in self._variables(part) and self._is_static(part)
                ),
                default=99,
            ),
        )
        rest = [p for p in parameters if p[0] != name]
        for found in self._task.of_type(kind):
            yield from self._bindings(rest, waiting, {**binding, name: found})

    def _unify(self, arguments, objects, kinds: Mapping[str, str], binding) -> dict | None:
        self._spend()
        extended = dict(binding)
        for argument, found in zip(arguments, objects, strict=False):
            if argument.startswith("?"):
                if argument in kinds and argument not in extended:
                    if kinds[argument] not in self._task.supertypes[self._task.objects[found]]:
                        return None
                if extended.setdefault(argument, found) != found:
                    return None
        return extended

    def _matches(self, literal: Literal, binding: Mapping[str, str]) -> list[Fact]:
        values = [binding.get(a, a) for a in literal.arguments]
        places = tuple(i for i, value in enumerate(values, 1) if not value.startswith("?"))
        key = (literal.predicate, places)
        if key not in self._index:
            table = self._index[key] = defaultdict(list)
            for fact in self.static[literal.predicate]:
                table[tuple(fact[i] for i in places)].append(fact)
        return self._index[key].get(tuple(values[i - 1] for i in places), [])

    # -- operators ---------------------------------------------------------------------------------
    def _operator(self, action: Action, binding: dict[str, str]) -> Operator | None:
        branches = self._ground(action.precondition, binding)
        if not branches:
            return None
        add = delete = 0
        conditional = []
        changes_more = False
        for effect in action.effects:
            if effect.literal.predicate not in self._matters:
                changes_more = True
                continue
            names = [name for name, _ in effect.parameters]
            for objects in itertools.product(
                *(self._task.of_type(kind) for _, kind in effect.parameters)
            ):
                bound = {**binding, **dict(zip(names, objects, strict=True))}
                when = self._ground(effect.condition, bound)
                bit = self._bit(self._fact(effect.literal, bound)) if when else 0
                masks = (0, bit) if effect.literal.negated else (bit, 0)
                if when == [(0, 0)]:
                    add, delete = add | masks[0], delete | masks[1]
                elif when:
                    conditional.append((tuple(when), *masks))
        delete &= ~add
        if not changes_more and not conditional:
            branches = [(a, b) for a, b in branches if add & ~a or delete & ~b]
        if not branches:
            return None
        arguments = tuple(binding[name] for name, _ in action.parameters)
        return Operator(action.name, arguments, tuple(branches), add, delete, tuple(conditional))

    def _reachable(self, operators: list[Operator]) -> tuple[Operator, ...]:
        """Those left after dropping, again and again, what needs a fact that nothing brings."""
        operators = sorted(operators, key=lambda o: o.arguments)
        order = {action.name: number for number, action in enumerate(self._task.actions)}
        operators.sort(key=lambda o: order[o.action])
        before = -1
        while before != len(operators):
            before = len(operators)
            self._spend(before)
            possible = self.initial
            for operator in operators:
                possible |= operator.add
                for _, add, _ in operator.conditional:
                    possible |= add
            for operator in operators:
                operator.branches = tuple(m for m in operator.branches if not m[0] & ~possible)
            operators = [operator for operator in operators if operator.branches]
        return tuple(operators)


def _unique(terms) -> list[Masks]:
    return list(dict.fromkeys(terms))


def _conjuncts(condition: Condition) -> tuple[Condition, ...]:
    if isinstance(condition, Group) and condition.kind == "and":
        return tuple(part for inner in condition.parts for part in _conjuncts(inner))
    return (condition,)
