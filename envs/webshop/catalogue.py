"""An original catalogue in WebShop's file format, so that the environment needs no download.

    python -m envs.webshop.catalogue DIRECTORY --num-products 2400

writes the three files; `records` gives the same records in memory. Products, brands, descriptions
and instructions are our own. They are drawn from kinds.json with stable seeds, so the first N products
do not depend on how many follow. Odd values of the official files occur here, too: no price, a price
range, options that are null, one bullet point instead of a list.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from envs.base import stable_seed
from envs.webshop.data import HUMAN_FILE, Instruction, Product

NUM_PRODUCTS = 2400
MAX_PRODUCTS = 1_000_000
_BOOTSTRAP_DRAWS = 12  # draws of further instructions per product
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SYLLABLES = (
    "bra dor fen gal hol jun kel lor mar nex ost pel quin rov sal tor uma vex wil zan".split()
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of product.

    Attributes:
      noun: its name in titles and instructions.
      query: the search that finds it.
      path: product_category.
      price: lowest and highest price in dollars.
      attributes: attributes that such a product may have; instructions ask for some.
      uses: what people use it for.
      options: option name -> values.
    """

    noun: str
    query: str
    path: str
    price: Sequence[float]
    attributes: Sequence[str]
    uses: Sequence[str]
    options: dict[str, Sequence[str]]


def _read_kinds() -> dict[str, tuple[Kind, ...]]:
    """The table of kinds by category."""
    text = Path(__file__).with_name("kinds.json").read_text(encoding="utf-8")
    return {
        category: tuple(Kind(**kind) for kind in kinds)
        for category, kinds in json.loads(text).items()
    }


KINDS = _read_kinds()

_OPENINGS = (
    "i am looking for {a} {noun} for {use}",
    "i need {a} {noun}",
    "can you find me {a} {noun} to use for {use}",
    "i want to buy {a} {noun}",
    "show me {a} {noun}, it is for {use}",
    "hello, i would like {a} {noun}",
    "my old one broke, so i need {a} {noun}",
    "please help me pick {a} {noun} for {use}",
)
_WISHES = (" with {0}", ". it should offer {0}", ", and i want {0}", ". make sure it says {0}")
_CHOICES = (" in {0}", ". the {1} should be {0}", ", {1} {0}", ". i prefer {0} as the {1}")


def _pick(rng: random.Random, items: Sequence) -> Any:
    return items[rng.randrange(len(items))]


def _some(rng: random.Random, items: Sequence, number: int) -> list:
    """`number` different items; random.sample may change between Python versions."""
    left = list(items)
    return [left.pop(rng.randrange(len(left))) for _ in range(min(number, len(left)))]


def _brand(rng: random.Random) -> str:
    return "".join(_pick(rng, SYLLABLES) for _ in range(2)).capitalize()


def _asin(number: int) -> str:
    value = stable_seed("webshop-asin", number)
    tail = "".join(_BASE32[(value >> (5 * place)) & 31] for place in range(5))
    # The number itself keeps ids different; the tail makes their order say nothing.
    head = "".join(_BASE32[(number >> (5 * place)) & 31] for place in range(4))
    return f"G{tail}{head}"


def _customization(rng: random.Random, kind: Kind) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, values in kind.options.items():
        number = 2 + rng.randrange(len(values) - 1)
        chosen = set(_some(rng, values, number))
        options[name.capitalize()] = [
            {"value": value.title(), "image": None} for value in values if value in chosen
        ]
    if rng.randrange(12) == 0:
        options["Style"] = None
    return options


def _pricing(rng: random.Random, kind: Kind) -> str:
    low, high = kind.price
    price = low + (high - low) * rng.random() ** 2
    odd = rng.randrange(20)
    if odd == 0:
        return ""
    if odd <= 3:
        return f"${price:.2f} to ${price * 1.4:.2f}"
    return f"${price:.2f}"


def _texts(
    rng: random.Random, kind: Kind, brand: str, attributes: list[str]
) -> tuple[str, str, Any]:
    """(name, description, bullet points) of a product."""
    shown = [attribute.title() for attribute in attributes]
    use, other = (_some(rng, kind.uses, 2) + [kind.uses[0]])[:2]
    name = f"{brand} {shown[0]} {kind.noun.title()}, {', '.join(shown[1:3])} for {use.title()}"
    description = (
        f"The {brand} {kind.noun} is made for {use}. "
        f"{_pick(rng, ('Our customers like', 'We are proud of', 'You will notice'))} that it is"
        f" {attributes[-1]}. {_pick(rng, ('Good', 'Handy', 'Just right'))} for {other} as well."
    )
    bullets: Any = [f"{attribute.capitalize()}: {_pick(rng, _CLAIMS)}" for attribute in attributes]
    bullets.append(f"Suited to {use} and {other}")
    if rng.randrange(15) == 0:
        bullets = bullets[0]
    return name, description, bullets


_CLAIMS = (
    "checked by hand before it leaves our workshop",
    "what most of our buyers ask for first",
    "so that it keeps doing its job for years",
    "no compromise on what matters",
    "tested in everyday life",
)


