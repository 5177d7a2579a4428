"""Teacher forcing: what a model thinks of each token of a given text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import Batch, BatchSlice, FloatArray, Int32Array, LoadedModel
from powerserve.core.dtypes import DType
from powerserve.executor.executor import CELL_BLOCK, Executor


def batch_logits(
    model: LoadedModel, token_ids: Sequence[int] | Int32Array, *, batch_size: int, kv_dtype: DType
) -> Iterator[FloatArray]:
    """Compute a text batch by batch; yields logits [batch, vocab], valid until the next one.

    Row i of the whole is the prediction for token i + 1, given tokens 0 … i.
    """
    tokens = np.asarray(token_ids, np.int32)
    num_cells = -(-len(tokens) // CELL_BLOCK) * CELL_BLOCK
    cache = model.new_cache(num_cells, kv_dtype)
    executor = Executor(model, cache)
    try:
        for start in range(0, len(tokens), batch_size):
            batch = _chain(tokens[start : start + batch_size], start)
            yield executor.run(batch)
    finally:
        executor.close()
        cache.close()


def token_nll(logits: FloatArray, targets: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Negative log-likelihood in nats of target [n] under each row of logits [n, vocab]."""
    rows = logits[: len(targets)]
    peak = rows.max(axis=1, keepdims=True)
    total = np.exp(rows - peak, dtype=np.float32).sum(axis=1, dtype=np.float64)
    chosen = rows[np.arange(len(targets)), targets]
    nll: npt.NDArray[np.float64] = np.log(total) - (chosen - peak[:, 0]).astype(np.float64)
    return nll


def _chain(token_ids: npt.NDArray[np.int32], start: int) -> Batch:
    """The next tokens of a single sequence whose cells are simply its positions."""
    length = len(token_ids)
    rows = np.arange(length, dtype=np.int32)
    positions = rows + np.int32(start)
    context = np.arange(start, dtype=np.int64)
    piece = BatchSlice(0, context, rows - np.int32(1), 0, start + length)
    return Batch(token_ids, positions, positions.astype(np.int64), [piece], rows)
