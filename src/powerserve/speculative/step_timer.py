"""Timing steps of a model on cells that nobody uses."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from powerserve.backend.base import Batch, BatchSlice
from powerserve.cache.cells import CellPool
from powerserve.core.errors import MemoryLimitError
from powerserve.executor.executor import Executor


def time_step(executor: Executor, pool: CellPool, num_tokens: int, num_context: int) -> float:
    """Seconds of a step of one sequence with `num_tokens` tokens after `num_context` cells.

    The tokens are all 0 and the context is whatever the cells hold: neither changes the time.
    Logits are computed for every token, as verification needs them. Raises MemoryLimitError if no
    cell is free.
    """
    context = np.arange(min(num_context, pool.num_cells - num_tokens))
    cells = pool.allocate(num_tokens, len(context))
    if cells is None:
        raise MemoryLimitError("no KV cell is free for measuring a step")
    try:
        seen = context[~np.isin(context, cells)]
        low, high = (int(f(np.concatenate([seen, cells]))) for f in (np.min, np.max))
        batch = Batch(
            token_ids=np.zeros(num_tokens, np.int32),
            positions=np.arange(len(context), len(context) + num_tokens, dtype=np.int32),
            cells=cells,
            slices=(
                BatchSlice(0, seen, np.arange(-1, num_tokens - 1, dtype=np.int32), low, high + 1),
            ),
            output_rows=np.arange(num_tokens, dtype=np.int32),
        )
        start_s = perf_counter()
        executor.run(batch)
        return perf_counter() - start_s
    finally:
        pool.release(cells)
