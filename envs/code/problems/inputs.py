"""Seeded generators of test inputs: each is a function from a random.Random to a text."""

from __future__ import annotations

import random
from collections.abc import Callable

Make = Callable[[random.Random], str]


def whole(low: int, high: int) -> Make:
    """A whole number."""
    return lambda r: str(r.randint(low, high))


def decimal(low: int, high: int, digits: int = 2) -> Make:
    """A number with `digits` decimal places."""
    scale = 10**digits
    return lambda r: f"{r.randint(low * scale, high * scale) / scale:.{digits}f}"


def row(*parts: Make) -> Make:
    """One line with a space between the parts."""
    return lambda r: " ".join(part(r) for part in parts)


def lines(*parts: Make) -> Make:
    """One line for each part."""
    return lambda r: "\n".join(part(r) for part in parts)


def numbers(fewest: int, most: int, low: int, high: int) -> Make:
    """A line of whole numbers; their number is drawn, too."""
    return lambda r: " ".join(str(r.randint(low, high)) for _ in range(r.randint(fewest, most)))


def odd_numbers(most_pairs: int, low: int, high: int) -> Make:
    """A line of an odd number of whole numbers."""

    def make(r: random.Random) -> str:
        count = 2 * r.randint(0, most_pairs) + 1
        return " ".join(str(r.randint(low, high)) for _ in range(count))

    return make


def distinct(fewest: int, most: int, low: int, high: int) -> Make:
    """A line of whole numbers that are all different."""
    return lambda r: " ".join(map(str, r.sample(range(low, high + 1), r.randint(fewest, most))))


def word(fewest: int, most: int, letters: str = "abcdefgh") -> Make:
    """A word over `letters`."""
    return lambda r: "".join(r.choice(letters) for _ in range(r.randint(fewest, most)))


def words(fewest: int, most: int, letters: str = "abcde", longest: int = 5) -> Make:
    """A line of words."""
    one = word(1, longest, letters)
    return lambda r: " ".join(one(r) for _ in range(r.randint(fewest, most)))


def choice(*texts: str) -> Make:
    """One of the texts."""
    return lambda r: r.choice(texts)


def mirrored(part: Make) -> Make:
    """A word that reads the same backwards half of the time."""

    def make(r: random.Random) -> str:
        text = part(r)
        return text + (text[::-1] if r.random() < 0.5 else part(r))

    return make


def shuffled(part: Make) -> Make:
    """Two lines: a word, and half of the time the same letters in another order."""

    def make(r: random.Random) -> str:
        first = part(r)
        second = first if r.random() < 0.5 else part(r)
        return f"{first}\n{''.join(r.sample(second, len(second)))}"

    return make


def counted(fewest: int, most: int, part: Make) -> Make:
    """A line with a number N, then N lines."""

    def make(r: random.Random) -> str:
        count = r.randint(fewest, most)
        return "\n".join([str(count), *(part(r) for _ in range(count))])

    return make


def grid(fewest: int, most: int, letters: str) -> Make:
    """A line with height and width, then the rows of a grid over `letters`."""

    def make(r: random.Random) -> str:
        height, width = r.randint(fewest, most), r.randint(fewest, most)
        rows = ("".join(r.choice(letters) for _ in range(width)) for _ in range(height))
        return "\n".join([f"{height} {width}", *rows])

    return make


def graph(fewest: int, most: int, density: float, weight: int = 0) -> Make:
    """A line with nodes and edges, then the edges `a b` or `a b weight`, nodes from 1."""

    def make(r: random.Random) -> str:
        nodes = r.randint(fewest, most)
        pairs = [(a, b) for a in range(1, nodes + 1) for b in range(a + 1, nodes + 1)]
        edges = [p for p in pairs if r.random() < density] or pairs[:1]
        r.shuffle(edges)
        rows = [
            " ".join(map(str, (*e, *([r.randint(1, weight)] if weight else [])))) for e in edges
        ]
        return "\n".join([f"{nodes} {len(edges)}", *rows])

    return make


def tree(fewest: int, most: int) -> Make:
    """A line with the number of nodes, then for each node from 2 its parent, on one line."""

    def make(r: random.Random) -> str:
        nodes = r.randint(fewest, most)
        return f"{nodes}\n" + " ".join(str(r.randint(1, n - 1)) for n in range(2, nodes + 1))

    return make
