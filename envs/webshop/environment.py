"""`webshop`: WebShop's shop as immutable values: the same pages, clicks and reward, no web server.

Pages, and what can be clicked on them, follow web_agent_site/envs/web_agent_text_env.py and its
templates in `text` observation mode. Data, search and reward are in data.py, search.py and reward.py.
Without a data directory, the environment plays a generated catalogue (catalogue.py).

Kept from the original, since policies rely on it: `search[...]` works on every page, not only where
there is a search box; `click[search]` does nothing; going back to the results forgets the chosen
options; `Next >` never ends, but later pages are empty; a query with brackets is a no-op.

Different on purpose: (1) There is one order of goals, shuffled with the seed 233. verl-agent shuffles
with another seed in every worker, so its training and validation tasks overlap. (2) The last
observation, after the purchase, is the shop's closing page with the score. verl-agent shows the start
page of another task. (3) `search[<r>]`, fifty random products, is a function of the task.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import random
import re
from collections.abc import Sequence

from envs.base import (
    EnvDataError,
    Environment,
    FilePath,
    Form,
    Options,
    State,
    StepResult,
    Task,
    one_of,
    stable_seed,
)
from envs.webshop.catalogue import NUM_PRODUCTS, bootstrap_instructions, records
from envs.webshop.data import Catalogue, Goal, Goals, Product, find_files, read_records
from envs.webshop.reward import NOUN_SOURCES, best_choices, noun_finder, score
from envs.webshop.search import SearchIndex, cache_directory

GOAL_KINDS = ("human", "synthetic")
PER_PAGE = 10
MAX_RESULTS = 50
CACHED_FROM = 10_000  # products; fewer are indexed as fast as an index file is read
SEPARATOR = " [SEP] "
_SUB_PAGES = {"description": "Description", "features": "Features", "reviews": "Reviews"}
_LIMITS = {"test": 500, "valid": 1000}  # the original's split, where there are goals enough

_announce = functools.cache(logging.getLogger(__name__).info)  # once, not per phase of a run


@dataclasses.dataclass(frozen=True)
class WebShopState(State):
    """The shopper's position.

    Attributes:
      page: "start", "results", "item", "description", "features", "reviews" or "done".
      query: the last search; "" on the start page.
      number: the page of the results, from 1.
      asin: the product shown; "" on the start page and on result pages.
      options: chosen (name, value) pairs, sorted.
      reward: reward of the purchase; 0 before it.
    """

    page: str = "start"
    query: str = ""
    number: int = 0
    asin: str = ""
    options: tuple[tuple[str, str], ...] = ()
    reward: float = 0.0


@dataclasses.dataclass(frozen=True)
class Shop:
    """What all tasks share: products, their index, and the ordered goals."""

    catalogue: Catalogue
    index: SearchIndex
    goals: Goals

    @functools.cached_property
    def bootstrap(self) -> Goals:
        """Other goals about the generated products, for scripted corpora only."""
        human = {
            product.asin: bootstrap_instructions(product, self.catalogue.human[product.asin])
            for product in self.catalogue.products
        }
        return Goals(self.catalogue, "human", human)


@functools.lru_cache(maxsize=2)
def _open_shop(files: tuple | None, num_products: int, kind: str) -> Shop:
    """Loads a shop once per process; `files` is ((path, size, time), ...), None: generated."""
    if files is None:
        rows = list(records(num_products or NUM_PRODUCTS))
        catalogue = Catalogue(
            enumerate(product for product, _, _ in rows),
            ((product["asin"], attributes) for product, attributes, _ in rows),
            ((product["asin"], human) for product, _, human in rows),
        )
    else:
        paths = [path for path, _, _ in files]
        catalogue = Catalogue(*map(read_records, paths), list(map(str, paths)), num_products)
    products = catalogue.products
    index = SearchIndex(
        [product.asin for product in products],
        lambda: (product.search_text() for product in products),
        cache_directory() if len(products) >= CACHED_FROM else None,
    )
    return Shop(catalogue, index, Goals(catalogue, kind))


@dataclasses.dataclass(frozen=True)
class WebShopOptions(Options):
    """Options of `webshop`.

    Attributes:
      data: directory with the official files; "" plays the generated catalogue.
      products: name of the product file there; "": the only one.
      num_products: only the first N products; 0: all.
      goals: "human" or "synthetic" (verl-agent's default).
      nouns: source of the reward's nouns: "spacy", "guess", or "auto" (spaCy if it is installed;
        "guess" for the generated catalogue, which must be the same on every machine).
      show_instruction: True: every observation states the task, as in the original. False is
        verl-agent's form: only the first one does, and each part is in quotes.
    """

    data: FilePath = ""
    products: FilePath = ""
    num_products: int = 0
    goals: str = one_of("human", GOAL_KINDS)
    nouns: str = one_of("auto", NOUN_SOURCES)
    show_instruction: bool = True

    def check(self) -> None:
        self.require("num_products", self.num_products >= 0, "an integer of at least 0")
        if self.products and not self.data:
            raise EnvDataError(f"env.options.products = {self.products!r}: needs env.options.data")


class WebShop(Environment):
    """Online shopping; see the module docstring.

    Splits are the original's: of the shuffled goals, the first 500 are "test", the next 1,000 are
    "valid", and the rest are "train". With fewer than 4,000 goals, "test" and "valid" get at most a
    quarter each. A task id such as `test/fashion/00042` ends with the goal's number in that order, the
    original's session number. The generated catalogue also has a split "bootstrap" for scripted
    corpora: other instructions about its products. As in the benchmark, goals of different splits may
    be about one product; the log says how many are.

    Raises:
      EnvDataError: a data file is missing or broken, or there is no goal of the kind asked for.
    """

    name = "webshop"
    horizon = 15  # verl-agent
    Options = WebShopOptions
    form = Form("webshop", fallback_chars=20, latin_only=True, max_chars=13_000)
    player = "envs.webshop.player:WebShopPlayer"
    description = (
        "You shop online for a product that meets an instruction: it must have the attributes and"
        " options asked for and cost less than the limit. search[words] lists products; click[text]"
        " presses what the page shows: a product's code, an option's value, Description, Features,"
        " Next >, < Prev, Back to Search. Set every option that is asked for, then click[buy now],"
        " which ends the episode."
    )

    def __init__(self, horizon: int | None = None, options: WebShopOptions | None = None):
        super().__init__(horizon, options)
        options = self.options
        data, goals = options.data, options.goals
        guess = options.nouns == "auto" and not data
        self._nouns, source = noun_finder("guess" if guess else options.nouns)
        files = None
        if data:
            files = tuple(
                (path, stat.st_size, stat.st_mtime_ns)
                for path in find_files(data, options.products)
                for stat in (os.stat(path),)
            )
        self._shop = _open_shop(files, options.num_products, goals)
        if not len(self._shop.goals):
            raise EnvDataError(
                f"env.options.goals = {goals!r}: the products in"
                f" {data or 'the generated catalogue'} have no such goal"
            )
        self._bounds = self._split_bounds(len(self._shop.goals))
        if not data and goals == "human":
            self.splits = (*self.splits, "bootstrap")
        self._search = functools.lru_cache(maxsize=4096)(self._find)
        self._goal = functools.lru_cache(maxsize=4096)(self._make_goal)
        _announce(
            "webshop: %d products, %d %s goals; nouns of the reward: %s; %d of %d test goals are"
            " about a product that a train goal is about too",
            len(self._shop.catalogue.products), len(self._shop.goals), goals, source,
            *self._overlap(),
        )  # fmt: skip

    # -- tasks ---------------------------------------------------------------------------------
    @staticmethod
    def _split_bounds(number: int) -> dict[str, range]:
        test, valid = (min(_LIMITS[split], number // 4) for split in ("test", "valid"))
        return {
            "train": range(test + valid, number),
            "valid": range(test, test + valid),
            "test": range(test),
        }

    def _goals(self, split: str) -> Goals:
        return self._shop.bootstrap if split == "bootstrap" else self._shop.goals

    def _range(self, split: str) -> range:
        return range(len(self._shop.bootstrap)) if split == "bootstrap" else self._bounds[split]

    def _overlap(self) -> tuple[int, int]:
        place = self._shop.goals.place
        trained = {place(number) for number in self._bounds["train"]}
        return sum(place(n) in trained for n in self._bounds["test"]), len(self._bounds["test"])

    def _task(self, split: str, number: int) -> Task:
        category = self._shop.catalogue.products[self._goals(split).place(number)].category
        family = re.sub(r"[^a-z0-9]+", "-", category.lower()).strip("-") or "other"
        return Task(f"{split}/{family}/{number:05d}", family, split)

    def _list_tasks(self, split: str) -> Sequence[Task]:
        return [self._task(split, number) for number in self._range(split)]

    def _make_goal(self, task_id: str) -> Goal:
        split, _, rest = task_id.partition("/")
        number = rest.rpartition("/")[2]
        if split in self.splits and re.fullmatch(r"[0-9]{5,9}", number):
            place = int(number)
            in_split = place in self._range(split)
            if in_split and self._task(split, place).task_id == task_id:
                return self._goals(split)[place]
        raise EnvDataError(
            f"webshop task {task_id!r}: must be split/category/number of a task in env.tasks"
        )

    def wanted(self, task_id: str) -> Goal:
        """The goal of a task; EnvDataError if there is no such task."""
        return self._goal(task_id)

    def goal(self, first_observation: str) -> str:
        """The instruction if later observations omit it, else ""."""
        if self.options.show_instruction:
            return ""
        return first_observation.partition("Instruction:" + SEPARATOR)[2].rpartition(SEPARATOR)[0]

    def _reset(self, task_id: str) -> tuple[State, str]:
        state = WebShopState(task_id=task_id)
        return state, SEPARATOR.join(self.page_texts(state))

    # -- pages ---------------------------------------------------------------------------------
    def _find(self, query: str, task_id: str) -> tuple[Product, ...]:
        """The results of a search. `<r>`, `<a> attribute`, `<c> category` and `<q> query` are the
        shop's shorthands: random products, and products with exactly this value."""
        products = self._shop.catalogue.products
        first, *rest = query.split(" ")
        value = " ".join(rest).strip()
        if first == "<r>":
            rng = random.Random(stable_seed("webshop-random", task_id))
            left = list(range(len(products)))
            drawn = range(min(MAX_RESULTS, len(left)))
            return tuple(products[left.pop(rng.randrange(len(left)))] for _ in drawn)
        if first == "<a>":
            return tuple(product for product in products if value in product.attributes)
        if first == "<c>":  # the category is one word; the rest is ignored
            category = rest[0].strip() if rest else ""
            return tuple(product for product in products if product.category == category)
        if first == "<q>":
            return tuple(product for product in products if product.query == value)
        return tuple(products[place] for place in self._shop.index.search(query, MAX_RESULTS))

    def _results(self, state: WebShopState) -> tuple[Product, ...]:
        # Only <r> depends on the task; other results are cached for all tasks.
        shorthand = state.query.split(" ")[0] == "<r>"
        return self._search(state.query, state.task_id if shorthand else "")

    def _shown(self, state: WebShopState) -> tuple[Product, ...]:
        return self._results(state)[(state.number - 1) * PER_PAGE : state.number * PER_PAGE]

    def page_texts(self, state: WebShopState) -> list[str]:
        """The visible texts of the page, which the original joins with " [SEP] "."""
        goal = self._goal(state.task_id)
        if state.page == "done":
            return _done_texts(state)
        if state.page == "start":
            return _visible("WebShop", "Instruction:", goal.text, "Search")
        texts = ["Instruction:", goal.text, "Back to Search"]
        if state.page == "results":
            texts.append(f"Page {state.number} (Total results: {len(self._results(state))})")
            texts += ["< Prev", "Next >"] if state.number > 1 else ["Next >"]
            for product in self._shown(state):
                texts += [product.asin, product.title, product.price_tag]
            return _visible(*texts)
        product = self._shop.catalogue[state.asin]
        texts.append("< Prev")
        if state.page == "item":
            for name, values in product.options:
                texts += [name, *values]
            texts += [product.title, f"Price: {product.price_tag}", "Rating: N.A."]
            texts += [*_SUB_PAGES.values(), "Buy Now"]
        elif state.page == "description":
            texts.append(product.description)
        elif state.page == "features":
            texts += [f" {bullet}" for bullet in product.bullets]
        return _visible(*texts)

    def clickables(self, state: WebShopState) -> dict[str, tuple[str, str]]:
        """Text -> (kind, value) of everything clickable: buttons, then products, then options.

        Kinds: "button"; "product" with its asin; "option" with the option's name. If two options
        share a value, the last one counts, at the first one's place, as in the original.
        """
        if state.page == "start":
            return {"search": ("button", "")}
        if state.page == "done":
            return {}
        found = {"back to search": ("button", "")}
        if state.page != "results" or state.number > 1:
            found["< prev"] = ("button", "")
        if state.page == "results":
            found["next >"] = ("button", "")
            for product in self._shown(state):
                found[product.asin.lower()] = ("product", product.asin)
        if state.page == "item":
            for name in (*_SUB_PAGES, "buy now"):
                found[name] = ("button", "")
            for option, values in self._shop.catalogue[state.asin].options:
                for value in values:
                    found[value] = ("option", option)
        return found

    def _observation(self, state: WebShopState) -> str:
        texts = self.page_texts(state)
        if self.options.show_instruction or state.page == "done":
            return SEPARATOR.join(texts)
        # The instruction takes the first two texts, or three on the start page.
        begin = 3 if state.page == "start" else 2
        return SEPARATOR.join(f"'{text}'" for text in texts[begin:])

    # -- rules ---------------------------------------------------------------------------------
    def _step(self, state: WebShopState, action: str) -> tuple[State, StepResult]:
        verb, argument = parse_action(action)
        if verb == "search" and argument:
            new = WebShopState(
                state.task_id, state.num_steps, page="results", query=argument, number=1
            )
        elif verb == "click" and argument != "search" and argument in self.clickables(state):
            if argument == "buy now":
                return self._buy(state)
            new = self._click(state, argument)
        else:
            return state, StepResult(self._observation(state), 0.0, False, False, {"valid": False})
        return new, StepResult(self._observation(new), 0.0, False, False, {"valid": True})

    def _click(self, state: WebShopState, text: str) -> WebShopState:
        """The state after a click. Texts are compared in the original's order, so an option with
        the value "reviews" opens the reviews."""
        replace = functools.partial(dataclasses.replace, state)
        if text == "back to search":
            return WebShopState(state.task_id, state.num_steps)
        if text == "next >" and state.page == "results":
            return replace(number=state.number + 1)
        if text == "< prev":
            if state.page == "results":
                return replace(number=state.number - 1)
            if state.page == "item":
                return replace(page="results", asin="", options=())
            return replace(page="item")
        if text in _SUB_PAGES:
            return replace(page=text)
        kind, value = self.clickables(state)[text]
        if kind == "product":
            return replace(page="item", asin=value)
        chosen = dict(state.options) | {value: text}
        return replace(options=tuple(sorted(chosen.items())))

    def _judge(self, state: WebShopState):
        goal = self._goal(state.task_id)
        chosen = [value for _, value in state.options]
        shop = self._shop.catalogue
        return score(shop[state.asin], chosen, goal, shop[goal.asin], self._nouns)

    def _buy(self, state: WebShopState) -> tuple[State, StepResult]:
        """Ends the episode with the original's reward, 0 to 1. Success is a reward of 1, as in
        verl-agent (`won`)."""
        judged = self._judge(state)
        new = dataclasses.replace(state, page="done", reward=judged.total)
        parts = dataclasses.asdict(judged)
        info = {"valid": True, "task_score": parts.pop("total"), **parts}
        success = judged.total == 1.0
        return new, StepResult(self._observation(new), judged.total, True, success, info)

    def actions(self, state: WebShopState) -> tuple[str, ...]:
        """verl-agent's list, including `search[<your query>]`, without actions that have no effect."""
        listed = ["search[<your query>]"] if state.page == "start" else []
        for text in self.clickables(state):
            action = f"click[{text}]"
            if text != "search" and parse_action(action) == ("click", text):
                listed.append(action)
        return tuple(listed)

    # -- expert --------------------------------------------------------------------------------
    def solve(self, state: WebShopState) -> list[str] | None:
        """A plan that knows the product: search it, open it, choose the options, buy.

        None if too few steps are left, or if no purchase has a reward of 1: some official instructions
        ask for options that their own product lacks.
        """
        if state.done:
            return [] if state.success else None
        goal = self._goal(state.task_id)
        choices = best_choices(self._shop.catalogue[goal.asin], goal)
        plans = []
        if state.asin == goal.asin:
            back = [] if state.page == "item" else ["click[< prev]"]
            missing = [value for name, value in choices if (name, value) not in state.options]
            plans.append([*back, *(f"click[{value}]" for value in missing), "click[buy now]"])
        walk = self._walk_to(goal)
        if walk is not None:
            clicks = [f"click[{value}]" for _, value in choices]
            plans.append([*walk, *clicks, "click[buy now]"])
        for plan in sorted(plans, key=len):
            current = state
            for action in plan:
                if current.done:
                    break
                current, _ = self.step(current, action)
            if current.success and current.num_steps - state.num_steps == len(plan):
                return plan
        return None

    def _walk_to(self, goal: Goal) -> list[str] | None:
        """Search and clicks that open the goal's product from any page, or None."""
        product = self._shop.catalogue[goal.asin]
        words = [product.title, product.search_text(), f"<q> {product.query}"]
        walks = []
        for query in (re.sub(r"[\[\]\n]", " ", text).strip().lower() for text in words):
            found = [hit.asin for hit in self._search(query, "")] if query else []
            if product.asin in found:
                pages = found.index(product.asin) // PER_PAGE
                opened = f"click[{product.asin.lower()}]"
                walks.append([f"search[{query}]", *["click[next >]"] * pages, opened])
                if not pages:
                    break
        return min(walks, key=len, default=None)


