"""TextWorld's twl2 grammar, from which commands and feedback are made.

A game file contains its grammar, so there is no English text here. The format and its quirks are those
of textworld 1.7 (textworld/envs/pddl: logic.ebnf, textgen.ebnf, textgen/__init__):
`#rule#` expands the first alternative whose condition holds, `{expression}` evaluates,
`{expression | query}` repeats for every answer of the query, `[{...}]` joins these as a list.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from envs import files
from envs.base import EnvDataError

_MAX_COST = 100_000  # of one text; generated games need up to 350
_MAX_DEPTH = 50  # rules inside rules; ALFRED's grammar has 4

Placeholder = tuple[str, str]  # (name, type)
Binding = Mapping[Placeholder, str]  # placeholder -> object id


@dataclasses.dataclass(frozen=True)
class Entity:
    """The attributes of an object that an expression may use."""

    id: str
    type: str
    name: str
    indefinite: str = "a"
    definite: str = "the"

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Atom:
    """`predicate(o:object, r:receptacle)` in a query."""

    predicate: str
    placeholders: tuple[Placeholder, ...]


class World(Protocol):
    """Answers queries from facts."""

    def assignments(self, query: tuple[Atom, ...], binding: Binding) -> Iterable[Binding]:
        """Bindings that extend `binding` and make every atom of the query true, in text order."""

    def entity(self, object_id: str) -> Entity:
        """The object's names."""


@dataclasses.dataclass(frozen=True)
class _Reference:
    rule: str


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    source: str
    value: Callable[[Mapping[str, Entity]], Any]


@dataclasses.dataclass(frozen=True)
class _Repeat:
    """`{expression | query}`, or `[...]` around it when `listed`."""

    expression: _Reference | _Evaluation
    query: tuple[Atom, ...]
    listed: bool


Symbol = str | _Reference | _Evaluation | _Repeat


@dataclasses.dataclass(frozen=True)
class ActionText:
    """The command template of an action and its feedback."""

    template: tuple[Symbol, ...]
    feedback: tuple[Symbol, ...]


class _Spent(Exception):
    """An expansion costs more than its budget."""


