"""Grounds a PDDL task: operators and goal become bit masks over the facts that can change.

Like pddl.py, this follows Fast Downward's translator. The work is bounded: an action with too many
combinations of arguments is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from envs.alfworld.pddl import Action, Condition, Fact, Group, Literal, Task, literals
from envs.base import EnvDataError

Masks = tuple[int, int]  # (facts that must hold, facts that must not)
_MAX_TERMS = 100_000
_MAX_WORK = 1_000_000  # conditions and bindings tried; our games need up to 40,000


@dataclasses.dataclass(slots=True)
class Operator:
    """An action with all its arguments.

    Attributes:
      action: its name.
      arguments: objects, aligned with the action's parameters.
      branches: it applies if one of these holds.
      add, delete: facts set and unset; add has precedence.
      conditional: (branches, add, delete) of effects that depend on the state.
    """

    action: str
    arguments: tuple[str, ...]
    branches: tuple[Masks, ...]
    add: int
    delete: int
    conditional: tuple[tuple[tuple[Masks, ...], int, int], ...] = ()

    def apply(self, facts: int) -> int:
        """The facts after the operator, given those before."""
        add, delete = self.add, self.delete
        for branches, also_add, also_delete in self.conditional:
            if holds(branches, facts):
                add |= also_add
                delete |= also_delete
        return facts & ~delete | add


def holds(branches: Sequence[Masks], facts: int) -> bool:
    """True if one of the branches holds."""
    return any(facts & need == need and not facts & no for need, no in branches)


class Grounder:
    """The facts and operators of a task.

    Args:
      task: the parsed task.
      asked: predicates that the grammar queries.

    Attributes:
      fluents: fact -> bit number, for the facts that can change and matter; it grows while
        operators and goal are grounded.
      static: predicate -> its facts, if no action changes it.
      initial: mask of the fluents that hold at the start.
      changing: predicates that actions change.
    """

    def __init__(self, task: Task, asked: frozenset[str], where: str):
        self._task = task
        self._where = where
        self.fluents: dict[Fact, int] = {}
        self._work = 0
        self.changing = frozenset(e.literal.predicate for a in task.actions for e in a.effects)
        # Predicates such as `checked` change, but are never queried: states may differ there.
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
        matters.update(lit.predicate for lit in literals(self._task.goal))
        for action in self._task.actions:
            matters.update(lit.predicate for lit in literals(action.precondition))
        effects = [e for action in self._task.actions for e in action.effects]
        size = -1
        while size != len(matters):
            size = len(matters)
            for effect in effects:
                if effect.literal.predicate in matters:
                    matters.update(lit.predicate for lit in literals(effect.condition))
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
        """Its value if that can never change, else None."""
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
        """Free variables; cached by id, with the condition itself so that the id stays valid."""
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
        """True if bound variables may make it false for good."""
        return any(
            lit.predicate not in self.changing and lit.predicate != "="
            for lit in literals(condition)
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
        # Bind first what completes a part soonest, so that a false part ends the search early.
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
        """The operators that can ever apply: drops those that need unreachable facts, to a fixpoint."""
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
