"""The pool of KV cells. A cell holds one token's K and V; several owners may share it."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import Int64Array

_FIRST_WINDOW = 256  # cells looked at first when searching for free ones


class CellPool:
    """Counts the owners of each cell and hands out free cells, lowest numbers first.

    Low numbers first, because attention scans cells 0 … `used_end` whether they are free or not.
    """

    def __init__(self, num_cells: int) -> None:
        self.num_cells = num_cells
        self.num_free = num_cells
        self._owners = np.zeros(num_cells, np.int32)
        self._search_from = 0  # no cell below this one is free
        self._used_end = 0

    @property
    def used_end(self) -> int:
        """One past the highest cell that has an owner."""
        while self._used_end and not self._owners[self._used_end - 1]:
            start = max(0, self._used_end - _FIRST_WINDOW)
            owned = np.flatnonzero(self._owners[start : self._used_end])
            self._used_end = start + int(owned[-1]) + 1 if len(owned) else start
        return self._used_end

    def allocate(self, count: int) -> Int64Array | None:
        """`count` free cells with one owner each, ascending; None if there are not enough."""
        if count > self.num_free:
            return None
        cells = self._find_free(count)
        self._owners[cells] = 1
        self.num_free -= count
        if count:
            self._search_from = int(cells[-1]) + 1
            self._used_end = max(self._used_end, self._search_from)
        return cells

    def retain(self, cells: Int64Array) -> None:
        """Add an owner to each of these (distinct) cells."""
        self._owners[cells] += 1

    def release(self, cells: Int64Array) -> None:
        """Take an owner from each of these (distinct) cells; cells without owners are free."""
        self._owners[cells] -= 1
        freed = cells[self._owners[cells] == 0]
        self.num_free += len(freed)
        if len(freed):
            self._search_from = min(self._search_from, int(freed.min()))

    def owners(self, cell: int) -> int:
        """How many owners a cell has."""
        return int(self._owners[cell])

    def _find_free(self, count: int) -> Int64Array:
        window = max(_FIRST_WINDOW, 2 * count)
        while True:
            end = self._search_from + window
            free = np.flatnonzero(self._owners[self._search_from : end] == 0)
            if len(free) >= count:
                return free[:count] + self._search_from
            window *= 4
