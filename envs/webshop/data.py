"""WebShop's data files: products, instructions, goals (web_agent_site/engine/engine.py, goal.py).

    items_shuffle*.json   list of products
    items_ins_v2*.json    asin -> attributes, synthetic instruction and its attributes
    items_human_ins.json  asin -> instructions written by people

Files are read record by record, since the full product file has gigabytes. The original draws two
values from an unseeded generator: the price of a product with a price range, and the price limit of a
goal. Here they are functions of the product, so that tasks are the same on every machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from envs import files
from envs.base import EnvDataError, stable_seed
from envs.webshop.reward import NO_LIMIT

SHUFFLE_SEED = 233  # of the goals; the original's constant
HUMAN_FILE = "items_human_ins.json"
SOURCE = (
    "the official files are linked in setup.sh of github.com/princeton-nlp/WebShop; without"
    " env.options.data a generated catalogue is played"
)
_PRICE_STEPS = [10.0 * step for step in range(1, 100)]
_MAX_RECORD = 1 << 24  # characters; more is a broken file, not a product
# Most synthetic goals of a catalogue: the larger of the first number and the second per product.
_MAX_GOALS, _MAX_GOALS_EACH = 1_000_000, 100


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """A product, as its pages show it and as the reward judges it.

    Attributes:
      asin: id, at most 10 characters.
      title, description, bullets: the texts of its pages.
      price_tag: the price as shown, such as "$24.49 to $39.99".
      price: dollars, for the reward; drawn from the range if there is one.
      options: (name, values) in page order, in lower case.
      attributes: for the reward; ("DUMMY_ATTR",) if the data has none.
      category: one of the benchmark's five, such as "fashion".
      query: the search with which the product was collected.
      product_category: path with " › " between its levels.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    price_tag: str
    price: float
    options: tuple[tuple[str, tuple[str, ...]], ...]
    attributes: tuple[str, ...]
    category: str
    query: str
    product_category: str

    def search_text(self) -> str:
        """The text to index: title, description, first bullet point and options, in lower case."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options)
        first = self.bullets[0] if self.bullets else ""
        return " ".join([self.title, self.description, first, options]).lower()


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """A shopper's wish: text, attributes, and option values (None: synthetic, so all options)."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """One task.

    Attributes:
      asin: the product for which it was written.
      text: the instruction, with the price limit if there is one.
      attributes: wanted attributes, at least one.
      options: wanted option values; (name, value) pairs in synthetic goals.
      price_limit: dollars; NO_LIMIT if there is none.
    """

    asin: str
    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] | tuple[tuple[str, str], ...]
    price_limit: float


# -- files -----------------------------------------------------------------------------------------
def read_records(path: Path) -> Iterator[tuple[str | int, Any]]:
    """Yields the (key, value) pairs of a JSON object, or (index, value) of a list, one by one.

    Raises:
      EnvDataError: not JSON, or neither a list nor an object.
    """
    with files.open_text(path) as file:
        buffer, position, offset = "", 0, 0

        def more(size: int = 1 << 20) -> bool:
            nonlocal buffer, position, offset
            chunk = file.read(size)
            offset += position
            buffer, position = buffer[position:] + chunk, 0
            return bool(chunk)

        def peek() -> str:
            nonlocal position
            while True:
                while position < len(buffer) and buffer[position] in " \t\r\n":
                    position += 1
                if position < len(buffer):
                    return buffer[position]
                if not more():
                    return ""

        def fail(what: str) -> EnvDataError:
            return EnvDataError(f"{path}: character {offset + position}: {what}")

        def value() -> Any:
            nonlocal position
            peek()
            size = 1 << 20
            while True:
                try:
                    found, end = files.decode_at(buffer, position)
                except json.JSONDecodeError as error:
                    # The record may continue in the next chunk. Chunks grow, so that a broken file
                    # is not parsed again after every megabyte.
                    if len(buffer) - position > _MAX_RECORD or not more(size):
                        raise fail(f"not JSON ({error})") from None
                    size *= 2
                    continue
                except (ValueError, RecursionError) as error:  # a number out of range; too deep
                    raise fail(f"not JSON that can be read ({error})") from None
                position = end
                return found

        opening = peek()
        if opening not in ("[", "{"):
            raise fail(f"must be a JSON list or object, not {opening or 'nothing'!r}")
        closing = "]" if opening == "[" else "}"
        position += 1
        number = 0
        while peek() != closing:
            if number:
                if peek() != ",":
                    raise fail(f"a comma or {closing} must follow, not {peek()!r}")
                position += 1
            key: str | int = number
            if opening == "{":
                key = value()
                if not isinstance(key, str) or peek() != ":":
                    raise fail("a quoted key and a colon must stand here")
                position += 1
            yield key, value()
            number += 1


def find_files(directory: str, products: str) -> tuple[Path, Path, Path]:
    """The three files of a data directory.

    Args:
      directory: the data directory.
      products: name of the product file; "": the only one.

    Raises:
      EnvDataError: the directory or a file is missing, or there are several product files.
    """
    root = Path(directory)
    if not root.is_dir():
        raise EnvDataError(f"env.options.data = {directory!r}: no such directory; {SOURCE}")
    there = sorted(path.name for path in root.glob("items_shuffle*.json"))
    if not products:
        if not there:
            raise EnvDataError(
                f"env.options.data = {directory!r}: items_shuffle.json (or"
                f" items_shuffle_1000.json) is missing; {SOURCE}"
            )
        if len(there) > 1:
            raise EnvDataError(
                f"env.options.data = {directory!r} holds {', '.join(there)}: name one in"
                " env.options.products"
            )
        products = there[0]
    named = re.fullmatch(r"items_shuffle(.*)\.json", products)
    if named is None:
        raise EnvDataError(
            f"env.options.products = {products!r}: must be named items_shuffle*.json, like"
            f" {', '.join(there) or 'items_shuffle.json'}"
        )
    paths = tuple(
        root / name for name in (products, f"items_ins_v2{named.group(1)}.json", HUMAN_FILE)
    )
    for path in paths:
        if not path.exists():
            raise EnvDataError(
                f"env.options.data = {directory!r}: {path.name} is missing; {SOURCE}"
            )
        files.check_regular(path)
    return paths


# -- products --------------------------------------------------------------------------------------
class Record:
    """One record and its place, for error messages."""

    def __init__(self, where: str, value: Any):
        if not isinstance(value, dict):
            raise EnvDataError(f"{where}: must be an object, not {value!r:.60}")
        self.where, self.value = where, value

    def fail(self, field: str, allowed: str) -> EnvDataError:
        shown = repr(self.value.get(field))[:60]
        return EnvDataError(f"{self.where}: {field} = {shown}: must be {allowed}")

    def text(self, field: str) -> str:
        found = self.value.get(field)
        if not isinstance(found, str):
            raise self.fail(field, "a string")
        return found

    def texts(self, field: str) -> tuple[str, ...]:
        found = self.value.get(field)
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise self.fail(field, "a list of strings")
        return tuple(found)


def parse_price(record: Record) -> tuple[tuple[float, ...], str]:
    """(prices, tag) of the field `pricing`: "$5.99", "$24.49 to $39.99", or nothing for 100."""
    pricing = record.value.get("pricing")
    if not pricing:
        return (100.0,), "$100.0"
    allowed = 'like "$5.99" or "$24.49 to $39.99", or empty'
    if not isinstance(pricing, str):
        raise record.fail("pricing", allowed)
    try:
        prices = [float(Decimal(re.sub(r"[^\d.]", "", p))) for p in pricing.split("$")[1:]]
    except InvalidOperation:
        raise record.fail("pricing", allowed) from None
    if not prices or not math.isfinite(max(prices)) or re.search(r"\d[eE][-+]?\d", pricing):
        raise record.fail("pricing", allowed)
    if len(prices) == 1:
        return tuple(prices), f"${prices[0]}"
    return tuple(prices[:2]), f"${prices[0]} to ${prices[1]}"


def parse_options(record: Record) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The field `customization_options`: empty, or name -> null or list of {"value": ...}."""
    field = "customization_options"
    customization = record.value.get(field)
    if not customization:
        return ()
    allowed = 'empty, or an object from names to null or lists of {"value": string}'
    if not isinstance(customization, dict):
        raise record.fail(field, allowed)
    options: dict[str, tuple[str, ...]] = {}
    for name, contents in customization.items():
        if contents is None:
            continue
        if not isinstance(contents, list) or not all(
            isinstance(content, dict) and isinstance(content.get("value"), str)
            for content in contents
        ):
            raise record.fail(field, allowed)
        values = (content["value"].strip().replace("/", " | ").lower() for content in contents)
        options[name.lower()] = tuple(values)
    return tuple(options.items())


