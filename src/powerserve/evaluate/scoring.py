"""Teacher forcing: what a model thinks of each token of a given text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray, Int32Array, LoadedModel
from powerserve.core.dtypes import F16, DType
from powerserve.executor.chain import chain_batch
from powerserve.executor.executor import Executor, cache_cells


def batch_logits(
    model: LoadedModel, token_ids: Sequence[int] | Int32Array, *, batch_size: int, kv_dtype: DType
) -> Iterator[FloatArray]:
    """Compute a text batch by batch; yields logits [batch, vocab], valid until the next one.

    Row i of the whole is the prediction for token i + 1, given tokens 0 … i.
    """
    tokens = np.asarray(token_ids, np.int32)
    cache = model.new_cache(cache_cells(model, len(tokens)), kv_dtype)
    executor = Executor(model, cache)
    try:
        for start in range(0, len(tokens), batch_size):
            yield executor.run(chain_batch(tokens[start : start + batch_size], start))
    finally:
        executor.close()
        cache.close()


@dataclass(frozen=True, slots=True)
class StepSettings:
    """How a text is computed."""

    batch_size: int = 512  # tokens at once
    kv_dtype: DType = F16


def window_logits(
    model: LoadedModel, windows: Int32Array, settings: StepSettings
) -> Iterator[tuple[Int32Array, FloatArray]]:
    """Compute windows [n, window] one by one, and predict the second half of each.

    Yields, for each batch that has some of them, the tokens that come [n] and the logits [n, vocab]
    that were to predict them, valid until the next batch.
    """
    window, batch_size = windows.shape[1], settings.batch_size
    cache = model.new_cache(cache_cells(model, window), settings.kv_dtype)
    executor = Executor(model, cache)
    try:
        for tokens in windows:
            for start in range(0, window, batch_size):
                stop = min(start + batch_size, window)
                wanted = np.arange(max(start, window // 2), min(stop, window - 1), dtype=np.int32)
                # A batch has at least one output, wanted or not.
                rows = wanted - start if len(wanted) else np.array([stop - start - 1])
                batch = chain_batch(tokens[start:stop], start, rows.astype(np.int32))
                logits = executor.run(batch)
                if len(wanted):
                    yield tokens[wanted + 1], logits
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
