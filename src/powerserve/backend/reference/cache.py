"""K and V of every layer as plain arrays [cells, kv_heads, head_dim]."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import Cache, FloatArray, Int64Array
from powerserve.core.config import ModelConfig
from powerserve.core.dtypes import F16, F32, DType
from powerserve.core.errors import BackendError, MemoryLimitError

KV_DTYPES = (F32, F16)


class ReferenceCache(Cache):
    """A KV cache in host memory; type F16 rounds what is stored.

    Cells start as NaN, so that reading a cell nobody wrote shows in the logits.
    """

    def __init__(self, config: ModelConfig, num_cells: int, dtype: DType) -> None:
        """Raises BackendError for a type other than F32 and F16, and MemoryLimitError."""
        if dtype not in KV_DTYPES:
            raise BackendError(
                f"the reference backend keeps its KV cache in F32 or F16, not {dtype}"
            )
        shape = (config.num_layers, num_cells, config.num_kv_heads, config.head_dim)
        storage = np.float32 if dtype == F32 else np.float16
        try:
            self._keys = np.full(shape, np.nan, storage)
            self._values = np.full(shape, np.nan, storage)
        except MemoryError:
            raise MemoryLimitError(
                f"a KV cache of {num_cells} cells does not fit into memory; "
                "choose a smaller context (-c)"
            ) from None
        self.num_cells = num_cells
        self.size_bytes = self._keys.nbytes + self._values.nbytes

    def store(self, layer: int, cells: Int64Array, keys: FloatArray, values: FloatArray) -> None:
        """Write keys and values [T, kv_heads, head_dim] of one layer into `cells` [T]."""
        self._keys[layer, cells] = keys
        self._values[layer, cells] = values

    def load(self, layer: int, cells: Int64Array) -> tuple[FloatArray, FloatArray]:
        """Keys and values [len(cells), kv_heads, head_dim] of one layer."""
        return (
            self._keys[layer, cells].astype(np.float32),
            self._values[layer, cells].astype(np.float32),
        )

    def copy(self, source: Int64Array, target: Int64Array) -> None:
        for stored in (self._keys, self._values):
            stored[:, target] = stored[:, source]

    def save(self, cells: Int64Array) -> bytes:
        return self._keys[:, cells].tobytes() + self._values[:, cells].tobytes()

    def restore(self, cells: Int64Array, content: bytes) -> None:
        shape = (2, self._keys.shape[0], len(cells), *self._keys.shape[2:])
        expected_bytes = int(np.prod(shape)) * self._keys.itemsize
        if len(content) != expected_bytes:
            raise BackendError(
                f"saved KV cells hold {len(content)} bytes, but {len(cells)} cells of this cache "
                f"take {expected_bytes}; they come from another model or cache type"
            )
        keys, values = np.frombuffer(content, self._keys.dtype).reshape(shape)
        self._keys[:, cells] = keys
        self._values[:, cells] = values
