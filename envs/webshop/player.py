"""The player of WebShop's generated catalogue: it searches, opens a match, sets options and buys.

habit      unaware player                                 experience that mends it
attribute  searches for the kind of thing only, opens     search for {attribute} and {attribute}.
           the first result
price      does not look at the price                     it must cost less than {price} dollars.
option     buys without setting options                   set {value} before you buy.
second     sets the first option only                     set {value} too.
"""

from __future__ import annotations

import dataclasses
import random
import re

from envs.base import EnvDataError
from envs.player import Player
from envs.webshop.catalogue import KINDS, SYLLABLES
from envs.webshop.data import Goal
from envs.webshop.environment import WebShopState

_NOUNS = sorted({kind.noun for kinds in KINDS.values() for kind in kinds}, key=len, reverse=True)


def _units() -> str:
    """Names and attributes of products, in lower and title case, brands and product codes."""
    texts = {text.strip() for kinds in KINDS.values() for kind in kinds
             for text in (kind.noun, *kind.attributes, *kind.uses,
                          *(value for values in kind.options.values() for value in values))}  # fmt: skip
    texts |= {text.title() for text in texts}
    listed = "|".join(map(re.escape, sorted(texts, key=lambda text: (-len(text), text))))
    syllable = "|".join(SYLLABLES)
    brand = f"(?:{syllable.title()})(?:{syllable})"
    return rf" ?\b(?:{listed}|{brand}|G[0-9A-Z]{{9}})\b"


_BUY = "click[buy now]"


@dataclasses.dataclass
class _Memory:
    """What the shopper remembers.

    Attributes:
      noun: what to buy.
      opened: asins of the product pages opened so far.
    """

    noun: str
    opened: set[str] = dataclasses.field(default_factory=set)


class WebShopPlayer(Player):
    """The player of `webshop` with the generated catalogue and human goals.

    Raises:
      EnvDataError: on first use, if the environment plays other goals.
    """

    units = _units()
    habits = ("attribute", "price", "option", "second")

    def start(self, task_id: str, observation: str) -> _Memory:
        text = self.env.wanted(task_id).text
        noun = next((noun for noun in _NOUNS if re.search(rf"\b{noun}\b", text)), "")
        if "bootstrap" not in self.env.splits or not noun:
            raise EnvDataError(
                f"webshop task {task_id!r}: the scripted player knows the generated catalogue with"
                ' env.options.goals = "human" only'
            )
        return _Memory(noun)

    def update(self, memory: _Memory, action: str, state: WebShopState, observation: str) -> None:
        if state.asin:
            memory.opened.add(state.asin)

    def decide(
        self, state: WebShopState, memory: _Memory, aware: frozenset[str]
    ) -> tuple[str, str | None]:
        goal = self.env.wanted(state.task_id)
        if state.page == "start":
            words = goal.attributes if "attribute" in aware else ()
            return f"search[{' '.join((memory.noun, *words))}]", "attribute"
        if state.page == "results":
            return self._choose(state, memory, goal, aware)
        if state.page != "item":
            return "click[< prev]", None
        return self._set_and_buy(state, goal, aware)

    def _choose(
        self, state: WebShopState, memory: _Memory, goal: Goal, aware: frozenset[str]
    ) -> tuple[str, str | None]:
        """A click on the first unopened result that matches by title and price."""
        listed = [hit for hit in _listed(self.env.page_texts(state)) if hit[0] not in memory.opened]
        if not listed:
            return "click[back to search]", None
        ideal = _first(listed, goal, frozenset(self.habits))
        action = f"click[{_first(listed, goal, aware)}]"  # in capitals, as shown, to be copied
        for habit in ("attribute", "price"):
            if _first(listed, goal, frozenset(self.habits) - {habit}) != ideal:
                return action, habit
        # Both habits together may mislead even if neither does alone.
        return action, None if _first(listed, goal, frozenset()) == ideal else "attribute"

    def _set_and_buy(
        self, state: WebShopState, goal: Goal, aware: frozenset[str]
    ) -> tuple[str, str | None]:
        offered = self.env.clickables(state)
        chosen = {value for _, value in state.options}
        missing = [value for value in goal.options if value not in chosen]
        if not missing:
            return _BUY, None
        habit = "second" if len(missing) < len(goal.options) else "option"
        if habit not in aware:
            return _BUY, habit
        if any(value not in offered for value in missing):
            return "click[< prev]", habit
        return f"click[{missing[0]}]", habit

    def advice(self, habit: str, task_id: str) -> str:
        goal = self.env.wanted(task_id)
        return {
            "attribute": f"search for {' and '.join(goal.attributes)}.",
            "price": f"it must cost less than {goal.price_limit:.2f} dollars.",
            "option": f"set {' and '.join(goal.options)} before you buy.",
            "second": f"set {goal.options[-1] if goal.options else 'it'} too.",
        }[habit]

    def slip(self, state: WebShopState, rng: random.Random) -> str | None:
        return "click[features]" if state.page == "item" else None


def _listed(texts: list[str]) -> list[tuple[str, str, float]]:
    """(asin, title, price) of the results on a page; of a price range, the upper end."""
    begin = texts.index("Next >") + 1
    rows = zip(*(texts[begin + n :: 3] for n in range(3)), strict=True)
    return [(asin, title, float(price.rpartition("$")[2])) for asin, title, price in rows]


def _first(listed: list[tuple[str, str, float]], goal: Goal, aware: frozenset[str]) -> str:
    """The asin of the first result that meets most of what the player checks."""

    def misses(hit: tuple[str, str, float]) -> tuple[bool, int]:
        dear = "price" in aware and hit[2] > goal.price_limit
        title = hit[1].lower()
        return dear, "attribute" in aware and sum(a not in title for a in goal.attributes)

    return min(listed, key=misses)[0]
