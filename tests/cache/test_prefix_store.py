"""Saved prefixes come back as they were, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerserve.backend.base import Cache, Int64Array
from powerserve.cache.cells import CellPool
from powerserve.cache.prefix import PrefixIndex
from powerserve.cache.prefix_file import BLOCK
from powerserve.cache.prefix_store import PrefixFolder, PrefixStore
from powerserve.cache.prefix_tree import PrefixTree
from powerserve.core.errors import PrefixFileError
from powerserve.storage.atomic import partial_path

IDENTITY, OTHER = b"a" * 32, b"b" * 32
MEBIBYTE = 1 << 20


class NumberedCells(Cache):
    """A cache of one int64 in each cell."""

    def __init__(self, num_cells: int) -> None:
        self.num_cells = num_cells
        self.size_bytes = 8 * num_cells
        self.values = np.zeros(num_cells, np.int64)

    def copy(self, source: Int64Array, target: Int64Array) -> None:
        self.values[target] = self.values[source]

    def save(self, cells: Int64Array) -> bytes:
        return self.values[cells].tobytes()

    def restore(self, cells: Int64Array, content: bytes) -> None:
        self.values[cells] = np.frombuffer(content, np.int64)


class Engine:
    """What an engine has for prefixes. The content of a cell is that of its whole prefix."""

    def __init__(self, num_cells: int = 4 * BLOCK) -> None:
        self.cache = NumberedCells(num_cells)
        self.pool = CellPool(num_cells)
        self.index = PrefixIndex(self.pool)

    def remember(self, token_ids: list[int]) -> None:
        found = self.find(token_ids)
        cells = self.pool.allocate(len(token_ids) - len(found), 0)
        assert cells is not None
        self.cache.values[cells] = content(token_ids)[len(found) :]
        both = np.concatenate([found, cells])
        self.index.insert(np.array(token_ids, np.int32), both)
        self.pool.release(both)

    def find(self, token_ids: list[int]) -> Int64Array:
        """Cells with one owner more, which must hold what belongs to the tokens."""
        cells = self.index.find(np.array(token_ids, np.int32), len(token_ids))
        assert self.cache.values[cells].tolist() == content(token_ids)[: len(cells)]
        return cells

    def knows(self, token_ids: list[int]) -> int:
        cells = self.find(token_ids)
        self.pool.release(cells)
        return len(cells)

    def save(self, store: PrefixStore) -> int:
        return store.save(self.index, self.cache)

    def restore(self, store: PrefixStore) -> int:
        return store.restore(self.index, self.pool, self.cache)


def content(token_ids: list[int]) -> list[int]:
    return [hash(tuple(token_ids[: end + 1])) for end in range(len(token_ids))]


def store_in(folder: Path, identity: bytes = IDENTITY, max_bytes: int = MEBIBYTE) -> PrefixStore:
    return PrefixStore(PrefixFolder(folder / "saved", max_bytes), identity)


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    return store_in(tmp_path)


@pytest.fixture
def saved(store: PrefixStore) -> PrefixStore:
    """With a file in it."""
    engine = Engine()
    engine.remember([1, 2, 3])
    assert engine.save(store) == 3
    return store


def test_prefixes_come_back_with_their_cells(store: PrefixStore) -> None:
    engine, later = Engine(), Engine()
    long = list(range(BLOCK + 20))
    for prefix in (long, [*long[:30], 7, 7], [5, 6]):
        engine.remember(prefix)
    assert engine.save(store) == later.restore(store) == len(long) + 2 + 2  # shared tokens once
    assert later.knows([*long, 9]) == len(long)
    assert later.knows([*long[:30], 7, 7, 7]) == 32
    assert later.knows([5, 6, 5]) == 2
    later.index.clear()
    assert later.pool.num_free == later.pool.num_cells


def test_the_order_of_use_comes_back(store: PrefixStore) -> None:
    engine, later = Engine(), Engine()
    for prefix in ([1, 1], [2, 2], [3, 3]):
        engine.remember(prefix)
    engine.knows([1, 1])
    engine.save(store)
    later.restore(store)
    later.index.free_cells(later.pool.num_cells - 2)
    assert [later.knows([token, token]) for token in (1, 2, 3)] == [2, 0, 0]


def test_what_was_used_last_is_saved_where_room_is_short(tmp_path: Path) -> None:
    engine, later = Engine(), Engine()
    engine.remember([1, 1, 1])
    engine.remember([2, 2, 2])
    store = store_in(tmp_path, max_bytes=4 * 8)  # four cells
    assert engine.save(store) == later.restore(store) == 4
    assert later.knows([2, 2, 2]) == 3 and later.knows([1, 1, 1]) == 1


def test_a_smaller_cache_takes_whole_blocks_of_what_fits(store: PrefixStore) -> None:
    engine, later = Engine(16 * BLOCK), Engine(4 * BLOCK)
    prefix = list(range(4 * BLOCK))
    engine.remember(prefix)
    engine.save(store)
    assert later.restore(store) == later.knows(prefix) == 2 * BLOCK


def test_nothing_is_saved_of_nothing(store: PrefixStore) -> None:
    engine = Engine()
    assert engine.save(store) == engine.restore(store) == 0
    assert not store.file.exists()


def test_only_the_owner_can_read_it(saved: PrefixStore) -> None:
    assert saved.file.stat().st_mode & 0o777 == 0o600
    assert saved.file.parent.stat().st_mode & 0o777 == 0o700


def damaged_at(position: int) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 4
        return bytes(changed)

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damaged_at(0), "not a file of saved prefixes"),
        (damaged_at(8), "version 5"),
        (damaged_at(12), "another model"),
        (damaged_at(44), "another model"),
        (damaged_at(48), "bytes instead of"),
        (damaged_at(60), "damaged"),  # a token
        (damaged_at(-50), "damaged"),  # a cell
        (damaged_at(-1), "damaged"),
        (lambda data: data[:-9], "bytes instead of"),
        (lambda data: data[:20], "not a file of saved prefixes"),
        (lambda data: b"", "not a file of saved prefixes"),
        (lambda data: data + b"x", "bytes instead of"),
    ],
)
def test_a_damaged_file_changes_nothing(
    saved: PrefixStore, damage: Callable[[bytes], bytes], words: str
) -> None:
    saved.file.write_bytes(damage(saved.file.read_bytes()))
    engine = Engine()
    with pytest.raises(PrefixFileError, match=words):
        engine.restore(saved)
    assert len(engine.index) == 0 and engine.pool.num_free == engine.pool.num_cells


def test_a_file_under_another_models_name_is_refused(saved: PrefixStore, tmp_path: Path) -> None:
    other = store_in(tmp_path, OTHER)
    saved.file.rename(other.file)
    with pytest.raises(PrefixFileError, match="another model"):
        Engine().restore(other)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_file_that_others_can_touch_is_refused(saved: PrefixStore) -> None:
    saved.file.chmod(0o660)
    with pytest.raises(PrefixFileError, match="others have access"):
        Engine().restore(saved)


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "saved").write_text("a file")
    engine = Engine()
    engine.remember([1])
    with pytest.raises(PrefixFileError, match="cannot be saved in"):
        engine.save(store_in(tmp_path))


def test_the_file_unused_for_longest_goes_first(tmp_path: Path) -> None:
    size = 0
    for age, identity in ((30, b"x" * 32), (10, b"y" * 32), (20, b"z" * 32)):
        engine = Engine()
        engine.remember(list(range(50)))
        store = store_in(tmp_path, identity)
        engine.save(store)
        size = store.file.stat().st_size
        os.utime(store.file, (1e9 - age, 1e9 - age))
    Engine().restore(store_in(tmp_path, b"z" * 32))  # used now
    last = Engine()
    last.remember(list(range(50)))
    last.save(store_in(tmp_path, b"l" * 32, max_bytes=3 * size))
    left = [store_in(tmp_path, name * 32).file.exists() for name in (b"x", b"y", b"z", b"l")]
    assert left == [False, True, True, True]


def test_what_a_killed_process_left_behind_goes(saved: PrefixStore) -> None:
    left, recent = partial_path(saved.file), partial_path(saved.file)
    for file in (left, recent):
        file.write_bytes(b"conversations")
    os.utime(left, (1e9, 1e9))
    engine = Engine()
    engine.remember([1])
    engine.save(saved)
    assert not left.exists() and recent.exists()  # which another server may be writing


prefixes = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=8)


@given(prefixes, st.integers(0, 30))
def test_paths_of_a_tree_are_the_prefixes(prefixes: list[list[int]], max_rows: int) -> None:
    given = [(np.array(ids, np.int32), np.array(content(ids))) for ids in prefixes]
    tree, where = PrefixTree.of(given, max_rows)
    found = set()
    for path in tree.paths():
        token_ids = tree.token_ids[path].tolist()
        assert where[path].tolist() == content(token_ids)
        found |= beginnings(token_ids)
    assert len(found) == len(where) == len(tree.token_ids) <= max_rows  # no row is wasted
    everything = set().union(*map(beginnings, prefixes))
    assert found <= everything and len(found) == min(max_rows, len(everything))


def beginnings(token_ids: list[int]) -> set[tuple[int, ...]]:
    return {tuple(token_ids[: end + 1]) for end in range(len(token_ids))}


@pytest.mark.parametrize("branch", [(1, 1, 0), (0, 3, 0), (0, -1, 1), (0, 0, 9), (0, 0, -1)])
def test_branches_that_lead_nowhere(branch: tuple[int, int, int]) -> None:
    tree = PrefixTree(np.zeros(4, np.int32), np.array([(0, 0, 2), branch], np.int32))
    with pytest.raises(ValueError, match="leads nowhere"):
        tree.paths()