def parse_action(action: str) -> tuple[str, str]:
    """`name[argument]` -> (name, argument in lower case); argument "" for anything else.

    This is what the original's greedy `(.+)\\[(.+)\\]` matches at the beginning of a text, but in linear
    time: the last pair of brackets of the first line that has text between and before it.
    """
    line = action.partition("\n")[0]
    closes = line.rfind("]")
    opens = line.rfind("[", 1, max(1, closes - 1))
    return (line[:opens], line[opens + 1 : closes].lower()) if opens > 0 else (action, "")


def _visible(*texts: str) -> list[str]:
    """Texts as the original's HTML parser returns them: without empty ones and blank lines."""
    kept = []
    for text in texts:
        blank = not text.strip(" \n\t\f\r")
        if text and not (blank and "\n" in text):
            kept.append(text.strip())
    return kept


def _done_texts(state: WebShopState) -> list[str]:
    """The texts of the closing page, including those that are empty in text mode."""
    options = ", ".join(f"{_json(name)}: {_json(value)}" for name, value in state.options)
    return [
        "Thank you for shopping with us!", "Your code:", "None",
        "(Paste it in your MTurk interface.)", "Purchased", "asin", state.asin,
        "options", "{" + options + "}", "attrs", "None", "category", "None", "query", "None",
        "product category", "None", "Target", "asin", "options", "attrs", "price upper",
        "instuction text", "category", "product category", "query", "Goal", "None", "Reward",
        "Your score (min 0.0, max 1.0)", str(state.reward), "Reward Details", "None",
    ]  # fmt: skip


def _json(text: str) -> str:
    """A string as Flask's `tojson` writes it into HTML."""
    quoted = json.dumps(text)
    for character in "<>&'":
        quoted = quoted.replace(character, f"\\u{ord(character):04x}")
    return quoted
