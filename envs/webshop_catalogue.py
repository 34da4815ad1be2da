"""An original catalogue in WebShop's file format, so that the environment needs no download.

    python -m envs.webshop_catalogue DIRECTORY --num-products 2400

writes the three files; `records` gives the same records in memory. Products, brands, descriptions
and instructions are this project's own and are drawn from the tables below with stable seeds: the
first n products do not depend on how many follow. Odd values that the official files have (no price,
a price range, options that are null, one bullet point instead of a list) occur here too.
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
from envs.webshop_data import HUMAN_FILE

NUM_PRODUCTS = 2400
MAX_PRODUCTS = 1_000_000
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_SYLLABLES = "bra dor fen gal hol jun kel lor mar nex ost pel quin rov sal tor uma vex wil zan".split()


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of product.

    Attributes:
      noun: what it is called in titles and instructions.
      query: the search it is found with.
      path: product_category.
      price: least and greatest price, dollars.
      attributes: what a product of the kind may be; some of them are wanted.
      options: option name -> values.
      uses: what people want it for.
    """

    noun: str
    query: str
    path: str
    price: tuple[float, float]
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    uses: tuple[str, ...]


_CLOTHES_COLORS = ("black", "navy", "olive", "burgundy", "heather grey", "white", "teal", "rust")
_CLOTHES_SIZES = ("x-small", "small", "medium", "large", "x-large", "xx-large")
_HOME_COLORS = ("walnut", "white", "charcoal", "sage green", "natural oak", "ivory")
_GADGET_COLORS = ("black", "silver", "midnight blue", "rose gold", "white")


def _kind(noun, query, path, price, attributes, uses, **options) -> Kind:
    return Kind(
        noun, query, path, price, tuple(attributes.split("; ")),
        {name.replace("_", " "): values for name, values in options.items()},
        tuple(uses.split("; ")),
    )  # fmt: skip


