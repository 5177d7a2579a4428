"""Token embeddings straight from the model file, whatever its element type."""

from __future__ import annotations

from powerserve.backend.base import FloatArray, Int32Array, WeightTensor
from powerserve.backend.ggml.library import GgmlLibrary
from powerserve.backend.ggml.quantisers import Quantisers


class EmbeddingTable:
    """Rows of a table [V, D] that stays in the file's pages; only wanted rows are decoded."""

    def __init__(self, library: GgmlLibrary, table: WeightTensor) -> None:
        self._quantisers = Quantisers(library)
        self._table = table
        self._rows = table.data.reshape(table.shape[0], -1)

    def __call__(self, token_ids: Int32Array) -> FloatArray:
        """The rows of these tokens: [T, D]."""
        rows = self._rows[token_ids]
        return self._quantisers.dequantise(
            rows.reshape(-1), self._table.dtype, self._table.shape[1]
        )
