"""Data files in the official format: odd values, clear errors, goals, splits."""

import json
import os
import random
import re
import time

import pytest
from webshop_files import human, product, write

import envs
from envs.base import EnvDataError
from envs.webshop import catalogue as webshop_catalogue
from envs.webshop.data import Catalogue, Goals, price_limit, read_records


def one(**fields):
    return Catalogue([(0, product("A1", **fields))], [], []).products[0]


def test_odd_values():
    plain = one()
    assert (plain.price, plain.price_tag, plain.query) == (5.5, "$5.5", "tea mugs")
    assert plain.attributes == ("DUMMY_ATTR",) and plain.options == ()
    for nothing in ("", None):
        assert (one(pricing=nothing).price, one(pricing=nothing).price_tag) == (100.0, "$100.0")
    assert one(pricing="$1,299.99").price == 1299.99
    ranged = one(pricing="$24.49 to $39.99 to $50")
    assert ranged.price_tag == "$24.49 to $39.99" and 24.49 <= ranged.price <= 39.99
    assert one(pricing="$24.49 to $39.99") == one(pricing="$24.49 to $39.99")
    assert one(small_description="only one").bullets == ("only one",)
    assert one(small_description=[]).bullets == ()
    options = {"Color": [{"value": " Red/Blue ", "image": None}, {"value": "XL"}], "Fit": None}
    assert one(customization_options=options).options == (("color", ("red | blue", "xl")),)
    text = one(customization_options=options, name="Big Mug", small_description=["Tea", "x"])
    assert text.search_text() == "big mug a mug. tea color: red | blue, xl"


def test_which_products_are_dropped():
    rows = [
        product("A1"),
        product("nan"),
        product("A" * 11),
        product("A1", name="twice"),
        product("B"),
    ]
    kept = Catalogue(enumerate(rows), [], []).products
    assert [(p.asin, p.title) for p in kept] == [("A1", "Lorvex Mug A1"), ("B", "Lorvex Mug B")]
    # The first n records are taken before anything is dropped.
    assert [p.asin for p in Catalogue(enumerate(rows), [], [], limit=4).products] == ["A1"]


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"pricing": "free"}, r"record 0 \(asin A1\): pricing = 'free': must be like"),
        ({"pricing": "$1.2.3"}, r"pricing = '\$1.2.3'"),
        ({"pricing": 5}, "pricing = 5"),
        ({"pricing": "$1e400"}, r"pricing = '\$1e400'"),
        ({"pricing": "$" + "9" * 400}, "pricing = '.999"),
        ({"name": None}, "name = None: must be a string"),
        ({"full_description": 3}, "full_description = 3"),
        ({"small_description": [1]}, r"small_description = \[1\]: must be a list of strings"),
        ({"customization_options": ["red"]}, "customization_options"),
        ({"customization_options": {"color": [{"image": 1}]}}, "customization_options"),
        ({"asin": 7}, "record 0: asin = 7: must be a string"),
    ],
)
def test_bad_products_are_named(tmp_path, fields, message):
    data = write(tmp_path, [product("A1") | fields])
    with pytest.raises(EnvDataError, match=message) as error:
        envs.make("webshop", data=data)
    assert "items_shuffle.json" in str(error.value)


@pytest.mark.parametrize(
    "attributes,instructions,message",
    [
        ({"A1": {"attributes": "tea"}}, {}, "items_ins_v2.json, asin A1: attributes = 'tea'"),
        ({"A1": {"instruction": "find", "instruction_attributes": []}}, {}, "at least one"),
        ({"A1": []}, {}, "must be an object"),
        ({}, {"A1": {}}, "items_human_ins.json, asin A1: must be a list"),
        ({}, {"A1": [{"instruction": 1, "instruction_attributes": ["a"], "instruction_options": []}]},
         "instruction 0: instruction = 1"),
        ({}, {"A1": [{"instruction": "a", "instruction_options": []}]}, "instruction_attributes = None"),
        ({}, {}, "env.options.goals = 'human': the products in .* have no such goal"),
    ],
)  # fmt: skip
def test_bad_instructions_are_named(tmp_path, attributes, instructions, message):
    with pytest.raises(EnvDataError, match=message):
        envs.make("webshop", data=write(tmp_path, [product("A1")], attributes, instructions))


def test_missing_files(tmp_path):
    with pytest.raises(EnvDataError, match="no such directory; the official files"):
        envs.make("webshop", data=str(tmp_path / "nowhere"))
    with pytest.raises(EnvDataError, match="items_shuffle.json .* is missing; the official"):
        envs.make("webshop", data=str(tmp_path))
    data = write(tmp_path, [product("A1")], {}, {"A1": [human("A1")]})
    assert len(envs.make("webshop", data=data).tasks) == 1
    write(tmp_path, [product("A1")], {}, {"A1": [human("A1")]}, suffix="_1000")
    with pytest.raises(EnvDataError, match="name one in env.options.products"):
        envs.make("webshop", data=data)
    assert len(envs.make("webshop", data=data, products="items_shuffle_1000.json").tasks) == 1
    with pytest.raises(EnvDataError, match="must be named items_shuffle"):
        envs.make("webshop", data=data, products="goods.json")
    (tmp_path / "items_ins_v2_1000.json").unlink()
    with pytest.raises(EnvDataError, match="items_ins_v2_1000.json is missing"):
        envs.make("webshop", data=data, products="items_shuffle_1000.json")