def _instruction(rng: random.Random, kind: Kind, attributes: list[str], options: dict) -> dict:
    """A shopper's instruction: one or two attributes and up to two options, in everyday words."""
    wanted = _some(rng, attributes, 1 + rng.randrange(2))
    noun = kind.noun
    article = "" if noun.endswith("s") or noun in _UNCOUNTED else _article(noun)
    opening = _pick(rng, _OPENINGS).format(a=article, noun=noun, use=_pick(rng, kind.uses))
    text = opening.replace("  ", " ")
    text += _pick(rng, _WISHES).format(" and ".join(wanted))
    named, values = [], []
    present = [name for name, contents in options.items() if contents]
    for name in _some(rng, present, 1 + rng.randrange(2)):
        value = _pick(rng, options[name])["value"].lower()
        text += _pick(rng, _CHOICES).format(value, name.lower())
        named.append(f"{name.lower()}: {value}")
        values.append(value)
    return {
        "instruction": text, "attributes": attributes, "options": named,
        "instruction_attributes": wanted, "instruction_options": values,
    }  # fmt: skip


def bootstrap_instructions(product: Product, known: Sequence[Instruction]) -> list[Instruction]:
    """Further instructions about a generated product, for scripted corpora only.

    Args:
      product: the product.
      known: its instructions in the other splits; no result asks for the same.
    """
    kind = next(k for k in KINDS[product.category] if k.query == product.query)
    options = {name: [{"value": v} for v in values] for name, values in product.options}
    asked = {(frozenset(i.attributes), frozenset(i.options)) for i in known}
    found = []
    for number in range(_BOOTSTRAP_DRAWS):
        rng = random.Random(stable_seed("webshop-bootstrap", product.asin, number))
        drawn = _instruction(rng, kind, list(product.attributes), options)
        wanted = tuple(drawn["instruction_attributes"]), tuple(drawn["instruction_options"])
        if (frozenset(wanted[0]), frozenset(wanted[1])) not in asked:
            asked.add((frozenset(wanted[0]), frozenset(wanted[1])))
            found.append(Instruction(drawn["instruction"], *wanted))
    return found


_UNCOUNTED = frozenset(
    {"shampoo", "granola", "herbal tea", "olive oil", "trail mix", "pasta sauce"}
)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeio" else "a"


def records(num_products: int = NUM_PRODUCTS) -> Iterator[tuple[dict, dict, list[dict]]]:
    """(product, attribute record, human instructions) of the first `num_products` products."""
    categories = list(KINDS)
    for number in range(num_products):
        rng = random.Random(stable_seed("webshop-product", number))
        category = categories[number % len(categories)]
        kind = _pick(rng, KINDS[category])
        brand = _brand(rng)
        attributes = _some(rng, kind.attributes, 3 + rng.randrange(3))
        name, description, bullets = _texts(rng, kind, brand, attributes)
        options = _customization(rng, kind)
        asin = _asin(number)
        product = {
            "name": name, "product_information": {}, "brand": brand, "brand_url": "",
            "full_description": description, "pricing": _pricing(rng, kind), "list_price": "",
            "availability_quantity": None, "availability_status": "In Stock.",
            "images": [f"images/{asin}.jpg"], "product_category": kind.path, "average_rating": "",
            "small_description": bullets, "small_description_old": "", "total_reviews": "",
            "total_answered_questions": "", "customization_options": options or "",
            "seller_id": "", "seller_name": brand, "fulfilled_by_amazon": "",
            "fast_track_message": "", "aplus_present": "", "asin": asin, "category": category,
            "query": kind.query, "page": 1 + rng.randrange(5),
        }  # fmt: skip
        human = _instruction(rng, kind, attributes, options)
        human |= {"asin": asin, "assignment_id": "", "worker_id": ""}
        wanted = _some(rng, attributes, 2)
        text = f"Find me {', '.join(wanted)} {kind.query}"
        synthetic = {
            "attributes": attributes, "instruction": text, "instruction_attributes": wanted,
        }  # fmt: skip
        yield product, synthetic, [human]


def write(directory: str | Path, num_products: int = NUM_PRODUCTS) -> None:
    """Writes the three files into `directory`; creates it if necessary."""
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    products, attributes, human = [], {}, {}
    for product, synthetic, instructions in records(num_products):
        products.append(product)
        attributes[product["asin"]] = synthetic
        human[product["asin"]] = instructions
    named = {
        "items_shuffle.json": products, "items_ins_v2.json": attributes, HUMAN_FILE: human,
    }  # fmt: skip
    for name, content in named.items():
        text = json.dumps(content, ensure_ascii=False)
        (root / name).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a generated WebShop data directory.")
    parser.add_argument("directory")
    parser.add_argument("--num-products", type=int, default=NUM_PRODUCTS)
    arguments = parser.parse_args()
    if not 1 <= arguments.num_products <= MAX_PRODUCTS:
        parser.error(f"--num-products {arguments.num_products}: must be 1 to {MAX_PRODUCTS}")
    write(arguments.directory, arguments.num_products)


if __name__ == "__main__":
    main()
