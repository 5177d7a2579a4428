"""The scheduler's chunks as one batch for the backend."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import Batch, BatchSlice
from powerserve.cache.sequence import cell_range
from powerserve.engine.scheduler import Chunk

ONE_TOKEN = np.array([-1], np.int32)  # the parents of a single token


def build_batch(chunks: list[Chunk]) -> Batch:
    """Lay chunks one after another; logits are wanted for the last token of each complete one."""
    if len(chunks) == 1:
        return _single(chunks[0])
    slices, output_rows = [], []
    start = 0
    for chunk in chunks:
        slices.append(_slice(chunk, start))
        start += len(chunk.token_ids)
        if chunk.completes:
            output_rows.append(start - 1)
    return Batch(
        token_ids=np.concatenate([chunk.token_ids for chunk in chunks]),
        positions=np.concatenate(
            [chunk.sequence.cells.next_positions(len(chunk.cells)) for chunk in chunks]
        ),
        cells=np.concatenate([chunk.cells for chunk in chunks]),
        slices=slices,
        output_rows=np.array(output_rows or [start - 1], np.int32),
    )


def _single(chunk: Chunk) -> Batch:
    """One sequence alone needs no joining: this runs for every token of a lone user."""
    length = len(chunk.token_ids)
    return Batch(
        token_ids=chunk.token_ids,
        positions=chunk.sequence.cells.next_positions(length),
        cells=chunk.cells,
        slices=(_slice(chunk, 0),),
        output_rows=np.array([length - 1], np.int32),
    )


def _slice(chunk: Chunk, start: int) -> BatchSlice:
    cached, own = chunk.sequence.cells, chunk.cells
    length = len(own)
    parents = ONE_TOKEN if length == 1 else np.arange(-1, length - 1, dtype=np.int32)
    first, highest = cell_range(own)
    stop = highest + 1
    if cached.length:
        first, stop = min(first, cached.first_cell), max(stop, cached.stop_cell)
    return BatchSlice(start, cached.cells, parents, first, stop)