@pytest.mark.parametrize(
    "text", ["", "7", "[1, 2", '[1 2]', '{"a" 1}', "{1: 2}", '[{"a": 1}, ', "[nope]", "\x00",
             f'[{"9" * 5000}]', "[" * 100_000 + "]" * 100_000]
)  # fmt: skip
def test_broken_json_is_named(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(EnvDataError, match="x.json: character"):
        list(read_records(path))


def test_records_are_read_one_by_one_as_json_reads_them(tmp_path):
    rng = random.Random(0)
    # Records longer and shorter than what is read at once, with characters of several bytes.
    rows = [{"n": n, "text": 'é☕ \\" ] }' * rng.randrange(1, 40000)} for n in range(30)]
    path = tmp_path / "x.json"
    for content in (
        rows,
        {str(n): row for n, row in enumerate(rows)},
        [],
        {},
        [1, -2.5, None, "a"],
    ):
        for indent in (None, 1):
            path.write_text(
                json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8"
            )
            pairs = content.items() if isinstance(content, dict) else enumerate(content)
            assert list(read_records(path)) == list(pairs)
    path.write_bytes(b'["\xff"]')
    with pytest.raises(EnvDataError, match="not UTF-8"):
        list(read_records(path))


@pytest.mark.parametrize("text", ['[{"asin": NaN}]', '{"A": 1e400}', "[Infinity]"])
def test_numbers_that_are_none_are_named(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(EnvDataError, match="x.json: character"):
        list(read_records(path))


def wanted(asin):
    return {asin: {"instruction": "find a mug", "instruction_attributes": ["tea"]}}


@pytest.mark.parametrize(("options", "values"), [(12, 10), (300, 50), (3, 300)])
def test_option_combinations_beyond_reason_are_refused_at_once(tmp_path, options, values):
    start = time.thread_time()
    many = {f"option {n}": [{"value": f"{n}-{v}"} for v in range(values)] for n in range(options)}
    data = write(tmp_path, [product("A1", customization_options=many)], wanted("A1"))
    with pytest.raises(EnvDataError) as error:
        envs.make("webshop", data=data, goals="synthetic", nouns="guess")
    assert f"product A1: its {options} options have" in str(error.value)
    assert time.thread_time() - start < 4
    # Instructions of people ask for some options only.
    write(tmp_path, [product("A1", customization_options=many)], {}, {"A1": [human("A1")]})
    env = envs.make("webshop", data=data, nouns="guess")
    assert len(env.tasks) == 1 and "option 0" in env.step(*opened(env))[1].observation


def opened(env):
    state, _ = env.reset(env.tasks[0].task_id)
    state, _ = env.step(state, "search[mug]")
    return state, "click[a1]"


def test_an_expert_copes_with_many_wanted_options(tmp_path):
    start = time.thread_time()
    words = [f"{chr(97 + n // 10) * 4}{n % 10 * 1111:04d}" for n in range(40)]
    many = {f"option {n}": [{"value": word}] for n, word in enumerate(words)}
    data = write(tmp_path, [product("A1", customization_options=many)], {},
                 {"A1": [human("A1", options=words)]})  # fmt: skip
    env = envs.make("webshop", data=data, nouns="guess", horizon=50)
    plan = env.solve(env.reset(env.tasks[0].task_id)[0])
    assert plan is not None and len(plan) == 43
    assert time.thread_time() - start < 10


def test_a_pipe_in_place_of_a_file_is_refused(tmp_path):
    data = write(tmp_path, [product("A1")], {}, {"A1": [human("A1")]})
    for name in ("items_shuffle.json", "items_ins_v2.json", "items_human_ins.json"):
        path = tmp_path / name
        path.rename(tmp_path / "kept")
        os.mkfifo(path)
        with pytest.raises(EnvDataError, match=f"{name}: is a pipe; it must be a regular file"):
            envs.make("webshop", data=data)
        path.unlink()
        (tmp_path / "kept").rename(path)


def test_price_limits():
    """One of the next four multiples of ten above the price, never the first of them."""
    seen = {price_limit(35.0, "x", n)[0] for n in range(200)}
    assert seen == {50.0, 60.0, 70.0}
    share = sum(price_limit(35.0, n)[0] == 70.0 for n in range(4000)) / 4000
    assert abs(share - 0.5) < 0.03  # the largest of four is in half of the pairs
    assert {price_limit(40.0, n)[0] for n in range(99)} == {60.0, 70.0, 80.0}
    assert (
        price_limit(35.0, 1)[1] == f", and price lower than {price_limit(35.0, 1)[0]:.2f} dollars"
    )
    assert price_limit(975.0, 1) == (990.0, ", and price lower than 990.00 dollars")
    assert price_limit(980.0, 1) == price_limit(2000.0, 1) == (1e6, "")


def test_goals():
    options = {"Size": [{"value": "S"}, {"value": "L"}], "Color": [{"value": v} for v in "abc"]}
    rows = [product("A1", customization_options=options, pricing="$2000"), product("B")]
    attributes = {
        "A1": {
            "attributes": ["tea"],
            "instruction": "Find me a mug",
            "instruction_attributes": ["tea"],
        },
        "B": {"attributes": ["x"], "instruction": None, "instruction_attributes": None},
    }
    people = {
        "A1": [human("A1", "a mug.."), human("A1", attributes=())],
        "B": [human("B", options=("blue",))],
        "C": [human("C")],
    }
    catalogue = Catalogue(enumerate(rows), attributes.items(), people.items())
    goals = {goal.text: goal for goal in Goals(catalogue, "human")}
    assert set(goals) == {"a mug", *(t for t in goals if t.startswith("i need a mug, and price"))}
    assert len(goals) == 2 and goals["a mug"].attributes == ("tea",)
    synthetic = list(Goals(catalogue, "synthetic"))
    expected = {
        f"Find me a mug with color: {color}, and size: {size}" for color in "abc" for size in "sl"
    }
    assert {goal.text for goal in synthetic} == expected and len(synthetic) == 6
    assert synthetic[0].options[0][0] == "color" and synthetic[0].options[1][0] == "size"


def test_the_order_of_goals_is_the_originals():
    """random.seed(233); random.shuffle(goals) over goals in file order, then the first 500."""
    env = envs.make("webshop")
    catalogue = env._shop.catalogue
    in_file_order = [
        instruction.text for p in catalogue.products for instruction in catalogue.human[p.asin]
    ]
    random.seed(233)
    random.shuffle(in_file_order)
    for task in (*env.list_tasks("test")[::50], *env.list_tasks("train")[::200]):
        number = int(task.task_id.rpartition("/")[2])
        assert in_file_order[number].strip(".") in env.reset(task.task_id)[1]


@pytest.mark.parametrize(
    "number,test,valid,train",
    [(12087, 500, 1000, 10587), (4000, 500, 1000, 2500), (2000, 500, 500, 1000), (5, 1, 1, 3),
     (1, 0, 0, 1)],
)  # fmt: skip
def test_splits(number, test, valid, train):
    from envs.webshop.environment import WebShop

    bounds = WebShop._split_bounds(number)
    assert [len(bounds[s]) for s in ("test", "valid", "train")] == [test, valid, train]
    assert sorted(n for part in bounds.values() for n in part) == list(range(number))


# -- the generated catalogue -----------------------------------------------------------------------
def test_generated_catalogue():
    rows = list(webshop_catalogue.records())
    products = [p for p, _, _ in rows]
    assert len(products) >= 2000 and len({p["category"] for p in products}) == 5
    assert len({p["asin"] for p in products}) == len(products)
    assert all(len(p["asin"]) == 10 and p["asin"].isupper() for p in products)
    assert set(products[0]) == set(product("A1"))  # every field of the official files
    for p, attributes, (instruction,) in rows:
        assert set(instruction["instruction_attributes"]) <= set(attributes["attributes"])
        values = {
            v["value"].lower() for c in (p["customization_options"] or {}).values() for v in c or ()
        }
        assert set(instruction["instruction_options"]) <= values
        assert not re.search(r"[{}]|  |\?,", instruction["instruction"])
    assert len({r[2][0]["instruction"] for r in rows}) > 0.99 * len(rows)
    odd = [p["pricing"] for p in products]
    assert "" in odd and any(" to " in price for price in odd)
    assert any(isinstance(p["small_description"], str) for p in products)
    assert [r[0] for r in webshop_catalogue.records(10)] == products[:10]


def test_written_and_generated_catalogues_are_the_same_shop(tmp_path):
    webshop_catalogue.write(tmp_path, 60)
    for goals in ("human", "synthetic"):
        made = envs.make("webshop", num_products=60, goals=goals)
        read = envs.make("webshop", data=str(tmp_path), nouns="guess", goals=goals)
        # Goals for scripted players are no part of a catalogue.
        tasks = tuple(t for t in made.tasks if t.split != "bootstrap")
        assert tasks == read.tasks
        assert [made.reset(t.task_id) for t in tasks] == [read.reset(t.task_id) for t in tasks]
        assert made.split_hash("test") == read.split_hash("test")
