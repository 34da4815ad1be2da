"""Finds short plans in a grounded PDDL task, for solvability checks and demonstrations.

Plain breadth-first search is too slow for a room of thirty receptacles. So for each way to satisfy
the goal, a relaxed plan (FF's, Hoffmann & Nebel 2001: deletes are ignored) gives the facts that must
become true. The search then uses real states, but only the operators between these facts. Its plans
are shortest for these operators, not necessarily shortest of all.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.alfworld.grounding import Grounder, Masks, Operator

_MAX_STATES = 50_000  # per way to satisfy the goal


def plan(grounder: Grounder, facts: int, max_length: int) -> list[int] | None:
    """Numbers of the operators that lead from `facts` to the goal, or None if no plan was found."""
    operators = grounder.operators
    relaxed = _Relaxed(operators, facts)
    best: list[int] | None = None
    ways = [(level, term) for term in grounder.goal if (level := relaxed.level(*term)) is not None]
    for level, term in sorted(ways):
        # A plan has at least as many steps as levels.
        longest = max_length if best is None else len(best) - 1
        if level > longest:
            break
        needed = relaxed.needed(term)
        found = _search(operators, _between(operators, needed), facts, term, longest)
        if found is not None:
            best = found
    return best


class _Relaxed:
    """When each fact can first be true or false if nothing, once reached, is ever lost."""

    def __init__(self, operators: Sequence[Operator], facts: int):
        self._levels: list[Masks] = [(facts, ~facts)]  # (reached as true, as false), growing
        self._support: dict[tuple[bool, int], Masks] = {}  # (value, bit) -> needs of its operator
        waiting = [(o, masks) for o in operators for masks in o.branches]
        true, false = facts, ~facts
        while waiting:
            still = []
            new_true, new_false = true, false
            for operator, (need, no) in waiting:
                if need & ~true or no & ~false:
                    still.append((operator, (need, no)))
                    continue
                add, delete = operator.add, operator.delete
                for _, also_add, also_delete in operator.conditional:
                    add, delete = add | also_add, delete | also_delete
                for bit in _bits(add & ~new_true):
                    self._support[True, bit] = (need, no)
                for bit in _bits(delete & ~new_false):
                    self._support[False, bit] = (need, no)
                new_true, new_false = new_true | add, new_false | delete
            if (new_true, new_false) == (true, false):
                break
            true, false, waiting = new_true, new_false, still
            self._levels.append((true, false))

    def level(self, need: int, no: int) -> int | None:
        """Fewest steps after which all of these facts may hold; None: never."""
        for number, (true, false) in enumerate(self._levels):
            if not need & ~true and not no & ~false:
                return number
        return None

    def needed(self, term: Masks) -> Masks:
        """All facts that a relaxed plan for `term` makes true or false."""
        need, no = term
        left = [(True, bit) for bit in _bits(need)] + [(False, bit) for bit in _bits(no)]
        while left:
            masks = self._support.get(left.pop())
            if masks is None:
                continue  # it holds from the start
            left += [(True, bit) for bit in _bits(masks[0] & ~need)]
            left += [(False, bit) for bit in _bits(masks[1] & ~no)]
            need, no = need | masks[0], no | masks[1]
        return need, no


def _between(operators: Sequence[Operator], needed: Masks) -> list[tuple[int, int, int]]:
    """(need, no, number) of branches that lead from needed facts to needed facts."""
    true, false = needed
    return [
        (need, no, number)
        for number, operator in enumerate(operators)
        if operator.add & true or operator.delete & false
        for need, no in operator.branches
        if not need & ~true and not no & ~false
    ]


def _search(operators, branches, facts: int, term: Masks, longest: int) -> list[int] | None:
    """Breadth-first over states."""
    goal_need, goal_no = term
    came: dict[int, tuple[int, int] | None] = {facts: None}
    layer = [facts]
    for length in range(longest + 1):
        for state in layer:
            if state & goal_need == goal_need and not state & goal_no:
                return _trace(came, state)
        following = []
        for state in layer if length < longest else ():
            for need, no, number in branches:
                if state & need == need and not state & no:
                    new = operators[number].apply(state)
                    if new not in came:
                        came[new] = (state, number)
                        following.append(new)
        if not following or len(came) > _MAX_STATES:
            return None
        layer = following
    return None


def _trace(came, state: int) -> list[int]:
    numbers = []
    while (step := came[state]) is not None:
        state, number = step
        numbers.append(number)
    return numbers[::-1]


def _bits(mask: int) -> list[int]:
    bits = []
    while mask:
        bit = mask & -mask
        bits.append(bit)
        mask ^= bit
    return bits
