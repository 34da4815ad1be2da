"""The reward against hand-computed purchases and against thefuzz."""

import logging
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thefuzz import fuzz

import envs
from envs.base import EnvDataError
from envs.webshop.data import Goal
from envs.webshop.reward import (
    NO_LIMIT,
    count_attributes,
    count_options,
    guess_nouns,
    matches,
    normalize_color,
    noun_finder,
    score,
)


def product(**fields):
    default = dict(
        title="Plain mug", description="", bullets=(), price=35.0, attributes=("DUMMY_ATTR",),
        query="mugs", product_category="a › b › c",
    )  # fmt: skip
    return SimpleNamespace(**default | fields)


def wanted(attributes=("tea tree",), options=(), limit=40.0):
    return Goal("X", "", tuple(attributes), tuple(options), limit)


PHRASES = st.text(alphabet="abe xyz019-_/|.()'é½Ж漢 ", max_size=24)


@settings(max_examples=300, deadline=None)
@given(PHRASES, PHRASES, st.permutations("light steel blue 2xl pack of 12".split()))
def test_matching_is_thefuzz(a, b, words):
    assert matches(a, b) == (fuzz.token_set_ratio(a, b) > 85)
    assert matches(words, " ".join(words)) == (fuzz.token_set_ratio(words, " ".join(words)) > 85)
    pair = ("color", a)
    assert matches(pair, b) == (fuzz.token_set_ratio(pair, b) > 85)


@pytest.mark.parametrize(
    "text,color",
    [("", ""), ("black forest", "black"), ("violet lavender", "lavender"), ("tank top", "tan"),
     ("steelivy fuchsia", "fuchsia"), ("xl", "xl"), (("color", "blue"), "blue"),
     (("color", "light blue"), ("color", "light blue")), (("red", "x"), "red")],
)  # fmt: skip
def test_colours(text, color):
    assert normalize_color(text) == color


@pytest.mark.parametrize(
    "values,goal,met",
    [
        (["pack of 12", "grey", "XL"], ["grey", "XL", "pack of 12"], 3),
        (["pack of 12", "blue", "XL"], ["grey", "XL", "pack of 12"], 2),
        (["powder snow"], ["cool powder snow"], 1),  # a subset of the words is a full match
        (["dark navy blue"], ["light blue"], 1),  # "blue" comes first in the list of colours
        (["dark grey"], ["light grey"], 0),  # "dark" against "grey"
        (["royal blue"], ["blue"], 1),
        ([], ["a", "b"], 0),
        (["goal"], [], 0),
        (["blue"], [("color", "blue")], 1),
        (["light blue"], [("color", "light blue")], 1),  # "blue" is one of the pair's words
        (["dark grey"], [("color", "dark grey")], 1),
        (["rosewood"], [("color", "rosewood")], 0),  # "rose" is none: not even the same value
        (["small"], [("size", "small")], 1),
    ],
)
def test_options(values, goal, met):
    assert count_options(values, goal) == met


def test_attributes_by_list_then_by_text():
    goal = ["tea tree", "essential oils", "natural ingredients"]
    assert (
        count_attributes(
            product(attributes=("tea tree", "essential oil", "natural ingredients")), goal
        )
        == 3
    )
    assert count_attributes(product(attributes=("essential oil", "natural ingredients")), goal) == 2
    texts = dict(
        bullets=("It has Essential Oils", "x"), description="made with natural ingredients"
    )
    assert count_attributes(product(**texts), goal) == 2
    assert count_attributes(product(title="Tea Tree soap"), goal) == 1
    assert count_attributes(product(title="tea for breakfast", attributes=("tea bag",)), goal) == 0


@pytest.mark.parametrize(
    "bought,query,category,r_type,title_score",
    [
        ("plain mug", "mugs", "a › b › c", 1.0, 1.0),
        ("plain bowl", "bowls", "x › y", 1.0, 0.5),
        ("lamp", "mugs", "a › b", 0.0, 0.0),  # no common noun: 0, whatever else matches
        ("lamp", "lamps", "x", 0.0, 0.0),
    ],
)
def test_type(bought, query, category, r_type, title_score):
    nouns = str.split
    target = product(title="plain mug")
    got = score(
        product(title=bought, query=query, product_category=category), [], wanted(), target, nouns
    )
    assert (got.r_type, got.title_score) == (r_type, title_score)
    assert got.query_match == (query == "mugs")
    assert got.category_match == (category.startswith("a › b"))


@pytest.mark.parametrize(
    "common,total,matching,r_type",
    [
        (1, 4, False, 1.0),  # 0.25 > 0.2
        (1, 5, False, 0.5),  # 0.2 is not above 0.2
        (1, 10, False, 0.5),  # 0.1 is not below 0.1
        (1, 10, True, 1.0),
        (1, 11, False, 0.1),
        (1, 11, True, 0.1),  # below 0.1 a matching query does not help
        (0, 11, True, 0.0),
        (0, 0, False, 0.5),  # no nouns in the goal: 0.2
        (0, 0, True, 1.0),
    ],
)
def test_type_thresholds(common, total, matching, r_type):
    target = product(title=" ".join(f"w{n}" for n in range(total)))
    bought = product(
        title=" ".join(f"w{n}" for n in range(common)) or "other", product_category="x",
        query="mugs" if matching else "lamps",
    )  # fmt: skip
    assert score(bought, [], wanted(), target, str.split).r_type == r_type


def test_total():
    """Three attributes, two options, a price: by hand."""
    goal = wanted(["tea tree", "vegan", "organic"], ["grey", "xl"], 40.0)
    target = product(title="plain mug")
    item = product(title="plain mug", attributes=("tea tree", "vegan"), price=40.0)
    assert score(item, ["grey"], goal, target, str.split).total == pytest.approx((2 + 1 + 1) / 6)
    dear = product(title="plain mug", attributes=("tea tree", "vegan"), price=40.01)
    assert score(dear, ["grey"], goal, target, str.split).total == pytest.approx((2 + 1 + 0) / 6)
    full = product(title="plain mug", attributes=("tea tree", "vegan", "organic"))
    assert score(full, ["grey", "xl"], goal, target, str.split).total == 1.0
    other = product(
        title="plain " + "x " * 20, query="lamps", product_category="q", attributes=full.attributes
    )
    long_target = product(title="plain a b c d")
    assert score(other, ["grey", "xl"], goal, long_target, str.split).total == 0.5
    free = wanted(["tea tree"], [], NO_LIMIT)
    assert score(product(price=5e5), [], free, product(), str.split).price


def test_guessed_nouns_and_the_log(caplog):
    assert guess_nouns("Lorvex Soft Cotton T-Shirt for Men, 2 Pack (Blue)") == (
        "lorvex", "cotton", "t", "shirt", "men", "pack",
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "envs.webshop.environment"):
        envs.make("webshop", num_products=50)
    assert "nouns of the reward: guessed, without spaCy" in caplog.text
    with pytest.raises(EnvDataError, match=r"env.options.nouns = 'nltk': must be one of auto"):
        noun_finder("nltk")


def test_spacy_or_a_clear_error():
    try:
        import spacy

        spacy.load("en_core_web_sm")
    except (ImportError, OSError):
        with pytest.raises(EnvDataError, match="needs spaCy and its model en_core_web_sm"):
            noun_finder("spacy")
        assert noun_finder("auto")[0] is guess_nouns
        return
    nouns, source = noun_finder("auto")
    assert "shoes" in nouns("PEAK High Top Mens Basketball Shoes") and "spaCy" in source
