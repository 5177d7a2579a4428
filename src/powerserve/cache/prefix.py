"""Prefixes that earlier sequences computed, kept so that a later prompt need not repeat the work.

Entries own their cells, several may share them, and the least recently used goes first when cells
are needed. A prompt is compared with each entry as a whole array: with the tens to hundreds of
entries that fit into memory, that takes microseconds and needs no tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from powerserve.backend.base import Int32Array, Int64Array
from powerserve.cache.cells import CellPool

NEVER = np.iinfo(np.int64).max  # when a cell that must stay where it is will be given up
NUM_PLACES = 512  # that are looked at for a run: a closer look would cost more than it gains


@dataclass(slots=True, eq=False)
class _Entry:
    token_ids: Int32Array
    cells: Int64Array
    last_used: int
    comes_with_model: bool = False  # the last to be dropped


class PrefixIndex:
    """Finds the longest stored prefix of a prompt."""

    def __init__(self, pool: CellPool) -> None:
        self._pool = pool
        self._entries: list[_Entry] = []
        self._clock = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_cells(self) -> int:
        """How many cells the entries own; those that several share count once."""
        cells = [entry.cells for entry in list(self._entries)]
        return len(np.unique(np.concatenate(cells))) if cells else 0

    @property
    def stored(self) -> list[tuple[Int32Array, Int64Array]]:
        """Token ids and cells of every prefix, the most recently used first."""
        latest_first = sorted(self._entries, key=lambda entry: -entry.last_used)
        return [(entry.token_ids, entry.cells) for entry in latest_first]

    def find(self, prompt: Int32Array, max_length: int) -> Int64Array:
        """Cells of the longest stored prefix of `prompt`, at most `max_length` tokens.

        The caller becomes an owner of these cells.
        """
        best, best_length = None, 0
        for entry in self._entries:
            length = min(common_prefix(entry.token_ids, prompt), max_length)
            if length > best_length:
                best, best_length = entry, length
        if best is None:
            return np.empty(0, np.int64)
        best.last_used = self._tick()
        cells = best.cells[:best_length].copy()
        self._pool.retain(cells)
        return cells

    def insert(self, token_ids: Int32Array, cells: Int64Array) -> None:
        """Keep a sequence's tokens and cells; the caller keeps its own ownership."""
        if not len(token_ids):
            return
        for entry in list(self._entries):
            common = common_prefix(entry.token_ids, token_ids)
            if common == len(token_ids):
                entry.last_used = self._tick()
                return  # already there, perhaps as the beginning of something longer
            if common == len(entry.token_ids) and not entry.comes_with_model:
                self._drop(entry)  # the new one continues it
        self._add(token_ids, cells, comes_with_model=False)

    def insert_given(self, token_ids: Int32Array, cells: Int64Array) -> None:
        """Keep a prefix that comes with the model, longer than any other; see `insert`."""
        self._add(token_ids, cells, comes_with_model=True)

    def free_cells(self, wanted: int) -> None:
        """Drop least recently used entries until `wanted` cells are free, or none is left."""
        while self._entries and self._pool.num_free < wanted:
            self._drop(min(self._entries, key=lambda e: (e.comes_with_model, e.last_used)))

    def make_run(self, length: int) -> None:
        """Drop entries so that `length` cells in a row are free, if that can be.

        Cells that are given up one by one would leave holes, and new sequences in pieces, over
        which attention scans much that is not theirs. So the entries in one place go together: in
        that place whose most recently used entry was used longest ago.
        """
        if not self._entries or self._pool.has_run(length):
            return
        start = self._best_place(length)
        if start is None:
            return
        for entry in list(self._entries):
            if ((entry.cells >= start) & (entry.cells < start + length)).any():
                self._drop(entry)

    def clear(self) -> None:
        """Drop every entry but what comes with the model."""
        for entry in list(self._entries):
            if not entry.comes_with_model:
                self._drop(entry)

    def _best_place(self, length: int) -> int | None:
        """The first cell of the run that costs least; None if something is in the way of all."""
        num_cells = self._pool.num_cells
        if length > num_cells:
            return None
        kept, last_used = np.zeros(num_cells, np.int32), np.zeros(num_cells, np.int64)
        for entry in self._entries:
            kept[entry.cells] += 1
            used = NEVER if entry.comes_with_model else entry.last_used
            last_used[entry.cells] = np.maximum(last_used[entry.cells], used)
        last_used[self._pool.in_use(kept)] = NEVER
        step = max(1, num_cells // NUM_PLACES)
        newest = sliding_window_view(last_used, length)[::step].max(axis=1)
        best = int(newest.argmin())
        return None if newest[best] == NEVER else best * step

    def _add(self, token_ids: Int32Array, cells: Int64Array, *, comes_with_model: bool) -> None:
        kept = cells.copy()
        self._pool.retain(kept)
        self._entries.append(_Entry(token_ids.copy(), kept, self._tick(), comes_with_model))

    def _drop(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self._pool.release(entry.cells)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def common_prefix(a: Int32Array, b: Int32Array) -> int:
    """How many leading elements two arrays share."""
    length = min(len(a), len(b))
    if not length:
        return 0
    differs = a[:length] != b[:length]
    first = int(differs.argmax())
    return first if differs[first] else length
