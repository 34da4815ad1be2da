"""The prefix tree: which page of the pool holds the keys and values of which tokens. It lives on the host.

A page holds the keys and values of `page_size` consecutive positions. Each node of the tree is a page, and
the path from the root to a node spells the token ids that the page's values depend on. A node whose page is
not full is a leaf.

Only the tree and requests in flight own pages. A request pins the pages it reads and takes pages to write.
So forking a session costs nothing and no page leaks. When pages are needed, the least recently used ones
are evicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(eq=False)
class Node:
    """One page.

    Attributes:
      tokens: ids at its positions, at most page_size.
      page: index of the page in the pool.
      parent: node of the preceding page; None for the root.
      full: children whose pages are full, by their tokens.
      partial: children whose pages are not full.
      pins: number of requests in flight that read it.
      used: value of the tree's clock when it was last read or written.
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
    """The prefix of a sequence that is in the tree.

    Attributes:
      nodes: full pages from the root on, then at most one page of which only the first positions match.
      length: number of positions covered.
    """

    nodes: tuple[Node, ...]
    length: int


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


class PageTree:
    """The tree, and the list of free pages.

    Args:
      num_pages, page_size: of the pool on the device.
    """

    def __init__(self, num_pages: int, page_size: int):
        self.num_pages, self.page_size = num_pages, page_size
        self.free = list(range(num_pages - 1, -1, -1))
        self.root = Node((), -1, None)
        self._clock = 0

    def match(self, ids: Sequence[int]) -> Match:
        """The longest prefix of `ids` that is in the tree. It does not pin the nodes."""
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
        """Protects nodes from eviction. Every `pin` needs an `unpin`."""
        self._clock += 1
        for node in nodes:
            node.pins += 1
            node.used = self._clock

    def unpin(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            node.pins -= 1

    def take(self, count: int) -> list[int] | None:
        """`count` pages to write, after evicting unpinned ones if needed; None if there are too few."""
        if len(self.free) < count:
            # A request pins the whole path to a node, so no node below an unpinned one is pinned.
            unpinned = sum(not node.pins for node in self.nodes())
            if len(self.free) + unpinned < count:
                return None
        while len(self.free) < count:
            self._evict(count - len(self.free))
        return [self.free.pop() for _ in range(count)]

    def insert(self, ids: Sequence[int], pages: dict[int, int]) -> None:
        """Adds computed positions to the tree.

        Args:
          ids: the sequence; all its positions are computed.
          pages: index of a page within the sequence -> page that was written for it. Pages whose content
            the tree already holds, and pages beyond the end, are freed.
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
                if page is None:  # evicted in the meantime, so later pages have no parent
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
        """Frees unpinned partial pages of `node` whose tokens are a prefix of `tokens`."""
        for child in list(node.partial):
            if not child.pins and tokens[: len(child.tokens)] == child.tokens:
                node.partial.remove(child)
                self.free.append(child.page)

    def nodes(self) -> Iterator[Node]:
        """Yields all nodes except the root."""
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
