"""WebShop's reward (web_agent_site/engine/goal.py and normalize.py), term by term.

    reward = r_type * (attributes met + options met + price met) / (attributes + options + 1)

r_type compares the nouns of the two product names. The original finds them with spaCy's
en_core_web_sm. `noun_finder` uses spaCy if it is installed, else `guess_nouns`; the log says which. The
other terms do not depend on it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Sequence

from rapidfuzz import fuzz, utils

from envs.base import EnvDataError

NO_LIMIT = 1_000_000.0  # price limit of a goal that names none
NOUN_SOURCES = ("auto", "spacy", "guess")
_MAX_CHOICES = 1024  # sets of options that best_choices keeps
_MATCH = 85  # token_set_ratio must be greater

_log = logging.getLogger("envs.webshop.environment")

# The colours to which options are reduced, in the original's order. The first one that occurs anywhere
# in the text counts, so "violet lavender" is lavender and "tank" is tan.
COLORS = tuple(
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown"
    " burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee"
    " cognac copper coral cranberry cream crystal dark denim eggplant elephant espresso fuchsia"
    " gold granite grape graphite grass gray green grey heather indigo ivory ivy khaki lavender"
    " lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor"
    " mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red"
    " rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower"
    " tan taupe teal tiger turquoise violet walnut wheat white wine yellow".split()
)
_NO_LATIN1 = dict.fromkeys(range(128, 256))

# Words that are rarely nouns in product names: function words and common adjectives.
_NOT_NOUNS = frozenset(
    "a an the this that these those and or nor but for with without of in on at by to from into over"
    " under up down off out as per vs via is are was be can will your our my his her its their you we"
    " it all any each every no not non more most very extra ultra super new free low high long short"
    " large small medium big mini slim thin thick soft hard light heavy dark bright warm cool hot cold"
    " dry wet clean fresh natural organic pure real easy quick fast slow strong adjustable portable"
    " wireless waterproof breathable comfortable lightweight durable reusable removable washable"
    " foldable rechargeable compatible classic casual modern vintage elegant perfect great good best"
    " black white red blue green pink grey gray brown beige purple yellow".split()
)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")


def normalize_color(value: str | tuple[str, str]) -> str | tuple[str, str]:
    """The first of COLORS in the text, else the value itself.

    A synthetic goal's option is a (name, value) pair, for which `in` tests equality of an element:
    ("color", "blue") gives "blue", ("color", "light blue") stays a pair. The original does this, too.
    """
    return next((color for color in COLORS if color in value), value)


def matches(a: object, b: object) -> bool:
    """thefuzz's `token_set_ratio(a, b) > 85`, with its clean-up (which drops Latin-1 letters)."""
    first, second = _cleaned(str(a)), _cleaned(str(b))
    return round(fuzz.token_set_ratio(first, second)) > _MATCH


@functools.lru_cache(maxsize=65536)
def _cleaned(text: str) -> str:
    return utils.default_process(text.translate(_NO_LATIN1))


# -- nouns -----------------------------------------------------------------------------------------
def guess_nouns(name: str) -> tuple[str, ...]:
    """Nouns without a tagger: the words of the name that are not in _NOT_NOUNS."""
    return tuple(word for word in _WORD.findall(name.lower()) if word not in _NOT_NOUNS)


def noun_finder(source: str) -> tuple[Callable[[str], tuple[str, ...]], str]:
    """(function from a product name to its lower-case nouns, its description for the log).

    Args:
      source: "spacy" (en_core_web_sm, the original's), "guess", or "auto": spaCy if installed.

    Raises:
      EnvDataError: another source, or "spacy" without spaCy or its model.
    """
    if source not in NOUN_SOURCES:
        allowed = ", ".join(NOUN_SOURCES)
        raise EnvDataError(f"env.options.nouns = {source!r}: must be one of {allowed}")
    reason = "not asked for"
    if source != "guess":
        found = _spacy_nouns()
        if not isinstance(found, str):
            return found
        if source == "spacy":
            raise EnvDataError(f"env.options.nouns = 'spacy': {found}")
        reason = found
    return guess_nouns, f"guessed, without spaCy ({reason})"


