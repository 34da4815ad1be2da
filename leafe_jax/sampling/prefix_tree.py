"""Which tokens' keys and values lie in which page: a prefix tree over token ids, on the host.

A page holds the keys and values of `page_size` consecutive positions. The tree's nodes are pages; the way
from the root to a node spells the ids that the page's values depend on. A node whose page is not full
is a leaf. Nothing else owns pages but a request in flight, which pins what it reads and is given
pages to write; so forking costs nothing, nothing leaks, and what is no longer used goes when room is
needed, least recently used first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(eq=False)
class Node:
    """One page.

    Attributes:
      tokens: the ids of its positions, at most page_size.
      page: where the values are.
      parent: the page before it; None for the root.
      full: children whose pages are full, by their tokens.
      partial: children whose pages are not.
      pins: requests in flight that read it.
      used: when it was last read or written.
    """

    tokens: tuple[int, ...]
    page: int
    parent: Node | None
    full: dict[tuple[int, ...], Node] = dataclasses.field(default_factory=dict)
    partial: list[Node] = dataclasses.field(default_factory=list)
    pins: int = 0
    used: int = 0


@dataclasses.dataclass(frozen=True)
class Match:
    """What the tree holds of a sequence.

    Attributes:
      nodes: full pages from the root on, then at most one page of which only a head is used.
      length: positions covered.
    """

    nodes: tuple[Node, ...]
    length: int


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading elements are equal."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


class PageTree:
    """The tree and the free pages.

    Args:
      num_pages, page_size: of the pool on the device.
    """

    def __init__(self, num_pages: int, page_size: int):
        self.num_pages, self.page_size = num_pages, page_size
        self.free = list(range(num_pages - 1, -1, -1))
        self.root = Node((), -1, None)
        self._clock = 0

    def match(self, ids: Sequence[int]) -> Match:
        """The longest prefix of `ids` that lies in pages; nothing is pinned by it."""
        size, node, nodes, begin = self.page_size, self.root, [], 0
        while begin + size <= len(ids):
            child = node.full.get(tuple(ids[begin : begin + size]))
            if child is None:
                break
            nodes.append(child)
            node, begin = child, begin + size
        wanted = tuple(ids[begin : begin + size])
        best, length = None, 0
        for child in (*node.full.values(), *node.partial):
            if wanted and child.tokens[0] == wanted[0]:
                common = common_length(child.tokens, wanted)
                if common > length:
                    best, length = child, common
        if best is not None:
            nodes.append(best)
        return Match(tuple(nodes), begin + length)

    def pin(self, nodes: Sequence[Node]) -> None:
        """Keeps nodes from eviction; every pin needs an `unpin`."""
        self._clock += 1
        for node in nodes:
            node.pins += 1
            node.used = self._clock

    def unpin(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            node.pins -= 1

    def take(self, count: int) -> list[int] | None:
        """`count` pages to write, evicting what nobody reads; None when there are not enough."""
        if len(self.free) < count:
            # A pin holds the whole way to a node, so nothing below an unpinned one is pinned.
            unpinned = sum(not node.pins for node in self.nodes())
            if len(self.free) + unpinned < count:
                return None
        while len(self.free) < count:
            self._evict(count - len(self.free))
        return [self.free.pop() for _ in range(count)]

    def give_back(self, pages: Sequence[int]) -> None:
        self.free.extend(pages)

    def insert(self, ids: Sequence[int], pages: dict[int, int]) -> None:
        """Enters computed positions.

        Args:
          ids: the sequence, computed up to its end.
          pages: index of a page within the sequence -> the page written for it. Pages that the tree
            holds already, and pages beyond the end, are free again afterwards.
        """
        self._clock += 1
        size, node, rest = self.page_size, self.root, dict(pages)
        for begin in range(0, len(ids), size):
            tokens = tuple(ids[begin : begin + size])
            page = rest.pop(begin // size, None)
            if len(tokens) < size:
                self._insert_partial(node, tokens, page)
                break
            child = node.full.get(tokens)
            if child is None:
                if page is None:  # evicted meanwhile: what follows hangs on nothing
                    break
                child = Node(tokens, page, node)
                node.full[tokens] = child
                self._drop_covered(node, tokens)
            elif page is not None:
                self.free.append(page)
            child.used = self._clock
            node = child
        self.free.extend(rest.values())

    def _insert_partial(self, node: Node, tokens: tuple[int, ...], page: int | None) -> None:
        if page is None:
            return
        held = (*node.full.values(), *node.partial)
        if any(child.tokens[: len(tokens)] == tokens for child in held):
            self.free.append(page)
            return
        self._drop_covered(node, tokens)
        node.partial.append(Node(tokens, page, node, used=self._clock))

    def _drop_covered(self, node: Node, tokens: tuple[int, ...]) -> None:
        """Frees partial pages whose content is the head of a page that has come."""
        for child in list(node.partial):
            if not child.pins and tokens[: len(child.tokens)] == child.tokens:
                node.partial.remove(child)
                self.free.append(child.page)

    def nodes(self) -> Iterator[Node]:
        """All nodes but the root."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            for child in (*node.full.values(), *node.partial):
                stack.append(child)
                yield child

    def _evict(self, count: int) -> None:
        """Frees up to `count` of the least recently used leaves."""
        leaves = [n for n in self.nodes() if not n.pins and not n.full and not n.partial]
        leaves.sort(key=lambda n: n.used)
        for node in leaves[:count]:
            if len(node.tokens) == self.page_size:
                del node.parent.full[node.tokens]
            else:
                node.parent.partial.remove(node)
            self.free.append(node.page)
