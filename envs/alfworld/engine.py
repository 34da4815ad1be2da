"""Plays a `game.tw-pddl` file without TextWorld: same text, same commands, same rewards.

A `Game` holds what never changes: facts, operators, names, grammar. A position is two integers: the
set of facts that hold, and the set of facts that the grammar may call false. TextWorld separates them,
too: a fact is `not_p` for the grammar only after an action has made it false. So a lamp that was
never lit is not "off" (textworld/envs/pddl/logic PddlState.apply).
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from envs import files
from envs.alfworld import grounding, pddl, planner, twl2
from envs.base import EnvDataError

NOTHING = "Nothing happens."
_MAX_FILE = 4 << 20  # bytes of a game file; official ones have a few 100,000 at most
_MAX_COMMANDS = 5_000_000  # cost of all commands of a game, see twl2.Budget; about 15,000 here


class Position(NamedTuple):
    """What changes in a game.

    Attributes:
      facts: mask of the fluents that hold.
      denied: mask of the fluents that an action has made false, for predicates that the grammar
        queries as `not_...`.
    """

    facts: int
    denied: int = 0


class Game:
    """One game file.

    Args:
      data: the JSON object of a game.tw-pddl file.
      where: its name in errors.

    Attributes:
      intro: the first observation.
      start: the first position.
      grounder: facts and operators.
      entities: object id -> its names.

    Raises:
      EnvDataError: a field is missing, or a text cannot be parsed.
    """

    def __init__(self, data: dict, where: str):
        for field in ("pddl_domain", "grammar", "pddl_problem"):
            if not isinstance(data, dict) or not isinstance(data.get(field), str):
                raise EnvDataError(f"{where}: has no text {field!r}: not a game.tw-pddl file")
        self._where = where
        self._grammar = twl2.Grammar(data["grammar"], f"{where}: grammar")
        self._task = pddl.read_task(data["pddl_domain"], data["pddl_problem"], where)
        asked = self._grammar.predicates()
        positive = frozenset(name.removeprefix("not_") for name in asked)
        self._deniable = frozenset(n.removeprefix("not_") for n in asked if n.startswith("not_"))
        self._check_conditional(positive)
        self.grounder = grounding.Grounder(self._task, positive, where)
        self._parameters = {action.name: action.parameters for action in self._task.actions}
        self.entities = _entities(self._task)
        self.start = Position(self.grounder.initial)
        facts = _Facts(self._task, self.grounder)
        symbols = twl2.parse_symbols("#intro#", where)
        self.intro = self._derive(symbols, facts, self.start, {}, twl2.Budget())

    # Lazy: grounding takes most of the time, and listing tasks does not need it.
    @functools.cached_property
    def _facts(self) -> _Facts:
        _ = self.grounder.operators, self.grounder.goal  # both add facts
        return _Facts(self._task, self.grounder)

    @functools.cached_property
    def commands(self) -> tuple[str, ...]:
        """The command of each operator, aligned with grounder.operators."""
        budget = twl2.Budget(_MAX_COMMANDS)
        return tuple(self._command(o, budget) for o in self.grounder.operators)

    @functools.cached_property
    def _by_command(self) -> dict[str, list[int]]:
        numbers = defaultdict(list)
        for number, command in enumerate(self.commands):
            numbers[command].append(number)
        return dict(numbers)

    @functools.cached_property
    def _denies(self) -> list[int]:
        """For each operator, the facts that the grammar may call false after it."""
        mask = 0
        for fact, bit in self._facts.fluents.items():
            mask |= (fact[0] in self._deniable) << bit
        # Deleting a fact that the operator requires to be false has no effect, so it denies nothing.
        return [
            o.delete & mask & ~functools.reduce(int.__and__, (no for _, no in o.branches))
            for o in self.grounder.operators
        ]

    # -- playing -----------------------------------------------------------------------------------
    def applicable(self, facts: int) -> list[int]:
        """Numbers of the operators that apply, in no particular order."""
        operators = self.grounder.operators
        watched, watchers, always = self._watch
        found = [n for n in always if grounding.holds(operators[n].branches, facts)]
        for bit in _bits(facts & watched):
            for need, no, number in watchers[bit]:
                if facts & need == need and not facts & no:
                    found.append(number)
        return found

    def admissible(self, position: Position) -> tuple[str, ...]:
        """The commands that are understood, sorted as TextWorld sorts them."""
        commands = self.commands
        return tuple(sorted({commands[n] for n in self.applicable(position.facts)}))

    def play(self, position: Position, command: str) -> tuple[Position, str, bool]:
        """(new position, feedback, understood). As in TextWorld, only outer blanks are stripped."""
        for number in self._by_command.get(command.strip(), ()):
            operator = self.grounder.operators[number]
            if grounding.holds(operator.branches, position.facts):
                new = self._apply(position, number)
                symbols, binding = self._text(operator).feedback, self._binding(operator)
                feedback = self._derive(symbols, self._facts, new, binding, twl2.Budget())
                return new, feedback, True
        return position, NOTHING, False

    def won(self, position: Position) -> bool:
        """Whether the goal is reached."""
        return grounding.holds(self.grounder.goal, position.facts)

    def plan(self, facts: int, max_length: int) -> list[str] | None:
        """Commands that lead from a position to the goal, or None if no plan was found."""
        numbers = planner.plan(self.grounder, facts, max_length)
        return None if numbers is None else [self.commands[number] for number in numbers]

    def _apply(self, position: Position, number: int) -> Position:
        operator = self.grounder.operators[number]
        denied = position.denied & ~operator.add | self._denies[number]
        return Position(operator.apply(position.facts), denied)

    # -- set-up ------------------------------------------------------------------------------------
    def _check_conditional(self, asked: frozenset[str]) -> None:
        # TextWorld reports a conditional effect to its grammar even if the condition fails.
        for action in self._task.actions:
            for effect in action.effects:
                conditional = effect.condition != pddl.Group("and", ())
                if conditional and effect.literal.predicate in asked:
                    raise EnvDataError(
                        f"{self._where}: action {action.name}: `when` changes"
                        f" {effect.literal.predicate}, which the grammar asks about: not supported"
                    )

    def _text(self, operator: grounding.Operator) -> twl2.ActionText:
        text = self._grammar.actions.get(operator.action)
        if text is None:
            raise EnvDataError(f"{self._where}: grammar: no action {operator.action!r}")
        return text

    def _binding(self, operator: grounding.Operator) -> dict[twl2.Placeholder, str]:
        parameters = self._parameters[operator.action]
        return {
            (name.removeprefix("?"), kind): found
            for (name, kind), found in zip(parameters, operator.arguments, strict=True)
        }

    def _command(self, operator: grounding.Operator, budget: twl2.Budget) -> str:
        template = self._text(operator).template
        changing = {n.removeprefix("not_") for n in twl2.queried(template)} & self.grounder.changing
        if changing:
            raise EnvDataError(
                f"{self._where}: grammar: the template of {operator.action} depends on"
                f" {', '.join(sorted(changing))}, which changes: not supported"
            )
        return self._derive(template, self._facts, self.start, self._binding(operator), budget)

    def _derive(self, symbols, facts: _Facts, position: Position, binding, budget) -> str:
        view = _View(self, facts, position, budget)
        return self._grammar.derive(symbols, view, binding, budget)

    @functools.cached_property
    def _watch(self):
        """For each fact, the branches to check if it holds; a branch is listed at its rarest fact."""
        names = {1 << bit: fact[0] for fact, bit in self.grounder.fluents.items()}
        holding = Counter(names[b] for b in names if b & self.grounder.initial)
        watchers, always = defaultdict(list), []
        for number, operator in enumerate(self.grounder.operators):
            if any(need == 0 for need, _ in operator.branches):
                always.append(number)
                continue
            for need, no in operator.branches:
                bit = min(_bits(need), key=lambda b: (holding[names[b]], b))
                watchers[bit].append((need, no, number))
        return sum(watchers), dict(watchers), tuple(always)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit


class _Facts:
    """All facts that a query may find, indexed by predicate and by objects at argument positions."""

    def __init__(self, task: pddl.Task, grounder: grounding.Grounder):
        self.fluents = dict(grounder.fluents)
        self._task = task
        self._by_predicate = defaultdict(list)  # -> (bit, or 0 where it always holds; fact)
        for predicate, facts in grounder.static.items():
            self._by_predicate[predicate] = [(0, fact) for fact in facts]
        for fact, bit in self.fluents.items():
            self._by_predicate[fact[0]].append((1 << bit, fact))
        for facts in self._by_predicate.values():
            facts.sort(key=lambda pair: pair[1])
        self._index: dict[tuple, dict[tuple, list]] = {}

    def candidates(self, predicate: str, placeholders, binding: twl2.Binding) -> list:
        """Facts of `predicate` whose arguments agree with the bound objects, in text order."""
        places = tuple(i for i, ph in enumerate(placeholders, 1) if ph in binding)
        key = (predicate, places)
        if key not in self._index:
            table = self._index[key] = defaultdict(list)
            for pair in self._by_predicate.get(predicate, ()):
                if len(pair[1]) > len(placeholders):
                    table[tuple(pair[1][i] for i in places)].append(pair)
        values = tuple(binding[placeholders[i - 1]] for i in places)
        return self._index[key].get(values, [])

    def is_a(self, object_id: str, kind: str) -> bool:
        return kind in self._task.supertypes[self._task.objects[object_id]]


class _View:
    """A game at a position, as the grammar sees it."""

    def __init__(self, game: Game, facts: _Facts, position: Position, budget: twl2.Budget):
        self._facts = facts
        self._position = position
        self._budget = budget
        self.entity = game.entities.__getitem__

    def assignments(self, query: tuple[twl2.Atom, ...], binding: twl2.Binding):
        """Different placeholders stand for different objects, as in textworld.logic.State."""
        if not query:
            yield dict(binding)
            return
        atom, *rest = query
        denied = atom.predicate.startswith("not_")
        mask = self._position.denied if denied else self._position.facts
        predicate = atom.predicate.removeprefix("not_")
        used = set(binding.values())
        for bit, fact in self._facts.candidates(predicate, atom.placeholders, binding):
            self._budget.spend(1)
            if not mask & bit if bit else denied:  # bit 0: a fact that always holds
                continue
            extended = dict(binding)
            for placeholder, found in zip(atom.placeholders, fact[1:], strict=False):
                if placeholder in extended:
                    if extended[placeholder] != found:
                        break
                elif found in used or not self._facts.is_a(found, placeholder[1]):
                    break
                else:
                    extended[placeholder] = found
            else:
                yield from self.assignments(tuple(rest), extended)


# -- names -----------------------------------------------------------------------------------------
_ESCAPES = {"_bar_": "|", "_minus_": "-", "_plus_": "+", "_dot_": ".", "_comma_": ","}


def _entities(task: pddl.Task) -> dict[str, twl2.Entity]:
    """ALFRED's object ids as `mug 1`, numbered backwards through the sorted ids.

    The same as alfworld/agents/utils/misc.py Demangler without its shuffling: only objects that some
    fact names count, and a "basin" anywhere in an id belongs to the name. A game none of whose ids
    looks like ALFRED's (TextWorld's own sample) keeps its ids, as in TextWorld without ALFWorld.
    """
    named = sorted({name for fact in task.initial for name in fact[1:]} | task.measured)
    plain = not any("_bar_" in name for name in named)
    kinds = {}
    for name in named:
        if "_bar_" in name:
            kinds[name] = name.split("_bar_", 1)[0] + ("basin" if "basin" in name else "")
    left = Counter(kinds.values())
    entities = {name: twl2.Entity(name, kind, name) for name, kind in task.objects.items()}
    for name in named:
        kind = task.objects.get(name, "object")
        if name in kinds:
            entities[name] = twl2.Entity(
                name, kind, f"{_unescaped(kinds[name])} {left[kinds[name]]}"
            )
            left[kinds[name]] -= 1
        elif not plain:
            entities[name] = twl2.Entity(name, kind, f"{_unescaped(name)} ")
    return entities


def _unescaped(name: str) -> str:
    for escape, sign in _ESCAPES.items():
        name = name.replace(escape, sign)
    return name


# -- files -----------------------------------------------------------------------------------------
def read_game(path: str | Path) -> dict:
    """The JSON object of a game.tw-pddl file.

    Raises:
      EnvDataError: no such file, or not a JSON object.
    """
    data = files.read_json(path, _MAX_FILE)
    if not isinstance(data, dict):
        raise EnvDataError(f"{path}: must be a JSON object, not {data!r:.60}")
    return data


@functools.lru_cache(maxsize=128)
def load_game(path: str) -> Game:
    """The game of a file; the last 128 are kept per process."""
    return Game(read_game(path), path)
