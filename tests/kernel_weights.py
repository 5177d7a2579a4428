"""Weights for tests of the kernels: blocks of a GGUF file, random or of extreme numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from powerserve.core.dtypes import Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, DType

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class BlockFields:
    """Which bytes of a block hold what. Source: ggml-common.h."""

    halves: tuple[int, ...]  # where float16 numbers begin: the scale, the scale of the minimum
    quants: slice
    scales: slice  # integers that multiply the halves


NO_SCALES = slice(0)
FIELDS = {
    Q4_0: BlockFields((0,), slice(2, 18), NO_SCALES),
    Q4_1: BlockFields((0, 2), slice(4, 20), NO_SCALES),
    Q5_0: BlockFields((0,), slice(2, 22), NO_SCALES),
    Q5_1: BlockFields((0, 2), slice(4, 24), NO_SCALES),
    Q8_0: BlockFields((0,), slice(2, 34), NO_SCALES),
    Q4_K: BlockFields((0, 2), slice(16, 144), slice(4, 16)),
    Q5_K: BlockFields((0, 2), slice(16, 176), slice(4, 16)),
    Q6_K: BlockFields((208,), slice(0, 192), slice(192, 208)),
}
TYPES = tuple(FIELDS)


@dataclass(frozen=True, eq=False)
class KernelWeight:
    """A matrix as in a file: bytes [rows, blocks of a row, bytes of a block]."""

    dtype: DType
    blocks: ByteArray = field(repr=False)

    @property
    def rows(self) -> int:
        """Output features."""
        return len(self.blocks)

    @property
    def in_features(self) -> int:
        """Numbers of a row."""
        return self.blocks.shape[1] * self.dtype.block_size

    @cached_property
    def values(self) -> FloatArray:
        """What the `gguf` package reads, [rows, in_features]."""
        rows = self.blocks.reshape(self.rows, -1)
        with np.errstate(all="ignore"):  # scales may be infinite, or not numbers
            return dequantize(rows, GGMLQuantizationType(self.dtype.ggml_id))

    @cached_property
    def summands(self) -> DoubleArray:
        """The largest numbers that kernels add up for a weight, [rows, in_features].

        They compute (scale · quant - minimum) · x as scale · quant · x - minimum · x, with quants
        that begin at zero: |scale · quant| is at most |weight| + |minimum|.
        """
        lowest = self.blocks.copy()
        lowest[:, :, FIELDS[self.dtype].quants] = 128 if self.dtype == Q8_0 else 0  # int8: -128
        minimum = KernelWeight(self.dtype, lowest).values.astype(np.float64)
        return np.abs(self.values) + 2 * np.abs(minimum)


def random_bytes(
    rng: np.random.Generator, dtype: DType, rows: int, in_features: int
) -> KernelWeight:
    """Any bytes at all: scales may be infinite, or not numbers."""
    shape = (rows, in_features // dtype.block_size, dtype.block_bytes)
    return KernelWeight(dtype, rng.integers(0, 256, shape, dtype=np.uint8))


def random_weight(
    rng: np.random.Generator, dtype: DType, rows: int, in_features: int
) -> KernelWeight:
    """Any quants, with scales of both signs of about 0.01 (K-quants multiply them by up to 63)."""
    weight = random_bytes(rng, dtype, rows, in_features)
    for start in FIELDS[dtype].halves:
        scales = rng.uniform(0.001, 0.01, weight.blocks.shape[:2])
        scales *= rng.choice([-1, 1], scales.shape)
        _set_half(weight, start, scales)
    return weight


def filled_weight(
    dtype: DType, rows: int, in_features: int, *, half: float, scale: int, quant: int
) -> KernelWeight:
    """All halves, all bytes of scales and all bytes of quants alike."""
    fields = FIELDS[dtype]
    shape = (rows, in_features // dtype.block_size, dtype.block_bytes)
    weight = KernelWeight(dtype, np.zeros(shape, np.uint8))
    weight.blocks[:, :, fields.quants] = quant
    weight.blocks[:, :, fields.scales] = scale
    for start in fields.halves:
        _set_half(weight, start, np.full(shape[:2], half))
    return weight


def _set_half(weight: KernelWeight, start: int, numbers: DoubleArray) -> None:
    halves = numbers.astype(np.float16)[..., None].view(np.uint8)
    weight.blocks[:, :, start : start + 2] = halves