@functools.lru_cache(maxsize=1)
def _spacy_nouns() -> tuple[Callable[[str], tuple[str, ...]], str] | str:
    """The tagger and its versions, or why there is none."""
    try:
        import spacy

        tagger = spacy.load("en_core_web_sm", exclude=["ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        return f"needs spaCy and its model en_core_web_sm ({str(error).splitlines()[0]})"

    @functools.cache
    def nouns(name: str) -> tuple[str, ...]:
        # The original also accepts "PNOUN", which spaCy does not have.
        return tuple(t.text.lower() for t in tagger(name) if t.pos_ in ("NOUN", "PROPN"))

    return nouns, f"spaCy {spacy.__version__}, en_core_web_sm {tagger.meta['version']}"


# -- reward ----------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Score:
    """The reward of a purchase and its terms.

    Attributes:
      total: the reward, 0 to 1.
      r_type: 0, 0.1, 0.5 or 1.
      query_match, category_match, title_score: the terms of r_type.
      attributes, options: number of goal attributes and goal options met.
      price: the price is within the limit.
    """

    total: float
    r_type: float
    query_match: bool
    category_match: bool
    title_score: float
    attributes: int
    options: int
    price: bool


def score(product, chosen: Sequence[str], goal, target, nouns) -> Score:
    """The score for buying `product` with the option values `chosen` for `goal`.

    Args:
      product: the purchase (data.Product).
      chosen: values of the chosen options.
      goal: the goal (data.Goal).
      target: the goal's own product.
      nouns: function from a product name to its nouns.
    """
    query_match = product.query == target.query
    levels = [{level.strip() for level in p.product_category.split("›")} for p in (product, target)]
    category_match = len(levels[0] & levels[1]) >= 2
    bought, wanted = nouns(product.title), nouns(target.title)
    # As in the original, the numerator counts different nouns, the denominator repeated ones, too.
    title_score = len(set(bought) & set(wanted)) / len(wanted) if wanted else 0.2
    r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    # These override matches of query and category.
    if title_score < 0.1:
        r_type = 0.1
    if title_score == 0.0:
        r_type = 0.0
    attributes = count_attributes(product, goal.attributes)
    options = count_options(chosen, goal.options)
    price = product.price <= goal.price_limit
    total = (attributes + options + price) / (len(goal.attributes) + len(goal.options) + 1)
    total *= r_type
    return Score(
        total, r_type, query_match, category_match, title_score, attributes, options, price
    )


def count_attributes(product, wanted: Sequence[str]) -> int:
    """Number of goal attributes that match one of the product's or occur in its texts."""
    texts = [product.title.lower(), " ".join(product.bullets).lower(), product.description.lower()]
    return sum(
        any(matches(attribute, attr) for attribute in product.attributes)
        or any(attr in text for text in texts)
        for attr in wanted
    )


def count_options(chosen: Sequence[str], wanted: Sequence[str | tuple[str, str]]) -> int:
    """Number of goal options that match one of the chosen values."""
    values = [normalize_color(value) for value in chosen]
    return sum(any(matches(value, normalize_color(w)) for value in values) for w in wanted)


def best_choices(product, goal) -> list[tuple[str, str]]:
    """The fewest (name, value) choices that meet as many of the goal's options as possible."""
    best: list[tuple[str, str]] = []
    reached = 0
    frontier: list[tuple[frozenset[int], list[tuple[str, str]]]] = [(frozenset(), [])]
    for name, values in product.options:
        gains: dict[frozenset[int], str] = {}
        for value in values:
            met = frozenset(
                n for n, wanted in enumerate(goal.options) if count_options([value], [wanted])
            )
            gains.setdefault(met, value)
        grown = {met: chosen for met, chosen in frontier}
        for met, chosen in frontier:
            for gain, value in gains.items():
                if gain - met and len(chosen) < len(grown.get(met | gain, [None] * 99)):
                    grown[met | gain] = [*chosen, (name, value)]
        frontier = list(grown.items())
        if len(frontier) > _MAX_CHOICES:  # with 40 options there are 2^40 sets
            frontier = sorted(frontier, key=lambda item: -len(item[0]))[:_MAX_CHOICES]
    for met, chosen in frontier:
        if len(met) > reached or (len(met) == reached and len(chosen) < len(best)):
            best, reached = chosen, len(met)
    return best
