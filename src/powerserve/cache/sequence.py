"""One sequence's place in the cache: its tokens, and the cell that holds each."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import Int32Array, Int64Array
from powerserve.cache.cells import CellPool


class SequenceCells:
    """Tokens 0 … `length` of a sequence, with K and V in `cells`; position i is cell `cells[i]`.

    The sequence is an owner of its cells. Arrays are views that stay valid until the next change.
    """

    def __init__(self, pool: CellPool, capacity: int) -> None:
        self._pool = pool
        self._token_ids = np.empty(capacity, np.int32)
        self._cells = np.empty(capacity, np.int64)
        self.length = 0

    @property
    def token_ids(self) -> Int32Array:
        """int32 [length]."""
        return self._token_ids[: self.length]

    @property
    def cells(self) -> Int64Array:
        """int64 [length]."""
        return self._cells[: self.length]

    def append(self, token_ids: Int32Array, cells: Int64Array) -> None:
        """Add tokens whose cells were allocated (or retained) for this sequence."""
        end = self.length + len(token_ids)
        self._token_ids[self.length : end] = token_ids
        self._cells[self.length : end] = cells
        self.length = end

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on and give their cells back."""
        self._pool.release(self._cells[length : self.length].copy())
        self.length = length

    def release(self) -> None:
        """Give all cells back."""
        self.truncate(0)
