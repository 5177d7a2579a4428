"""Batches of a single text in a cache of its own, without an engine."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import Batch, BatchSlice, Int32Array


def chain_batch(
    token_ids: Int32Array,
    start: int,
    output_rows: Int32Array | None = None,
    *,
    first_cell: int | None = None,
) -> Batch:
    """The next tokens of a single sequence whose cells are simply its positions.

    `start` tokens are cached already; logits are wanted of `output_rows`, or of all. With
    `first_cell`, a number from `start` on, these tokens are written from there on instead.
    """
    length = len(token_ids)
    first_cell = start if first_cell is None else first_cell
    rows = np.arange(length, dtype=np.int32)
    context = np.arange(start, dtype=np.int64)
    piece = BatchSlice(0, context, rows - np.int32(1), 0, first_cell + length)
    return Batch(
        token_ids=token_ids,
        positions=rows + np.int32(start),
        cells=rows + np.int64(first_cell),
        slices=[piece],
        output_rows=rows if output_rows is None else output_rows,
    )