def parse_product(where: str, value: Any, attributes: Sequence[str]) -> Product:
    """A product, normalised as in the original's load_products.

    Raises:
      EnvDataError: a field is missing or malformed; names record, field and value.
    """
    record = Record(where, value)
    asin = record.text("asin")
    record.where = f"{where} (asin {asin})"
    bullets = record.value.get("small_description")
    bullets = (bullets,) if isinstance(bullets, str) else record.texts("small_description")
    prices, tag = parse_price(record)
    draw = random.Random(stable_seed("webshop-price", asin)).random()
    return Product(
        asin=asin,
        title=record.text("name"),
        description=record.text("full_description"),
        bullets=bullets,
        price_tag=tag,
        price=prices[0] + (prices[-1] - prices[0]) * draw,
        options=parse_options(record),
        attributes=tuple(attributes),
        category=record.text("category"),
        query=record.text("query").lower().strip(),
        product_category=record.text("product_category"),
    )


class Catalogue:
    """Products with their instructions.

    Args:
      products: (number, record) of the product file, in file order.
      attributes: (asin, record) of the attribute file.
      human: (asin, records) of the human instructions.
      names: the three files' names, for errors.
      limit: only the first N product records; 0: all.

    Raises:
      EnvDataError: a record is malformed.
    """

    def __init__(
        self,
        products: Iterable[tuple[int, Any]],
        attributes: Iterable[tuple[str, Any]],
        human: Iterable[tuple[str, Any]],
        names: Sequence[str] = ("products", "attributes", "instructions"),
        limit: int = 0,
    ):
        self.products: list[Product] = []
        places: dict[str, int] = {}
        for number, value in products:
            if limit and number >= limit:
                break
            where = f"{names[0]}, record {number}"
            asin = value.get("asin") if isinstance(value, dict) else None
            if isinstance(asin, str) and (asin == "nan" or len(asin) > 10 or asin in places):
                continue  # the original drops these, too
            product = parse_product(where, value, ("DUMMY_ATTR",))
            places[product.asin] = len(self.products)
            self.products.append(product)
        self.synthetic: dict[str, Instruction] = {}
        for asin, value in attributes:
            if asin in places:
                self._take_attributes(places[asin], Record(f"{names[1]}, asin {asin}", value))
        self.human: dict[str, tuple[Instruction, ...]] = {}
        for asin, values in human:
            if asin in places:
                self.human[asin] = self._instructions(f"{names[2]}, asin {asin}", values)
        self.places = places

    def __getitem__(self, asin: str) -> Product:
        return self.products[self.places[asin]]

    def _take_attributes(self, place: int, record: Record) -> None:
        product = self.products[place]
        if "attributes" in record.value:
            found = record.texts("attributes")
            self.products[place] = dataclasses.replace(product, attributes=found)
        if record.value.get("instruction") is not None:
            wanted = record.texts("instruction_attributes")
            if not wanted:
                raise record.fail("instruction_attributes", "a list of at least one string")
            text = record.text("instruction")
            self.synthetic[product.asin] = Instruction(text, wanted, None)

    @staticmethod
    def _instructions(where: str, values: Any) -> tuple[Instruction, ...]:
        if not isinstance(values, list):
            raise EnvDataError(f"{where}: must be a list of instructions, not {values!r:.60}")
        found = []
        for number, value in enumerate(values):
            record = Record(f"{where}, instruction {number}", value)
            wanted = record.texts("instruction_attributes")
            options = record.texts("instruction_options")
            found.append(Instruction(record.text("instruction"), wanted, options))
        return tuple(found)


