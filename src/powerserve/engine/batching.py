"""The scheduler's chunks as one batch for the backend."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import Batch, BatchSlice
from powerserve.engine.scheduler import Chunk


def build_batch(chunks: list[Chunk]) -> Batch:
    """Lay chunks one after another; logits are wanted for the last token of each complete one."""
    slices: list[BatchSlice] = []
    positions, output_rows = [], []
    start = 0
    for chunk in chunks:
        length, cached = len(chunk.token_ids), chunk.sequence.cells.length
        slices.append(
            BatchSlice(start, chunk.sequence.cells.cells, np.arange(-1, length - 1, dtype=np.int32))
        )
        positions.append(np.arange(cached, cached + length, dtype=np.int32))
        start += length
        if chunk.completes:
            output_rows.append(start - 1)
    return Batch(
        token_ids=np.concatenate([chunk.token_ids for chunk in chunks]),
        positions=np.concatenate(positions),
        cells=np.concatenate([chunk.cells for chunk in chunks]),
        slices=slices,
        output_rows=np.array(output_rows or [start - 1], np.int32),
    )
