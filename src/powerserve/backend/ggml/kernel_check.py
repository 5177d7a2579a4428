"""Try a ggml build's matrix kernels, with weights placed exactly as a model's are.

A build can load and yet be wrong: GCC 12.2 miscompiles ggml's AMX kernels, which then kill the
process at the first quantised product. So this runs in a child process, as the probe does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.ggml.single_product import RawTensor, SingleProduct
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import BackendError

NUM_IN, NUM_OUT = 256, 64  # multiples of every kernel's tile
BATCHES = (1, 32)  # tokens: kernels for vectors and for matrices
TOLERANCE = 0.02  # ggml rounds activations to 8 bits


def check_kernels(folder: Path) -> None:
    """Multiply with plain and quantised weights and compare with numpy.

    Raises:
        BackendError: a product is wrong.
    """
    backend = GgmlBackend(GgmlOptions(num_threads=2), folder)
    rng = np.random.default_rng(0)
    table = rng.standard_normal((max(BATCHES), NUM_IN), np.float32)
    for weight, values in (_float16(rng), _q8_0(rng), _q4_0(rng)):
        for num_tokens in BATCHES:
            found = product(backend, table, weight, num_tokens)
            expected = table[:num_tokens] @ values.T
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            if not error < TOLERANCE:
                raise BackendError(
                    f"{weight.dtype} products of {num_tokens} tokens are off by {error:.2g}"
                )
    backend.close()


def product(
    backend: GgmlBackend, table: FloatArray, weight: RawTensor, num_tokens: int
) -> FloatArray:
    """The first rows of `table` [rows, NUM_IN], multiplied by the weight [NUM_OUT, NUM_IN] in a
    graph of its own: [num_tokens, NUM_OUT]."""
    single = SingleProduct(backend, table, weight)
    found = single(num_tokens).copy()
    single.close()
    return found


def _float16(rng: np.random.Generator) -> tuple[RawTensor, FloatArray]:
    values = rng.standard_normal((NUM_OUT, NUM_IN), np.float32).astype(np.float16)
    return _raw(dtypes.F16, values), values.astype(np.float32)


def _q8_0(rng: np.random.Generator) -> tuple[RawTensor, FloatArray]:
    """Blocks of a float16 scale and 32 signed bytes."""
    scales, codes = _scales(rng), rng.integers(-127, 128, (NUM_OUT, NUM_IN // 32, 32), np.int8)
    blocks = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=-1)
    return _raw(dtypes.Q8_0, blocks), _scaled(codes, scales)


def _q4_0(rng: np.random.Generator) -> tuple[RawTensor, FloatArray]:
    """Blocks of a float16 scale and 32 numbers of 4 bits, less 8: the first half in low nibbles."""
    scales, codes = _scales(rng), rng.integers(0, 16, (NUM_OUT, NUM_IN // 32, 32), np.uint8)
    nibbles = codes[..., :16] | codes[..., 16:] << 4
    blocks = np.concatenate([scales.view(np.uint8), nibbles], axis=-1)
    return _raw(dtypes.Q4_0, blocks), _scaled(codes.astype(np.int8) - 8, scales)


def _scales(rng: np.random.Generator) -> npt.NDArray[np.float16]:
    return rng.uniform(0.001, 0.01, (NUM_OUT, NUM_IN // 32, 1)).astype(np.float16)


def _scaled(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float16]) -> FloatArray:
    values: FloatArray = codes.astype(np.float32) * scales.astype(np.float32)
    return values.reshape(NUM_OUT, NUM_IN)


def _raw(dtype: DType, blocks: npt.NDArray[np.generic]) -> RawTensor:
    data = np.ascontiguousarray(blocks).view(np.uint8).reshape(-1)
    return RawTensor((NUM_OUT, NUM_IN), dtype, data)