class Budget:
    """The cost limit of an expansion: 1 per symbol, character, and fact that a query inspects.

    Args:
      limit: most total cost.
    """

    def __init__(self, limit: int = _MAX_COST):
        self.limit = limit
        self._left, self._depth = limit, 0

    def spend(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise _Spent

    @contextlib.contextmanager
    def deeper(self) -> Iterator[None]:
        """Enters a nested rule."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Spent
        yield
        self._depth -= 1


class Grammar:
    """A parsed grammar.

    Args:
      text: the grammar, in twl2.
      where: its name in errors.

    Attributes:
      actions: lower-case action name -> ActionText.

    Raises:
      EnvDataError: not twl2, or an expression beyond names, attributes, strings, +, or, and.
    """

    def __init__(self, text: str, where: str):
        self._where = where
        actions, rules = _parse_document(text, where)
        self._rules: dict[str, list[tuple[tuple[Atom, ...], tuple[Symbol, ...]]]] = {}
        for name, alternatives in rules.items():
            self._rules[name] = [self._alternative(name, one) for one in alternatives]
        self.actions = {
            name: ActionText(
                parse_symbols(parts.get("template", ""), f"{where}: action {name}: template"),
                parse_symbols(parts.get("feedback", ""), f"{where}: action {name}: feedback"),
            )
            for name, parts in actions.items()
        }

    def _alternative(self, name: str, one: Any):
        where = f"{self._where}: rule {name!r}"
        if not isinstance(one, dict) or not isinstance(one.get("rhs"), str):
            raise EnvDataError(f"{where} = {one!r}: must be an object with a string `rhs`")
        condition = parse_query(one["condition"], where) if one.get("condition") else ()
        return condition, parse_symbols(one["rhs"], where)

    def predicates(self) -> frozenset[str]:
        """Predicates in any query; `not_p` if a query asks for facts that have become false."""
        names = set()
        for alternatives in self._rules.values():
            for condition, symbols in alternatives:
                names.update(atom.predicate for atom in condition)
                names |= queried(symbols)
        for action in self.actions.values():
            names |= queried(action.template) | queried(action.feedback)
        return frozenset(names)

    def derive(
        self,
        symbols: Iterable[Symbol],
        world: World,
        binding: Binding,
        budget: Budget | None = None,
    ) -> str:
        """The text of `symbols` in a world.

        Args:
          symbols: what to expand.
          world: answers queries.
          binding: the objects of placeholders.
          budget: the cost limit; None: a new one.

        Raises:
          EnvDataError: a rule is missing, has no alternative that applies, or expands without end; or
            an expression uses an unbound name.
        """
        budget = Budget() if budget is None else budget
        try:
            return self._derive(symbols, world, binding, budget)
        except _Spent:
            raise EnvDataError(
                f"{self._where}: the text of {_shown(symbols)} expands to over {budget.limit}"
                f" characters, rules and facts, or {_MAX_DEPTH} rules deep"
            ) from None

    def _derive(self, symbols: Iterable[Symbol], world: World, binding: Binding, budget) -> str:
        out: list[str] = []
        for symbol in symbols:
            budget.spend(1)
            if isinstance(symbol, str):
                budget.spend(len(symbol))
                out.append(symbol)
            elif isinstance(symbol, _Repeat):
                texts = [
                    self._derive((symbol.expression,), world, found, budget)
                    for found in (
                        world.assignments(symbol.query, binding) if symbol.query else (binding,)
                    )
                ]
                joined = (
                    self._join(texts, world, binding, budget) if symbol.listed else "".join(texts)
                )
                out.append(joined)
            elif isinstance(symbol, _Reference):
                with budget.deeper():
                    expanded = self._expand(symbol.rule, world, binding)
                    out.append(self._derive(expanded, world, binding, budget))
            else:
                names = {name: world.entity(found) for (name, _), found in binding.items()}
                try:
                    out.append(str(symbol.value(names)))
                except KeyError as error:
                    raise EnvDataError(
                        f"{self._where}: {{{symbol.source}}} names {error}, which is not bound"
                    ) from None
        return "".join(out)

    def _expand(self, rule: str, world: World, binding: Binding) -> tuple[Symbol, ...]:
        if rule not in self._rules:
            raise EnvDataError(f"{self._where}: no rule {rule!r}")
        for condition, symbols in self._rules[rule]:
            if not condition or next(iter(world.assignments(condition, binding)), None) is not None:
                return symbols
        raise EnvDataError(f"{self._where}: rule {rule!r}: no alternative applies")

    def _join(self, texts: list[str], world: World, binding: Binding, budget) -> str:
        def rule(name: str) -> str:
            return self._derive((_Reference(name),), world, binding, budget)

        if not texts:
            return rule("list_empty")
        if len(texts) == 1:
            return texts[0]
        return rule("list_separator").join(texts[:-1]) + rule("list_last_separator") + texts[-1]


def _shown(symbols: Iterable[Symbol]) -> str:
    """The first symbol of a right-hand side, for errors."""
    first = next(iter(symbols), "")
    return f"#{first.rule}#" if isinstance(first, _Reference) else repr(first)[:60]


def queried(symbols: Iterable[Symbol]) -> set[str]:
    """Predicates in the queries of `symbols`."""
    return {atom.predicate for s in symbols if isinstance(s, _Repeat) for atom in s.query}


# -- the right-hand sides --------------------------------------------------------------------------
_LITERAL = re.compile(r'[^;|"<>\[\]#{}]+')
_QUOTED = re.compile(r'"([^;|"<>\[\]#{}]*)"')
_REFERENCE = re.compile(r"#([\w()/!<>\-\s,.]+)#")
_REPEAT = re.compile(
    r"\{(?:#(?P<rule>[\w()/!<>\-\s,.]+)#|(?P<source>[^|\[\]{}\n<>#][^|\[\]{}\n<>]*+))"
    r"(?:\s*\|\s*(?P<query>[^;|{}\n\[\]#]+))?\}"
)
# The original takes white space before the first symbol for an empty comment. So a text cannot begin
# with a blank or a line break ("help" loses its first line).
_SKIPPED = re.compile(r"\t*(?://.*|\s*)\n?")


def parse_symbols(text: str, where: str) -> tuple[Symbol, ...]:
    """The symbols of a right-hand side. As in the original, text after an error is dropped."""
    symbols: list[Symbol] = []
    at = _SKIPPED.match(text).end()
    while at < len(text):
        if text.startswith("[{", at):
            found = _REPEAT.match(text, at + 1)
            if found is None or not text.startswith("]", found.end()):
                break
            symbols.append(_repeat(found, True, where))
            at = found.end() + 1
        elif found := _REPEAT.match(text, at):
            symbols.append(_repeat(found, False, where))
            at = found.end()
        elif found := _REFERENCE.match(text, at):
            symbols.append(_Reference(found[1]))
            at = found.end()
        elif found := _QUOTED.match(text, at):
            symbols.append(found[1])
            at = found.end()
        elif found := _LITERAL.match(text, at):
            symbols.append(found[0])
            at = found.end()
        else:
            break
    return tuple(symbols)


def _repeat(found: re.Match, listed: bool, where: str) -> Symbol:
    expression = _Reference(found["rule"]) if found["rule"] else _expression(found["source"], where)
    query = parse_query(found["query"], where) if found["query"] else ()
    return _Repeat(expression, query, listed) if listed or query else expression


_ATOM = re.compile(r"\s*([\w@-]+)\(([^()]*)\)\s*")


def parse_query(text: str, where: str) -> tuple[Atom, ...]:
    """`p(a:agent, l:location) & q(l:location)`; a placeholder without a type is its own type."""
    atoms = []
    for part in text.split("&"):
        found = _ATOM.fullmatch(part)
        if found is None:
            raise EnvDataError(
                f"{where}: query {text!r}: {part.strip()!r} is not predicate(x:type)"
            )
        placeholders = []
        for argument in filter(None, (a.strip() for a in found[2].split(","))):
            name, _, kind = (word.strip() for word in argument.partition(":"))
            placeholders.append((name, kind or name))
        atoms.append(Atom(found[1], tuple(placeholders)))
    return tuple(atoms)


_ATTRIBUTES = frozenset(field.name for field in dataclasses.fields(Entity))


def _expression(source: str, where: str) -> _Evaluation:
    """A Python expression of names, attributes, strings, +, `or` and `and`; without `eval`."""
    try:
        tree = ast.parse(source.strip(), mode="eval").body
        return _Evaluation(source, _compile(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise EnvDataError(
            f"{where}: {{{source[:60]}}}: may use names, their {', '.join(sorted(_ATTRIBUTES))}, strings,"
            f" +, or, and ({error})"
        ) from None


def _compile(tree: ast.expr) -> Callable[[Mapping[str, Entity]], Any]:
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        return lambda names: tree.value
    if isinstance(tree, ast.Name):
        return lambda names: names[tree.id]
    if isinstance(tree, ast.Attribute) and tree.attr in _ATTRIBUTES:
        inner = _compile(tree.value)
        return lambda names: getattr(inner(names), tree.attr)
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        left, right = _compile(tree.left), _compile(tree.right)
        return lambda names: left(names) + right(names)
    if isinstance(tree, ast.BoolOp):
        left, *rest = (_compile(value) for value in tree.values)
        for right in rest:
            left = _either(left, right, isinstance(tree.op, ast.Or))
        return left
    raise ValueError(f"{type(tree).__name__} is not allowed")


def _either(left, right, is_or: bool):
    if is_or:
        return lambda names: left(names) or right(names)
    return lambda names: left(names) and right(names)


# -- the document ----------------------------------------------------------------------------------
_TOKEN = re.compile(
    r'(?P<block>"""(?:.|\n)*?""")|(?P<string>"[^"]*")|(?P<sign>::|[;{}])|(?P<name>[\w/-]+)'
    r"|(?P<skip>\s+|#[^\n]*)"
)
_ACTION_PARTS = {"template": "string", "feedback": "string", "grammar": "block", "pddl": "block"}


def _parse_document(text: str, where: str):
    """({action: {part: text}}, {rule: alternatives}); a later rule replaces one of the same name."""
    tokens = _tokens(text, where)
    actions: dict[str, dict[str, str]] = {}
    rules: dict[str, list] = {}
    at = 0

    def take(kind: str, value: str | None = None) -> str:
        nonlocal at
        found_kind, found, line = tokens[at]
        if found_kind != kind or value not in (None, found):
            raise EnvDataError(f"{where}, line {line}: {found!r} where {value or kind} should be")
        at += 1
        return found

    def part(allowed: Mapping[str, str]) -> tuple[str, str]:
        line = tokens[at][2]
        name = take("name")
        if name not in allowed:
            raise EnvDataError(f"{where}, line {line}: {name!r}: must be one of {sorted(allowed)}")
        take("sign", "::")
        value = take(allowed[name])
        take("sign", ";")
        return name, value[1:-1] if allowed[name] == "string" else textwrap.dedent(value[3:-3])

    while tokens[at][0] != "end":
        if tokens[at][1] != "action":
            _, block = part({"grammar": "block"})
            rules.update(_rules(block, where))
            continue
        take("name")
        name = take("name").lower()
        take("sign", "{")
        actions[name] = {}
        while tokens[at][1] != "}":
            kind, value = part(_ACTION_PARTS)
            actions[name][kind] = value
        take("sign", "}")
        kept = actions[name].get("grammar", "{}").split("\n")
        lines = (line for line in kept if not line.lstrip().startswith("#"))
        rules.update(_rules("\n".join(lines), f"{where}: action {name}"))
    return actions, rules


def _rules(block: str, where: str) -> dict[str, list]:
    rules = files.parse_json(block, f"{where}: the grammar block")
    if not isinstance(rules, dict) or not all(isinstance(v, list) for v in rules.values()):
        raise EnvDataError(f"{where}: the grammar block must map rule names to lists")
    return rules


def _tokens(text: str, where: str) -> list[tuple[str, str, int]]:
    tokens = []
    at = 0
    line = 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise EnvDataError(f"{where}, line {line}: {text[at : at + 20]!r} is not twl2")
        if found.lastgroup != "skip":
            tokens.append((found.lastgroup, found[0], line))
        line += found[0].count("\n")
        at = found.end()
    return [*tokens, ("end", "the end of the text", line)]
