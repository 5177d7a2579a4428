"""The scheduler's chunks as one batch for the backend."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import Batch, Int32Array
from powerserve.engine.scheduler import Chunk
from powerserve.executor.batching import Piece, build_batch, chain

_NO_ROWS = np.empty(0, np.int32)
_FIRST_ROW = np.zeros(1, np.int32)


def batch_of(chunks: list[Chunk]) -> Batch:
    """Logits are wanted for the last token of each complete chunk, and for all of a tree or of a
    prompt that is scored."""
    return build_batch([_piece(chunk) for chunk in chunks])


def _piece(chunk: Chunk) -> Piece:
    cells, tree = chunk.sequence.cells, chunk.tree
    length = len(chunk.token_ids)
    if tree is not None:
        positions, parents = tree.depths + np.int32(cells.length), tree.parents
    else:
        positions, parents = cells.next_positions(length), chain(length)
    rows = _last_rows(length, chunk.num_outputs)
    return Piece(cells, chunk.token_ids, positions, chunk.cells, parents, rows)


def _last_rows(length: int, count: int) -> Int32Array:
    if count == 0:
        return _NO_ROWS
    return _FIRST_ROW if length == 1 else np.arange(length - count, length, dtype=np.int32)
