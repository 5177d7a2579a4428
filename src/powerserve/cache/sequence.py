"""One sequence's place in the cache: its tokens, and the cell that holds each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from powerserve.backend.base import Int32Array, Int64Array
from powerserve.cache.cells import CellPool

CopyCells = Callable[[Int64Array, Int64Array], None]
"""Copies the content of cells (sources, targets), which may overlap."""


class SequenceCells:
    """Tokens 0 … `length` of a sequence, with K and V in `cells`; position i is cell `cells[i]`.

    The sequence is an owner of its cells, all of which lie in `first_cell` … `stop_cell` - 1.
    Arrays are views that stay valid until the next change.
    """

    def __init__(self, pool: CellPool, capacity: int) -> None:
        self._pool = pool
        self._token_ids = np.empty(capacity, np.int32)
        self._cells = np.empty(capacity, np.int64)
        self._positions = np.arange(capacity, dtype=np.int32)
        self._reservation = (0, 0)
        self._next_cell = 0
        self.length = 0
        self.first_cell = 0
        self.stop_cell = 0

    @property
    def token_ids(self) -> Int32Array:
        """int32 [length]."""
        return self._token_ids[: self.length]

    @property
    def cells(self) -> Int64Array:
        """int64 [length]."""
        return self._cells[: self.length]

    def next_positions(self, count: int) -> Int32Array:
        """int32 [count], the positions of the tokens that come next."""
        return self._positions[self.length : self.length + count]

    def reserve(self, expected_length: int) -> None:
        """Choose where new cells should lie: after the last one, or where so many tokens fit."""
        self._pool.unreserve(*self._reservation)
        if self.length:
            start, length = self._next_cell, expected_length - self.length
            self._reservation = self._pool.reserve_from(start, length)
        else:
            self._reservation = self._pool.reserve(expected_length)
            self._next_cell = self._reservation[0]

    def allocate(self, count: int) -> Int64Array | None:
        """Cells for the next `count` tokens; they join the sequence by `append`. None: no room."""
        return self._pool.allocate(count, self._next_cell)

    def append(self, token_ids: Int32Array, cells: Int64Array) -> None:
        """Add tokens whose cells were allocated (or retained) for this sequence."""
        if not len(cells):
            return
        lowest, highest = cell_range(cells)
        self.first_cell = min(self.first_cell, lowest) if self.length else lowest
        self.stop_cell = max(self.stop_cell, highest + 1) if self.length else highest + 1
        end = self.length + len(cells)
        self._token_ids[self.length : end] = token_ids
        self._cells[self.length : end] = cells
        self._next_cell = int(cells[-1]) + 1
        self.length = end

    def keep(
        self, token_ids: Int32Array, kept: Int64Array, allocated: Int64Array, copy_cells: CopyCells
    ) -> None:
        """Add the accepted part of a token tree: of the `allocated` cells, those in `kept`.

        The other cells are freed. What is kept moves together if need be, because attention scans
        a sequence's cells from the first to the last.
        """
        in_order = np.sort(allocated)
        target = in_order[: len(kept)]
        if (target != kept).any():
            copy_cells(kept, target)
        self.append(token_ids, target)
        self._pool.release(in_order[len(kept) :])

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on and give their cells back."""
        self._pool.release(self._cells[length : self.length].copy())
        self.length = length
        if length:
            lowest, highest = cell_range(self.cells)
            self.first_cell, self.stop_cell = lowest, highest + 1
            self._next_cell = int(self.cells[-1]) + 1

    def release(self) -> None:
        """Give all cells and the reservation back."""
        self.truncate(0)
        self._pool.unreserve(*self._reservation)
        self._reservation = (0, 0)


def cell_range(cells: Int64Array) -> tuple[int, int]:
    """The lowest and the highest of some cells; most often there is only one."""
    if len(cells) == 1:
        return int(cells[0]), int(cells[0])
    return int(cells.min()), int(cells.max())
