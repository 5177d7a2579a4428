"""Cells are handed out lowest first, shared by count, and never lost."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from powerserve.cache.cells import CellPool


def test_lowest_free_cells_come_first() -> None:
    pool = CellPool(10)
    first = pool.allocate(4)
    assert first is not None and first.tolist() == [0, 1, 2, 3]
    pool.release(np.array([1, 3]))
    second = pool.allocate(3)
    assert second is not None and second.tolist() == [1, 3, 4]


def test_too_many_cells_are_refused_and_nothing_is_taken() -> None:
    pool = CellPool(3)
    assert pool.allocate(4) is None
    assert pool.num_free == 3
    assert pool.allocate(3) is not None


def test_used_end_follows_the_highest_owned_cell() -> None:
    pool = CellPool(2000)
    cells = pool.allocate(1500)
    assert cells is not None and pool.used_end == 1500
    pool.release(cells[10:])
    assert pool.used_end == 10
    pool.release(cells[:10])
    assert pool.used_end == 0


def test_a_shared_cell_is_free_after_its_last_owner() -> None:
    pool = CellPool(4)
    cells = pool.allocate(2)
    assert cells is not None
    pool.retain(cells)
    pool.release(cells)
    assert pool.num_free == 2
    pool.release(cells)
    assert pool.num_free == 4


class CellPoolMachine(RuleBasedStateMachine):
    """Any interleaving of allocate, retain and release, against plain counting."""

    @initialize(num_cells=st.integers(1, 600))
    def start(self, num_cells: int) -> None:
        self.pool = CellPool(num_cells)
        self.owners = [0] * num_cells
        self.held: list[np.ndarray] = []

    @rule(count=st.integers(0, 300))
    def allocate(self, count: int) -> None:
        free = [cell for cell, owners in enumerate(self.owners) if not owners]
        cells = self.pool.allocate(count)
        if count > len(free):
            assert cells is None
            return
        assert cells is not None and cells.tolist() == free[:count]
        self._hold(cells)

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
        used = [cell + 1 for cell, owners in enumerate(self.owners) if owners]
        assert self.pool.used_end == max(used, default=0)

    def _hold(self, cells: np.ndarray) -> None:
        self.held.append(cells)
        for cell in cells:
            self.owners[cell] += 1


TestCellPoolMachine = CellPoolMachine.TestCase
TestCellPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
