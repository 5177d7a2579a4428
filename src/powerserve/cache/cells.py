"""The pool of KV cells. A cell holds one token's K and V; several owners may share it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import Int64Array

ALIGNMENT = 256
"""Sequences start at multiples of this where they can, so that compiled ranges fit later ones."""

MIN_RUN = 64  # cells; a sequence that cannot go on where it is looks for this much room


class CellPool:
    """Counts the owners of each cell, and keeps the cells of a sequence together.

    Attention scans a sequence's cells from the first to the last, so a sequence reserves room for
    what it may still need. A reservation is a wish, not a claim: others stay out of it while there
    is room elsewhere.
    """

    def __init__(self, num_cells: int) -> None:
        self.num_cells = num_cells
        self.num_free = num_cells
        self._numbers = np.arange(num_cells)  # views of it name runs of cells
        self._numbers.flags.writeable = False
        self._owners = np.zeros(num_cells, np.int32)
        self._reserved = np.zeros(num_cells, np.int32)

    def allocate(self, count: int, start: int) -> Int64Array | None:
        """`count` free cells with one owner each, from `start` on if those are free.

        Otherwise they are taken where a run of free cells is long enough, and else anywhere.
        None if there are not enough free cells.
        """
        if count > self.num_free:
            return None
        if not self._is_free(start, count):
            found = self._find_run(max(count, MIN_RUN), count)
            if found is None:
                scattered = np.flatnonzero(self._owners == 0)[:count]
                self._owners[scattered] = 1
                self.num_free -= count
                return scattered
            start = found
        self._owners[start : start + count] = 1
        self.num_free -= count
        return self._numbers[start : start + count]

    def reserve(self, length: int) -> tuple[int, int]:
        """Mark a range for a new sequence of about `length` tokens: (first, stop) of the range."""
        start = self._find_run(length, 1)
        if start is None:
            return (0, 0)  # full: its cells will be found one by one
        aligned = -(-start // ALIGNMENT) * ALIGNMENT
        wish = slice(aligned, aligned + length)
        if self._is_free(aligned, length) and not self._reserved[wish].any():
            start = aligned
        return self.reserve_from(start, length)

    def reserve_from(self, start: int, length: int) -> tuple[int, int]:
        """Mark the range of `length` cells from `start` on, as far as there are cells."""
        stop = min(start + length, self.num_cells)
        self._reserved[start:stop] += 1
        return (start, stop)

    def unreserve(self, first: int, stop: int) -> None:
        """Take a reservation back."""
        self._reserved[first:stop] -= 1

    def has_run(self, length: int) -> bool:
        """Whether there are so many cells in a row that are free and reserved by nobody."""
        _, lengths = _runs_of_zeros(self._owners + self._reserved)
        return bool((lengths >= length).any())

    def in_use(self, kept: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Which cells are reserved, or have other owners than the `kept` [cells] known ones."""
        return (self._owners > kept) | (self._reserved > 0)

    def is_open(self, cell: int) -> bool:
        """Whether a cell exists, is free and is reserved by nobody."""
        return cell < self.num_cells and not self._owners[cell] and not self._reserved[cell]

    def retain(self, cells: Int64Array) -> None:
        """Add an owner to each of these (distinct) cells."""
        self._owners[cells] += 1

    def release(self, cells: Int64Array) -> None:
        """Take an owner from each of these (distinct) cells; cells without owners are free."""
        self._owners[cells] -= 1
        self.num_free += int((self._owners[cells] == 0).sum())

    def owners(self, cell: int) -> int:
        """How many owners a cell has."""
        return int(self._owners[cell])

    def _is_free(self, start: int, count: int) -> bool:
        if count == 1:  # for every token of every decoding sequence
            return start < self.num_cells and not self._owners[start]
        stop = start + count
        return stop <= self.num_cells and not self._owners[start:stop].any()

    def _find_run(self, wanted: int, least: int) -> int | None:
        """The start of a run of free cells: the first of `wanted`, or else the longest there is.

        Runs outside reservations are preferred. None if no run has `least` cells.
        """
        for taken in (self._owners + self._reserved, self._owners):
            starts, lengths = _runs_of_zeros(taken)
            if len(lengths) and lengths.max() >= least:
                fitting = lengths >= wanted
                best = fitting.argmax() if fitting.any() else lengths.argmax()
                return int(starts[best])
        return None


def _runs_of_zeros(array: npt.NDArray[np.int32]) -> tuple[Int64Array, Int64Array]:
    """Starts and lengths of the maximal runs of zeros, in order."""
    padded = np.concatenate([[1], array, [1]])
    edges = np.diff((padded == 0).astype(np.int8))
    starts = np.flatnonzero(edges == 1)
    return starts, np.flatnonzero(edges == -1) - starts
