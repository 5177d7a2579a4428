"""The KV cache in ggml's memory: one block, `[layer][K or V][cell][kv_dim]`.

The block comes from the operating system zeroed and untouched, so a large context costs memory only
as far as it is used, and a cell that was never written holds finite values.
"""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import Cache, Int64Array
from powerserve.backend.ggml.library import GgmlLibrary
from powerserve.backend.ggml.memory import HostMemory
from powerserve.core.config import ModelConfig
from powerserve.core.dtypes import DType
from powerserve.core.errors import BackendError, MemoryLimitError

K, V = 0, 1


class GgmlCache(Cache):
    """Cells of F16 or Q8_0. `keys[layer]`, `values[layer]` are ggml tensors [kv_dim, num_cells]."""

    def __init__(
        self, library: GgmlLibrary, config: ModelConfig, num_cells: int, dtype: DType
    ) -> None:
        self.num_cells = num_cells
        self.dtype = dtype
        self.row_bytes = row_bytes(config, dtype)
        self._library = library
        shape = (config.num_layers, 2, num_cells, self.row_bytes)
        self.size_bytes = int(np.prod(shape, dtype=np.int64))
        try:
            self._memory = HostMemory(self.size_bytes, huge_pages=False)
        except (OSError, ValueError, OverflowError):
            raise MemoryLimitError(
                f"a KV cache of {num_cells:,} cells needs {self.size_bytes / 2**30:.1f} GiB, "
                "which this machine does not have; choose a smaller context (-c)"
            ) from None
        self._cells = self._memory.bytes[: self.size_bytes].reshape(shape)
        self._context = library.new_context(2 * config.num_layers)
        self._buffer = library.backend_cpu_buffer_from_ptr(self._memory.address, self.size_bytes)
        self.keys = [self._tensor(layer, K, config.kv_dim) for layer in range(config.num_layers)]
        self.values = [self._tensor(layer, V, config.kv_dim) for layer in range(config.num_layers)]

    def copy(self, source: Int64Array, target: Int64Array) -> None:
        self._cells[:, :, target] = self._cells[:, :, source]

    def save(self, cells: Int64Array) -> bytes:
        return self._cells[:, :, cells].tobytes()

    def restore(self, cells: Int64Array, content: bytes) -> None:
        num_layers = self._cells.shape[0]
        shape = (num_layers, 2, len(cells), self.row_bytes)
        if len(content) != int(np.prod(shape)):
            raise BackendError(
                f"{len(content)} bytes do not hold {len(cells)} cells of this cache's type"
            )
        self._cells[:, :, cells] = np.frombuffer(content, np.uint8).reshape(shape)

    def close(self) -> None:
        """Free the memory; executables over this cache must not run afterwards."""
        self._library.backend_buffer_free(self._buffer)
        self._library.free(self._context)
        self._cells = np.empty((0, 2, 0, 0), np.uint8)
        self._memory.close()

    def _tensor(self, layer: int, kind: int, kv_dim: int) -> int:
        tensor: int = self._library.new_tensor_2d(
            self._context, self.dtype.ggml_id, kv_dim, self.num_cells
        )
        offset = (2 * layer + kind) * self.num_cells * self.row_bytes
        self._library.backend_tensor_alloc(self._buffer, tensor, self._memory.address + offset)
        return tensor


def row_bytes(config: ModelConfig, dtype: DType) -> int:
    """Bytes of one token's K (or V) in one layer; a head must be a whole number of blocks."""
    if config.head_dim % dtype.block_size:
        raise BackendError(
            f"a KV cache of type {dtype} needs heads of a multiple of {dtype.block_size} "
            f"dimensions; this model has {config.head_dim}: use F16"
        )
    return dtype.size_bytes(config.kv_dim)
