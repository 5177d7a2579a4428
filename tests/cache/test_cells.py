"""A sequence's cells lie together, are shared by count, and never lost."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from powerserve.cache.cells import ALIGNMENT, CellPool
from powerserve.cache.sequence import SequenceCells


def test_cells_follow_the_wanted_start() -> None:
    pool = CellPool(10)
    first = pool.allocate(4, start=0)
    assert first is not None and first.tolist() == [0, 1, 2, 3]
    second = pool.allocate(2, start=4)
    assert second is not None and second.tolist() == [4, 5]


def test_a_taken_start_leads_to_a_run_that_is_long_enough() -> None:
    pool = CellPool(300)
    pool.allocate(1, start=2)
    found = pool.allocate(5, start=2)
    assert found is not None and found.tolist() == [3, 4, 5, 6, 7]


def test_scattered_cells_are_taken_when_there_is_no_run() -> None:
    pool = CellPool(6)
    everything = pool.allocate(6, start=0)
    assert everything is not None
    pool.release(everything[::2])
    scattered = pool.allocate(3, start=0)
    assert scattered is not None and scattered.tolist() == [0, 2, 4]


def test_too_many_cells_are_refused_and_nothing_is_taken() -> None:
    pool = CellPool(3)
    assert pool.allocate(4, start=0) is None
    assert pool.num_free == 3
    assert pool.allocate(3, start=0) is not None


def test_a_shared_cell_is_free_after_its_last_owner() -> None:
    pool = CellPool(4)
    cells = pool.allocate(2, start=0)
    assert cells is not None
    pool.retain(cells)
    pool.release(cells)
    assert pool.num_free == 2
    pool.release(cells)
    assert pool.num_free == 4


def test_sequences_that_reserve_do_not_get_in_each_others_way() -> None:
    pool = CellPool(2048)
    one, two = SequenceCells(pool, 1024), SequenceCells(pool, 1024)
    for sequence in (one, two):
        sequence.reserve(600)
    for _ in range(500):
        for sequence in (one, two):
            cells = sequence.allocate(1)
            assert cells is not None
            sequence.append(np.array([7], np.int32), cells)
    for sequence in (one, two):
        assert sequence.stop_cell - sequence.first_cell == 500
        assert sequence.first_cell % ALIGNMENT == 0
        sequence.release()
    assert pool.num_free == 2048
    assert not pool._reserved.any()


def test_a_sequence_goes_on_elsewhere_when_a_neighbour_is_in_its_way() -> None:
    pool = CellPool(600)
    sequence = SequenceCells(pool, 300)
    sequence.reserve(100)
    first = sequence.allocate(100)
    assert first is not None
    sequence.append(np.zeros(100, np.int32), first)
    neighbour = pool.allocate(50, start=100)
    assert neighbour is not None
    rest = sequence.allocate(20)
    assert rest is not None and set(rest) & set(neighbour) == set()
    sequence.append(np.zeros(20, np.int32), rest)
    assert (sequence.first_cell, sequence.stop_cell) == (0, 170)
    sequence.truncate(100)
    assert (sequence.first_cell, sequence.stop_cell) == (0, 100)


def test_reserving_a_full_pool_does_no_harm() -> None:
    pool = CellPool(8)
    assert pool.allocate(8, start=0) is not None
    sequence = SequenceCells(pool, 8)
    sequence.reserve(5)
    assert sequence.allocate(1) is None
    sequence.release()
    assert not pool._reserved.any()


class CellPoolMachine(RuleBasedStateMachine):
    """Any interleaving of allocate, retain and release, against plain counting."""

    @initialize(num_cells=st.integers(1, 600))
    def start(self, num_cells: int) -> None:
        self.pool = CellPool(num_cells)
        self.owners = [0] * num_cells
        self.held: list[np.ndarray] = []

    @rule(count=st.integers(1, 300), start=st.integers(0, 700))
    def allocate(self, count: int, start: int) -> None:
        free = {cell for cell, owners in enumerate(self.owners) if not owners}
        cells = self.pool.allocate(count, start)
        if count > len(free):
            assert cells is None
            return
        assert cells is not None and len(set(cells.tolist())) == count
        assert set(cells.tolist()) <= free
        wanted = range(start, start + count)
        if free.issuperset(wanted):
            assert cells.tolist() == list(wanted)
        self._hold(cells)

    @rule(length=st.integers(1, 900))
    def reserve_and_forget(self, length: int) -> None:
        first, stop = self.pool.reserve(length)
        assert 0 <= first <= stop <= len(self.owners)
        self.pool.unreserve(first, stop)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        cells = data.draw(st.sampled_from(self.held))
        part = cells[: data.draw(st.integers(0, len(cells)))]
        self.pool.retain(part)
        self._hold(part)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        cells = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(cells)
        for cell in cells:
            self.owners[cell] -= 1

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert self.pool.num_free == self.owners.count(0)

    def _hold(self, cells: np.ndarray) -> None:
        self.held.append(cells)
        for cell in cells:
            self.owners[cell] += 1


TestCellPoolMachine = CellPoolMachine.TestCase
TestCellPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
