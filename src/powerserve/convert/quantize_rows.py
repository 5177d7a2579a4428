"""A tensor's data in another type, a few rows at a time.

Rows are independent of each other, so threads share a tensor, and the result does not depend on
their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.backend.ggml.quantisers import Quantisers
from powerserve.convert.imatrix import ImportanceMatrix
from powerserve.convert.quantize_types import TensorPlan
from powerserve.core.errors import BackendError, ModelFileError
from powerserve.storage.copying import BLOCK_BYTES

PIECE_ELEMENTS = 1 << 20  # converted at once by a thread: 4 MiB as floats

_Result = TypeVar("_Result")


class TensorConverter:
    """Makes the data of one tensor after the other with a pool of `num_threads` threads."""

    def __init__(
        self,
        quantisers: Quantisers,
        pool: ThreadPoolExecutor,
        num_threads: int,
        importance: ImportanceMatrix | None,
    ) -> None:
        self._quantisers = quantisers
        self._pool = pool
        self._num_ahead = 2 * num_threads
        self._importance = importance

    def pieces(self, tensor: TensorPlan) -> Iterator[bytes]:
        """The new data in order. Raises ModelFileError for numbers the new type cannot hold."""
        if not tensor.changes:
            return _as_it_is(tensor)
        return _in_order(self._pool, self._tasks(tensor), self._num_ahead)

    def _tasks(self, tensor: TensorPlan) -> Iterator[Callable[[], bytes]]:
        """One call for each piece. A piece is of one matrix: each expert has its own weights."""
        num_rows, num_columns = tensor.source.shape[-2:]
        row_bytes = tensor.source.dtype.size_bytes(num_columns)
        matrices = tensor.source.data.reshape(-1, num_rows, row_bytes)
        weights = None
        if self._importance is not None:
            weights = self._importance.weights(tensor.source.name, len(matrices), num_columns)
        step = max(1, PIECE_ELEMENTS // num_columns)
        for index, rows in enumerate(matrices):
            importance = None if weights is None else weights[index]
            for first in range(0, num_rows, step):
                yield partial(self._convert, tensor, rows[first : first + step], importance)

    def _convert(
        self, tensor: TensorPlan, rows: npt.NDArray[np.uint8], importance: FloatArray | None
    ) -> bytes:
        source = tensor.source
        values = self._quantisers.dequantise(rows.reshape(-1), source.dtype, source.shape[-1])
        if not np.isfinite(values).all():
            raise ModelFileError(
                f"tensor {source.name} holds numbers that are not finite: the file is damaged"
            )
        try:
            return self._quantisers.quantise(values, tensor.dtype, importance).tobytes()
        except BackendError:
            raise ModelFileError(
                f"tensor {source.name} holds numbers that are too large for {tensor.dtype}; "
                "choose BF16 or F32"
            ) from None


def _in_order(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], _Result]], num_ahead: int
) -> Iterator[_Result]:
    """The results of `tasks` in order; at most `num_ahead` of them are begun and not yet taken."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) >= num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _as_it_is(tensor: TensorPlan) -> Iterator[bytes]:
    data = tensor.source.data
    for start in range(0, len(data), BLOCK_BYTES):
        yield data[start : start + BLOCK_BYTES].tobytes()
