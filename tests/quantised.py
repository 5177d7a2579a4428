"""Quantised tensors for tests, made by ggml's own quantisers or from random bytes."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from powerserve.backend.ggml.locate import library_file, library_folder
from powerserve.core.dtypes import DType

SCALE = np.array([0.01], np.float16).view(np.uint8)


@dataclass(frozen=True)
class MemoryTensor:
    """A tensor as a model file would hold it; satisfies `WeightTensor`."""

    shape: tuple[int, ...]
    dtype: DType
    data: npt.NDArray[np.uint8]


def float_tensor(values: npt.NDArray[np.float32], dtype: DType) -> MemoryTensor:
    """`values` as F32."""
    return MemoryTensor(values.shape, dtype, np.ascontiguousarray(values).view(np.uint8).ravel())


def quantised_tensor(values: npt.NDArray[np.float32], dtype: DType) -> MemoryTensor:
    """`values` [rows, columns] quantised by ggml; every column is equally important.

    ggml's quantisers of the IQ1 and IQ2 types build search tables for seconds, so those types get
    random codes with a sensible scale instead.
    """
    if dtype.name.startswith(("IQ1", "IQ2")):
        return _random_codes(values.shape, dtype)
    handle = ctypes.CDLL(str(library_file(library_folder(), "ggml-base")))
    handle.ggml_quantize_chunk.restype = c_size_t
    handle.ggml_quantize_chunk.argtypes = [
        *(c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)
    ]
    data = np.zeros(dtype.size_bytes(values.size), np.uint8)
    importance = np.ones(values.shape[1], np.float32)
    written = handle.ggml_quantize_chunk(
        dtype.ggml_id, values.ctypes.data, data.ctypes.data, 0, *values.shape,
        importance.ctypes.data,
    )  # fmt: skip
    assert written == data.nbytes
    return MemoryTensor(values.shape, dtype, data)


def _random_codes(shape: tuple[int, ...], dtype: DType) -> MemoryTensor:
    num_blocks = int(np.prod(shape)) // dtype.block_size
    rng = np.random.default_rng(9)
    blocks = rng.integers(0, 256, (num_blocks, dtype.block_bytes), dtype=np.uint8)
    if dtype.name == "IQ1_M":  # the scale's 16 bits are the top nibbles of the last four words
        words = blocks[:, -8:].view(np.uint16)
        words &= 0x0FFF
        words[:, 3] |= 0x2000  # together 0x2000, which is 0.0078 in float16
    else:
        blocks[:, :2] = SCALE
    return MemoryTensor(shape, dtype, blocks.ravel())