KINDS: dict[str, tuple[Kind, ...]] = {
    "beauty": (
        _kind("shampoo", "shampoo for damaged hair", "Beauty & Care › Hair › Shampoo", (7, 38),
              "sulfate free; paraben free; cruelty free; tea tree; argan oil; color safe; fragrance free; hydrating formula",
              "damaged hair; a dry scalp; curly hair; daily washing",
              scent=("coconut", "lavender", "mint", "unscented"), size=("8 fl oz", "16 fl oz", "33 fl oz")),
        _kind("face cream", "moisturizing face cream", "Beauty & Care › Skin › Face Creams", (9, 64),
              "hyaluronic acid; fragrance free; non greasy; dermatologist tested; vitamin c; anti aging; alcohol free; cruelty free",
              "dry skin; sensitive skin; winter mornings; fine lines",
              size=("1 ounce", "1.7 ounce", "3.4 ounce")),
        _kind("makeup brush set", "makeup brushes", "Beauty & Care › Tools › Brushes", (6, 45),
              "synthetic hair; cruelty free; easy to clean; travel case; soft bristles; eco friendly; wooden handle",
              "foundation; eye shadow; beginners; travelling",
              color=("pink", "black", "rose gold", "champagne"), pieces=("8 piece", "12 piece", "18 piece")),
        _kind("lip balm", "tinted lip balm", "Beauty & Care › Lips › Balms", (3, 19),
              "shea butter; long lasting; gluten free; sun protection; paraben free; beeswax; vegan formula",
              "chapped lips; the beach; everyday wear",
              flavor=("cherry", "vanilla", "honey", "peach"), pack=("pack of 1", "pack of 3", "pack of 6")),
        _kind("electric toothbrush", "rechargeable toothbrush", "Beauty & Care › Oral Care › Toothbrushes", (18, 120),
              "long lasting battery; soft bristles; pressure sensor; teeth whitening; quiet motor; two minute timer; travel case",
              "sensitive gums; kids; braces",
              color=("white", "black", "aqua", "lilac")),
        _kind("hair dryer", "compact hair dryer", "Beauty & Care › Hair › Dryers", (20, 140),
              "ionic technology; quick drying; foldable handle; cool shot; lightweight design; low noise; ceramic coating",
              "thick hair; the gym bag; hotel stays",
              color=("matte black", "pearl white", "coral")),
    ),
    "electronics": (
        _kind("wireless earbuds", "bluetooth earbuds", "Electronics › Audio › Earbuds", (15, 160),
              "noise cancelling; water resistant; long battery life; fast charging; touch control; deep bass; hands free",
              "running; phone calls; the commute; studying",
              color=_GADGET_COLORS),
        _kind("phone case", "protective phone case", "Electronics › Phones › Cases", (6, 42),
              "shock proof; wireless charging; scratch resistant; slim fit; anti yellowing; raised edges; non slip",
              "clumsy hands; hiking; the office",
              color=("clear", "black", "lavender", "forest green"), size=("5.8 inch", "6.1 inch", "6.7 inch")),
        _kind("usb c cable", "charging cable", "Electronics › Accessories › Cables", (5, 28),
              "fast charging; nylon braided; data transfer; heavy duty; gold plated; tangle free",
              "the car; a desk; long trips",
              length=("3 feet", "6 feet", "10 feet"), color=("black", "white", "red")),
        _kind("bluetooth speaker", "portable speaker", "Electronics › Audio › Speakers", (19, 210),
              "water resistant; long battery life; stereo sound; hands free; carrying strap; dust proof; deep bass",
              "the shower; camping; a small party",
              color=_GADGET_COLORS),
        _kind("security camera", "indoor security camera", "Electronics › Cameras › Home Security", (24, 180),
              "night vision; motion detection; two way audio; easy to install; cloud storage; high definition; weather proof",
              "the front door; watching a pet; a nursery",
              pack=("1 pack", "2 pack", "4 pack")),
        _kind("tablet stand", "adjustable tablet stand", "Electronics › Accessories › Stands", (9, 58),
              "aluminum alloy; non slip; height adjustable; easy to fold; 360 degree rotation; heavy duty; cable hole",
              "cooking; video calls; drawing",
              color=("silver", "space gray", "black")),
    ),
    "fashion": (
        _kind("running shoes", "women's running shoes", "Fashion › Women › Shoes › Running", (28, 140),
              "memory foam; non slip; arch support; rubber sole; breathable mesh; wide toe box; shock absorbing",
              "long walks; the treadmill; standing all day",
              color=("white", "black", "coral", "mint"), size=("6", "7", "8", "9", "10")),
        _kind("button down shirt", "men's dress shirt", "Fashion › Men › Shirts › Button Down", (16, 75),
              "long sleeve; slim fit; machine washable; wrinkle free; pure cotton; moisture wicking; chest pocket",
              "the office; a wedding; dinner out",
              color=_CLOTHES_COLORS, size=_CLOTHES_SIZES),
        _kind("hoodie", "fleece hoodie", "Fashion › Unisex › Sweatshirts", (19, 80),
              "fleece lined; machine washable; kangaroo pocket; drawstring closure; relaxed fit; long sleeve; organic cotton",
              "cold mornings; lounging; autumn hikes",
              color=_CLOTHES_COLORS, size=_CLOTHES_SIZES),
        _kind("yoga pants", "high waist yoga pants", "Fashion › Women › Active › Pants", (14, 68),
              "high waist; tummy control; moisture wicking; side pockets; four way stretch; squat proof; quick drying",
              "yoga class; the gym; travelling",
              color=_CLOTHES_COLORS, size=_CLOTHES_SIZES),
        _kind("rain jacket", "waterproof jacket", "Fashion › Men › Outerwear › Rain", (35, 160),
              "water resistant; wind proof; detachable hood; elastic cuffs; light weight; zipper closure; taped seams",
              "cycling; rainy commutes; festivals",
              color=("yellow", "navy", "black", "olive"), size=_CLOTHES_SIZES),
        _kind("leather belt", "men's leather belt", "Fashion › Men › Accessories › Belts", (12, 60),
              "genuine leather; nickel free; easy to adjust; reversible design; gift box; stainless steel buckle",
              "jeans; a suit; a birthday present",
              color=("black", "brown", "cognac"), size=("32 inch", "36 inch", "40 inch")),
    ),
    "garden": (
        _kind("table lamp", "bedside table lamp", "Home & Garden › Lighting › Table Lamps", (18, 130),
              "easy to assemble; dimmable light; solid wood; linen shade; usb port; mid century; energy efficient",
              "the bedroom; reading; a reading corner",
              color=_HOME_COLORS),
        _kind("storage ottoman", "ottoman with storage", "Home & Garden › Living Room › Ottomans", (32, 190),
              "space saving; easy to clean; faux leather; foldable design; high density foam; button tufted; solid wood",
              "the living room; a hallway; toys",
              color=_HOME_COLORS, size=("small", "large")),
        _kind("throw pillow cover", "pillow covers", "Home & Garden › Textiles › Pillows", (8, 36),
              "machine washable; double sided; hidden zipper; super soft; hand woven; fade resistant",
              "the sofa; a guest room; the patio",
              color=("mustard", "navy", "ivory", "terracotta"), size=("16 x 16 inch", "18 x 18 inch", "20 x 20 inch")),
        _kind("floating shelf", "wall shelves", "Home & Garden › Storage › Shelves", (15, 90),
              "easy to install; solid wood; space saving; heavy duty; metal bracket; water resistant",
              "the bathroom; small plants; books",
              color=_HOME_COLORS, size=("16 inch", "24 inch", "36 inch")),
        _kind("blackout curtains", "bedroom curtains", "Home & Garden › Windows › Curtains", (17, 95),
              "machine washable; thermal insulated; noise reducing; stainless steel grommet; wrinkle free; light blocking",
              "a nursery; night shifts; the living room",
              color=("grey", "navy", "beige", "wine"), size=("42 x 63 inch", "52 x 84 inch", "52 x 96 inch")),
        _kind("planter pot", "ceramic planter", "Home & Garden › Outdoor › Planters", (10, 70),
              "drainage hole; hand painted; frost proof; matching saucer; uv resistant; easy to clean",
              "succulents; herbs; a balcony",
              color=("white", "terracotta", "sage green"), size=("5 inch", "8 inch", "10 inch")),
    ),
    "grocery": (
        _kind("granola", "crunchy granola", "Grocery › Breakfast › Granola", (6, 32),
              "gluten free; non gmo; low sugar; high protein; whole grain; vegan friendly; nut free",
              "breakfast; hiking; a yogurt bowl",
              flavor=("maple pecan", "blueberry", "dark chocolate", "honey almond"), size=("12 ounce", "24 ounce", "pack of 6")),
        _kind("herbal tea", "caffeine free tea", "Grocery › Drinks › Tea", (5, 30),
              "caffeine free; certified organic; individually wrapped; plant based; sugar free; non gmo",
              "the evening; a sore throat; guests",
              flavor=("chamomile", "peppermint", "ginger lemon", "hibiscus"), size=("20 count", "40 count", "100 count")),
        _kind("protein bars", "high protein bars", "Grocery › Snacks › Bars", (12, 44),
              "high protein; low carb; keto friendly; gluten free; soy free; no artificial sweeteners; dairy free",
              "after the gym; lunch boxes; long flights",
              flavor=("peanut butter", "cookie dough", "salted caramel", "coconut"), pack=("pack of 6", "pack of 12")),
        _kind("olive oil", "extra virgin olive oil", "Grocery › Pantry › Oils", (9, 56),
              "cold pressed; extra virgin; first harvest; glass bottle; non gmo; unfiltered style",
              "salads; roasting; a gift",
              size=("8.5 fl oz", "17 fl oz", "34 fl oz")),
        _kind("trail mix", "nut and fruit mix", "Grocery › Snacks › Nuts", (8, 38),
              "resealable bag; low sodium; gluten free; no added sugar; individually wrapped; dry roasted; kosher certified",
              "road trips; the office drawer; movie night",
              flavor=("tropical", "cranberry", "spicy", "chocolate"), size=("1 pound", "2 pound", "pack of 12")),
        _kind("pasta sauce", "tomato pasta sauce", "Grocery › Pantry › Sauces", (4, 26),
              "no added sugar; certified organic; low sodium; gluten free; small batch; dairy free",
              "quick dinners; lasagna; pizza night",
              flavor=("basil", "roasted garlic", "arrabbiata", "mushroom"), pack=("pack of 1", "pack of 3", "pack of 6")),
    ),
}  # fmt: skip

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
_WISHES = (" that is {0}", ". it should be {0}", ", and i want {0}", ". make sure it says {0}")
_CHOICES = (" in {0}", ". the {1} should be {0}", ", {1} {0}", ". i prefer {0} as the {1}")


def _pick(rng: random.Random, items: Sequence) -> Any:
    return items[rng.randrange(len(items))]


def _some(rng: random.Random, items: Sequence, number: int) -> list:
    """`number` different items; random.sample may change between Python versions."""
    left = list(items)
    return [left.pop(rng.randrange(len(left))) for _ in range(min(number, len(left)))]


def _brand(rng: random.Random) -> str:
    return "".join(_pick(rng, _SYLLABLES) for _ in range(2)).capitalize()


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


def _texts(rng: random.Random, kind: Kind, brand: str, attributes: list[str]) -> tuple[str, str, Any]:
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
    """What a shopper would write: one or two attributes, up to two options, in everyday words."""
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


_UNCOUNTED = frozenset({"shampoo", "granola", "herbal tea", "olive oil", "trail mix", "pasta sauce"})


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
    """Writes the three files into `directory`, which is made if need be."""
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
