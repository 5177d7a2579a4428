"""ggml's own conversions between floats and blocks, for whole rows.

Source: ggml.h (`ggml_quantize_chunk`, `ggml_validate_row_data`) and ggml-quants.h
(`dequantize_row_*`). All of them release Python's lock, so several threads may convert at once.
"""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.backend.ggml.library import GgmlLibrary
from powerserve.core.dtypes import BF16, F16, F32, DType
from powerserve.core.errors import BackendError

Bytes = npt.NDArray[np.uint8]


class Quantisers:
    """Conversions of one ggml library."""

    def __init__(self, library: GgmlLibrary) -> None:
        self._library = library

    def quantise(
        self, values: FloatArray, dtype: DType, importance: FloatArray | None = None
    ) -> Bytes:
        """Rows [rows, columns] as `dtype`; `importance` [columns] weighs the errors of a column.

        Raises BackendError if the result is not sound, as when F16 cannot hold a value.
        """
        values = np.ascontiguousarray(values, np.float32)
        result = np.zeros(dtype.size_bytes(values.size), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        self._library.quantize_chunk(
            dtype.ggml_id, values.ctypes.data, result.ctypes.data, 0, *values.shape, weights
        )
        if not self._library.validate_row_data(dtype.ggml_id, result.ctypes.data, result.nbytes):
            raise BackendError(f"{dtype} cannot hold these values")
        return result

    def dequantise(self, data: Bytes, dtype: DType, num_columns: int) -> FloatArray:
        """Whole rows of any type as [rows, columns].

        Raises BackendError if ggml cannot decode the type.
        """
        if dtype == F32:
            values = data.view(np.float32)
        elif dtype == F16:
            values = data.view(np.float16).astype(np.float32)
        elif dtype == BF16:  # the upper half of a float32
            values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = self._decode(data, dtype)
        return values.reshape(-1, num_columns)

    def _decode(self, data: Bytes, dtype: DType) -> FloatArray:
        if not dtype.is_quantised:
            raise BackendError(f"{dtype} is not a type of weights")
        name = f"dequantize_row_{dtype.name.lower().replace('_k', '_K')}"
        decode = self._library.function(name, None, [c_void_p, c_void_p, c_int64])
        values = np.empty(data.nbytes // dtype.block_bytes * dtype.block_size, np.float32)
        decode(data.ctypes.data, values.ctypes.data, values.size)
        return values
