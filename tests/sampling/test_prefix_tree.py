"""The prefix tree against plain lists, with a pool that records what was written to each page."""

import numpy as np
import pytest

from leafe_jax.sampling.prefix_tree import PageTree, common_length


class Pool:
    """Stands in for the device: page -> the whole prefix that its values depend on."""

    def __init__(self, num_pages: int, size: int):
        self.tree, self.size = PageTree(num_pages, size), size
        self.written: dict[int, tuple[int, ...]] = {}

    def check_match(self, ids):
        """Checks that everything the tree finds was written there; returns the match."""
        match = self.tree.match(ids)
        for index, node in enumerate(match.nodes):
            held = self.written[node.page]
            upto = min((index + 1) * self.size, match.length)
            assert held[:upto] == tuple(ids[:upto])
        return match

    def compute(self, ids) -> bool:
        """Does what the engine does with a sequence: pin the match, write the rest, insert."""
        match = self.check_match(ids)
        self.tree.pin(match.nodes)
        needed = range(match.length // self.size, -(-len(ids) // self.size))
        pages = self.tree.take(len(needed))
        if pages is None:
            self.tree.unpin(match.nodes)
            return False
        assert not {n.page for n in match.nodes} & set(pages)
        for index, page in zip(needed, pages, strict=True):
            self.written[page] = tuple(ids[: (index + 1) * self.size])
        self.tree.unpin(match.nodes)
        self.tree.insert(ids, dict(zip(needed, pages, strict=True)))
        return True

    def check_no_leak(self):
        pages = [*self.tree.free, *(n.page for n in self.tree.nodes())]
        assert sorted(pages) == list(range(self.tree.num_pages))
        for node in self.tree.nodes():
            assert node.pins == 0 and 0 < len(node.tokens) <= self.size
            if len(node.tokens) == self.size:
                assert node.parent.full[node.tokens] is node
            else:
                assert node in node.parent.partial and not node.full and not node.partial


@pytest.mark.parametrize(("num_pages", "size"), [(200, 4), (24, 4), (60, 16), (40, 1)])
def test_ten_thousand_random_operations(num_pages, size):
    """start, extend, fork, rewind and release, on sessions that are plain lists of ids."""
    rng = np.random.default_rng(num_pages)
    pool = Pool(num_pages, size)
    longest = min(60, (num_pages - 1) * size)
    sessions: list[list[int]] = [[]]
    found = computed = 0
    for step in range(10_000):
        action = rng.choice(["start", "extend", "extend", "extend", "fork", "rewind", "release"])
        ids = sessions[rng.integers(len(sessions))]
        if action == "start":
            sessions.append([])
        elif action == "fork":
            sessions.append(ids[: rng.integers(0, len(ids) + 1)])
        elif action == "rewind":
            del ids[rng.integers(0, len(ids) + 1) :]
        elif action == "release" and len(sessions) > 1:
            sessions.remove(ids)
        elif len(ids) < longest - 9:
            ids += rng.integers(0, 3, rng.integers(1, 9)).tolist()
            found += pool.check_match(ids).length
            computed += len(ids)
            assert pool.compute(ids)  # one sequence always fits
            assert pool.check_match(ids).length == len(ids)
        sessions = sessions[-20:]
        if step % 100 == 0:
            pool.check_no_leak()
    pool.check_no_leak()
    assert 0.2 < found / computed < 1


def test_pinned_pages_stay_and_the_oldest_are_evicted_first():
    pool = Pool(8, 2)
    old, middle, young = [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]
    for ids in (old, middle, young):
        pool.compute(ids)
    held = pool.tree.match(old)
    pool.tree.pin(held.nodes)
    assert pool.tree.take(7) is None  # two pages are pinned
    assert pool.tree.match(young).length == 4  # and nothing was evicted
    pool.tree.unpin(held.nodes)
    pool.check_no_leak()
    for ids in (old, middle, young):
        pool.compute(ids)
    pages = pool.tree.take(4)  # two were free
    assert pool.tree.match(old).length < 4 and pool.tree.match(young).length == 4
    pool.tree.free.extend(pages)
    pool.check_no_leak()


def test_part_of_a_page_matches_and_no_page_is_stored_twice():
    pool = Pool(20, 4)
    pool.compute([1, 2, 3, 4, 5, 6, 7])
    assert pool.tree.match([1, 2, 3, 4, 5, 6, 9, 9]).length == 6
    assert pool.tree.match([1, 2, 9]).length == 2
    assert pool.tree.match([2]).length == 0 and pool.tree.match([]).length == 0
    pool.compute([1, 2, 3, 4, 5, 6, 7, 8, 9])  # covers the partial page, which is freed
    assert sorted(len(n.tokens) for n in pool.tree.nodes()) == [1, 4, 4]
    for _ in range(3):
        pool.compute([1, 2, 3, 4, 5, 6, 7, 8, 9])
        pool.compute([1, 2, 3, 4, 5])
    assert len(list(pool.tree.nodes())) == 3
    pool.check_no_leak()


def test_common_length():
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([], [1]) == 0 and common_length((1, 2), [1, 2, 3]) == 2
