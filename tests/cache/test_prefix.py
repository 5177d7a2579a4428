"""Prefixes are found, shared, replaced and dropped without losing cells."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from powerserve.cache.cells import CellPool
from powerserve.cache.prefix import PrefixIndex, common_prefix


def tokens(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


def stored(index: PrefixIndex, pool: CellPool, *ids: int) -> np.ndarray:
    """Insert a sequence as the engine does: allocate, insert, give up one's own cells."""
    cells = pool.allocate(len(ids), start=0)
    assert cells is not None
    index.insert(tokens(*ids), cells)
    pool.release(cells)
    return cells


def test_the_longest_stored_prefix_is_found() -> None:
    pool = CellPool(20)
    index = PrefixIndex(pool)
    stored(index, pool, 1, 2, 3)
    longer = stored(index, pool, 1, 2, 4, 5)
    found = index.find(tokens(1, 2, 4, 9), 4)
    assert found.tolist() == longer[:3].tolist()
    assert pool.owners(int(found[0])) == 2  # the entry and the finder


def test_shared_cells_count_once() -> None:
    pool = CellPool(20)
    index = PrefixIndex(pool)
    assert index.num_cells == 0
    stored(index, pool, 1, 2, 3)
    begun = index.find(tokens(1, 2, 4), 2)
    index.insert(tokens(1, 2, 4), np.append(begun, pool.allocate(1, start=9)))
    assert len(index) == 2 and index.num_cells == 4


def test_no_more_than_the_wanted_length_is_used() -> None:
    pool = CellPool(20)
    index = PrefixIndex(pool)
    stored(index, pool, 1, 2, 3)
    assert len(index.find(tokens(1, 2, 3), 2)) == 2
    assert len(index.find(tokens(7), 1)) == 0


def test_a_continuation_replaces_what_it_continues() -> None:
    pool = CellPool(20)
    index = PrefixIndex(pool)
    stored(index, pool, 1, 2)
    stored(index, pool, 1, 2, 3)
    stored(index, pool, 1)  # adds nothing
    assert len(index) == 1
    assert pool.num_free == 17


def test_the_least_recently_used_prefix_goes_first() -> None:
    pool = CellPool(6)
    index = PrefixIndex(pool)
    stored(index, pool, 1, 2)
    stored(index, pool, 3, 4)
    pool.release(index.find(tokens(1, 2, 9), 2))
    index.free_cells(4)
    assert len(index.find(tokens(3, 4), 2)) == 0
    assert len(index.find(tokens(1, 2), 2)) == 2


ids = st.lists(st.integers(0, 3), max_size=8)


@given(ids, ids)
def test_common_prefix_equals_a_plain_loop(a: list[int], b: list[int]) -> None:
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(tokens(*a), tokens(*b)) == expected


@settings(deadline=None)
@given(st.lists(ids, max_size=12), st.integers(0, 40))
def test_cells_return_when_every_prefix_is_dropped(entries: list[list[int]], wanted: int) -> None:
    pool = CellPool(40)
    index = PrefixIndex(pool)
    for entry in entries:
        index.free_cells(len(entry))
        stored(index, pool, *entry)
    index.free_cells(wanted)
    assert pool.num_free >= wanted
    index.clear()
    assert pool.num_free == 40


def test_what_comes_with_the_model_goes_last() -> None:
    pool = CellPool(6)
    index = PrefixIndex(pool)
    given = pool.allocate(2, start=0)
    assert given is not None
    index.insert_given(tokens(1, 2), given)
    pool.release(given)
    stored(index, pool, 7, 8)
    stored(index, pool, 9, 9)
    index.free_cells(2)  # the other two were used later
    assert [ids.tolist() for ids, _ in index.stored] == [[9, 9], [1, 2]]

    continued = np.append(index.find(tokens(1, 2, 3), 2), pool.allocate(1, start=2))
    index.insert(tokens(1, 2, 3), continued)
    pool.release(continued)
    assert len(index) == 3  # it outlives what continues it
    index.clear()
    assert [ids.tolist() for ids, _ in index.stored] == [[1, 2]]
    index.free_cells(6)
    assert len(index) == 0 and pool.num_free == 6
