"""What each token of a run sees, as numbers that are added to its attention scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import Batch, BatchSlice
from powerserve.backend.qnn.runtime.base import Array
from powerserve.backend.qnn.splitting import Run
from powerserve.backend.reference.attention import ancestors

Bits = npt.NDArray[np.uint16]
VISIBLE = np.uint16(0)  # float16 written as integers, which numpy fills faster


class AttentionBias:
    """Writes the bias [B, context]: a column for each cell, then one for each token of the run.

    A step may take several runs. What an earlier one computed is in the cache by then, so a token
    sees it in the columns of its cells.
    """

    def __init__(self, cache_size: int, hidden_value: float, num_front: int = 0) -> None:
        """Args:
        cache_size: cells of the cache.
        hidden_value: added where a token must not look; may be more than float16 holds.
        num_front: cells before those that batches name, which every token sees.
        """
        with np.errstate(over="ignore"):
            self._hidden = np.array(hidden_value).astype(np.float16).view(np.uint16)
        self._cache_size = cache_size
        self._num_front = num_front

    def write(self, bias: Array, batch: Batch, run: Run) -> None:
        """Fill the bias for a run of the batch; rows without a token see only themselves."""
        rows: Bits = bias.view(np.uint16)
        rows.fill(self._hidden)
        for piece in batch.slices:
            first = max(piece.start, run.start)
            stop = min(piece.start + len(piece.parents), run.stop)
            if first < stop:
                self._write_slice(rows, batch, piece, run, slice(first, stop))
        padding = np.arange(run.stop - run.start, len(rows))
        rows[padding, self._cache_size + padding] = VISIBLE

    def _write_slice(
        self, rows: Bits, batch: Batch, piece: BatchSlice, run: Run, tokens: slice
    ) -> None:
        """The rows of `tokens` (numbers within the batch), which are of one sequence."""
        column = self._cache_size + tokens.start - run.start
        own_rows = rows[tokens.start - run.start : tokens.stop - run.start]
        own_columns = own_rows[:, column : column + len(own_rows)]
        earlier = batch.cells[piece.start : tokens.start] + self._num_front
        first, stop = tokens.start - piece.start, tokens.stop - piece.start
        self._reveal_context(own_rows[0], piece)
        if piece.is_chain:
            own_rows[0, earlier] = VISIBLE
            own_rows[1:] = own_rows[0]
            own_columns[:] = self._bits(np.tri(len(own_rows)) > 0)
        else:
            own_rows[1:] = own_rows[0]
            bits = self._bits(ancestors(piece.parents)[first:stop])
            own_rows[:, earlier] = bits[:, :first]
            own_columns[:] = bits[:, first:stop]
        self._reveal_ancestors(own_rows, piece, first, stop)

    def _reveal_context(self, row: npt.NDArray[np.uint16], piece: BatchSlice) -> None:
        row[: self._num_front] = VISIBLE
        row[piece.context + self._num_front] = VISIBLE

    def _reveal_ancestors(self, rows: Bits, piece: BatchSlice, first: int, stop: int) -> None:
        """Let the tokens first … stop - 1 of a tree see their ancestors from earlier steps."""
        if piece.cached_ancestors is not None:
            cells = piece.cached_ancestors[first:stop]
            tokens, levels = np.nonzero(cells >= 0)
            rows[tokens, cells[tokens, levels] + self._num_front] = VISIBLE

    def _bits(self, visible: npt.NDArray[np.bool_]) -> Bits:
        return np.where(visible, VISIBLE, self._hidden)
