"""Try kernels: a compiler may make wrong ones, and only their products show it.

This runs in a child process, as a crash is one of the things that it is to find.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.backend.ggml.kernels.bare_tensors import aligned_bytes, bare_tensor
from powerserve.backend.ggml.kernels.library import PANEL_ROWS, Flag, KernelLibrary, LinearSpec
from powerserve.backend.reference.dequantise import dequantise
from powerserve.core.dtypes import Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, DType
from powerserve.core.errors import BackendError

ROWS, FEATURES = 40, 512  # not all rows fill a panel; two blocks of a K-quant
COLUMNS = (1, 3, 13, 33)  # of activations: one, a few, groups of unequal size, tiles
TOLERANCE = 0.02  # activations are rounded to 8 bits
# Where the float16 scales of a block are: random bytes would make them infinite.
SCALE_OFFSETS = {
    Q4_0: (0,), Q4_1: (0, 2), Q5_0: (0,), Q5_1: (0, 2), Q8_0: (0,),
    Q4_K: (0, 2), Q5_K: (0, 2), Q6_K: (208,),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RandomWeight:
    """A quantised matrix of random bytes, as it would lie in a file."""

    shape: tuple[int, ...]
    dtype: DType
    data: npt.NDArray[np.uint8]


def check_products(library: KernelLibrary) -> None:
    """Multiply matrices of every type with every instruction set and compare with numpy.

    Raises:
        BackendError: a product is wrong.
    """
    rng = np.random.default_rng(0)
    activations = rng.standard_normal((max(COLUMNS), FEATURES), np.float32)
    for dtype in SCALE_OFFSETS:
        weight = random_weight(rng, dtype)
        for columns in COLUMNS:
            x = activations[:columns]
            expected = x @ dequantise(weight).T
            for instruction_set, found in products(library, weight, x):
                what = f"{dtype} products of {columns} tokens with {instruction_set}"
                check_close(found, expected, what)


def check_close(found: FloatArray, expected: FloatArray, what: str) -> None:
    """Raises BackendError, which names `what` in the plural, if numbers are wrong."""
    difference = found.astype(np.float64) - expected  # wrong numbers may be huge
    error = np.linalg.norm(difference) / np.linalg.norm(expected)
    if not error < TOLERANCE:
        raise BackendError(f"{what} are off by {error:.2g}")


def random_weight(rng: np.random.Generator, dtype: DType) -> RandomWeight:
    """[ROWS, FEATURES] of random bits with sensible scales."""
    shape = (ROWS, FEATURES // dtype.block_size)
    blocks = rng.integers(0, 256, (*shape, dtype.block_bytes), np.uint8)
    for offset in SCALE_OFFSETS[dtype]:
        scales = rng.uniform(0.001, 0.01, (*shape, 1)).astype(np.float16)
        blocks[..., offset : offset + 2] = scales.view(np.uint8)
    return RandomWeight((ROWS, FEATURES), dtype, blocks.reshape(-1))


def products(
    library: KernelLibrary, weight: RandomWeight, x: FloatArray
) -> Iterator[tuple[str, FloatArray]]:
    """The product [columns, ROWS] of x [columns, FEATURES] with each instruction set."""
    packed = pack(library, weight)
    for instruction_set in library.instruction_sets:
        library.use(instruction_set)
        yield instruction_set, multiply(library, weight.dtype, packed, x)


def pack(library: KernelLibrary, weight: RandomWeight) -> npt.NDArray[np.uint8]:
    """The weight as kernels want it."""
    dtype_id = weight.dtype.ggml_id
    packed = aligned_bytes(library.packed_bytes(dtype_id, *weight.shape))
    num_panels = -(-weight.shape[0] // PANEL_ROWS)
    addresses = weight.data.ctypes.data, packed.ctypes.data
    library.pack(dtype_id, *weight.shape, *addresses, 0, num_panels)
    return packed


def multiply(
    library: KernelLibrary, dtype: DType, packed: npt.NDArray[np.uint8], x: FloatArray
) -> FloatArray:
    """What the operations make of x [columns, FEATURES] when one thread executes them."""
    columns = len(x)
    out = np.full((columns, ROWS), np.nan, np.float32)
    spec = LinearSpec(num_weights=1, in_features=FEATURES)
    spec.types[0], spec.rows[0] = dtype.ggml_id, ROWS
    source = bare_tensor(x)
    prepared = aligned_bytes(library.prepared_bytes(FEATURES, columns))
    if columns > library.max_unprepared():
        source = bare_tensor(prepared, source)
        library.op_prepare(ctypes.addressof(source), 0, 1, ctypes.addressof(spec))
        spec.flags = Flag.PREPARED
    result = bare_tensor(out, source, bare_tensor(packed))
    library.op_linear(ctypes.addressof(result), 0, 1, ctypes.addressof(spec))
    return out