def _count(number: int) -> str:
    """A number as text of bounded length."""
    return str(number) if number < 10**15 else f"over 10^{int(math.log10(number))}"


# -- goals -----------------------------------------------------------------------------------------
def price_limit(price: float, *names: object) -> tuple[float, str]:
    """(limit, its text): the larger of two draws from the next four multiples of ten above the price."""
    above = [step for step in _PRICE_STEPS if step > price][:4]
    if len(above) < 2:
        return NO_LIMIT, ""
    rng = random.Random(stable_seed("webshop-price-limit", *names))
    first, second = rng.randrange(len(above)), rng.randrange(len(above) - 1)
    limit = above[max(first, second + (second >= first))]
    return limit, f", and price lower than {limit:.2f} dollars"


class Goals(Sequence):
    """The shuffled goals of a catalogue; each is made on access.

    There is one human goal for each instruction with attributes, and one synthetic goal for each
    combination of a product's options: many, for a full catalogue.

    Args:
      catalogue: the products.
      kind: "human" or "synthetic".
      human: instructions by asin, other than the catalogue's own.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        kind: str,
        human: Mapping[str, Sequence[Instruction]] | None = None,
    ):
        self._catalogue, self._kind = catalogue, kind
        self._human = catalogue.human if human is None else human
        self._keys: list[tuple[int, int]] = []  # (product, instruction or combination)
        for place, product in enumerate(catalogue.products):
            if kind == "human":
                instructions = self._human.get(product.asin, ())
                numbers = [n for n, found in enumerate(instructions) if found.attributes]
            else:
                numbers = range(self._combinations(product))
            self._keys += [(place, number) for number in numbers]
        random.Random(SHUFFLE_SEED).shuffle(self._keys)

    def _combinations(self, product: Product) -> int:
        """Number of a product's synthetic goals.

        Raises:
          EnvDataError: the catalogue would have too many goals.
        """
        if product.asin not in self._catalogue.synthetic:
            return 0
        number = math.prod(len(values) for _, values in product.options)
        most = max(_MAX_GOALS, _MAX_GOALS_EACH * len(self._catalogue.products))
        if len(self._keys) + number > most:
            raise EnvDataError(
                f"env.options.goals = 'synthetic': product {product.asin}: its"
                f" {len(product.options)} options have {_count(number)} combinations, each of them"
                f" a goal; the catalogue may have {most} goals"
            )
        return number

    def __len__(self) -> int:
        return len(self._keys)

    def place(self, number: int) -> int:
        """Index in the catalogue of a goal's product."""
        return self._keys[number][0]

    def __getitem__(self, number: int) -> Goal:
        place, index = self._keys[number]
        product = self._catalogue.products[place]
        if self._kind == "human":
            found = self._human[product.asin][index]
            limit, words = price_limit(product.price, product.asin, index)
            text = found.text.strip(".") + words
            return Goal(product.asin, text, found.attributes, found.options, limit)
        found = self._catalogue.synthetic[product.asin]
        limit, words = price_limit(product.price, product.asin, "synthetic")
        options = []
        # As in the original's itertools.product over sorted names: the last one varies fastest.
        for name, values in sorted(product.options, reverse=True):
            index, choice = divmod(index, len(values))
            options.append((name, values[choice]))
        options.reverse()
        chosen = ", and ".join(f"{name}: {value}" for name, value in options)
        text = found.text + (f" with {chosen}" if chosen else "") + words
        return Goal(product.asin, text, found.attributes, tuple(options), limit)
