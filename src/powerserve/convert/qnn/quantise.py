"""Matrices as 4- or 8-bit codes with scales, chosen with what is known of their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.convert.qnn.gptq import compensated_codes
from powerserve.convert.qnn.scales import codes_of, minmax_scales, mse_scales
from powerserve.convert.qnn.statistics import InputStatistics
from powerserve.core.errors import UsageError

FLOAT_BITS = 16
WIDE_BITS = 8
MATRICES = (
    *("attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_gate", "ffn_up", "ffn_down"),
)  # of a layer
BLOCK_SIZES = (32, 64)  # what the NPU's compiler takes
_PIECE_WEIGHTS = 1 << 22  # quantised at once: searching takes memory for several copies of them


class ScaleSearch(Enum):
    """How scales and codes of weights are chosen."""

    MINMAX = "minmax"  # nothing is clipped, codes are the nearest
    MSE = "mse"  # the least error, weighed by the energy of each input feature
    GPTQ = "gptq"  # as mse, and later columns make up for the errors of earlier ones


@dataclass(frozen=True, slots=True)
class QuantisationOptions:
    """How a model is quantised; activations of quantised layers have 16 bits.

    Attributes:
        weight_bits: 4, 8 or 16; 16 is floating point.
        scales: how scales are found.
        block_size: weights of a row that share a scale, 32 or 64; None: the whole row. Rows that
            are no multiple of it have one scale.
        lm_head_bits: as `weight_bits`, for the output layer.
        wide_matrices: what has 8 bits in every layer, however few the others have; of MATRICES.
    """

    weight_bits: int = 4
    scales: ScaleSearch = ScaleSearch.GPTQ
    block_size: int | None = None
    lm_head_bits: int = 8
    wide_matrices: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Raises UsageError for a value that cannot be compiled."""
        for bits in (self.weight_bits, self.lm_head_bits):
            if bits not in (4, 8, FLOAT_BITS):
                raise UsageError(f"weights can have 4, 8 or {FLOAT_BITS} bits, not {bits}")
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            raise UsageError(
                f"blocks of {self.block_size} weights are not possible; 32 and 64 are, or none"
            )
        if unknown := self.wide_matrices.difference(MATRICES):
            raise UsageError(
                f"layers have no matrix {min(unknown)!r}; they have {', '.join(MATRICES)}"
            )

    def bits(self, part: str) -> int:
        """Bits of the weights of a part of a layer (`blk.0.attn_q`)."""
        is_wide = any(f".{name}" in part for name in self.wide_matrices)
        return max(self.weight_bits, WIDE_BITS) if is_wide else self.weight_bits


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """weight[i, j] = codes[i, j] · scales[i, j // block].

    Attributes:
        codes: int8 [out, in], also for 4 bits.
        scales: float32 [out, in / block]; one column where a row has one scale.
        bits: 4 or 8.
    """

    codes: npt.NDArray[np.int8]
    scales: FloatArray
    bits: int

    @property
    def block_size(self) -> int:
        """Weights of a row that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def weights(self) -> FloatArray:
        """What the codes stand for, [out, in]."""
        scales = np.repeat(self.scales, self.block_size, axis=1)
        weights: FloatArray = np.multiply(self.codes, scales, dtype=np.float32)
        return weights


def quantise_matrix(
    weights: FloatArray, seen: InputStatistics, bits: int, options: QuantisationOptions
) -> QuantisedMatrix:
    """Quantise weights [out, in] of a layer whose inputs were `seen`."""
    step = max(1, _PIECE_WEIGHTS // weights.shape[1])
    pieces = [
        _quantise_rows(weights[first : first + step], seen, bits, options)
        for first in range(0, len(weights), step)
    ]
    codes, scales = (np.concatenate(each) for each in zip(*pieces, strict=True))
    return QuantisedMatrix(codes, scales, bits)


def _quantise_rows(
    weights: FloatArray, seen: InputStatistics, bits: int, options: QuantisationOptions
) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Codes and scales of some rows, which do not depend on other rows."""
    size = weights.shape[1]
    if options.block_size is not None and size % options.block_size == 0:
        size = options.block_size
    blocks = weights.reshape(len(weights), -1, size)
    if options.scales is ScaleSearch.MINMAX:
        scales = minmax_scales(blocks, bits)
    else:
        scales = mse_scales(blocks, bits, _importance(seen).reshape(-1, size))
    if options.scales is ScaleSearch.GPTQ:
        codes = compensated_codes(weights, scales, bits, seen.compensation())
    else:
        codes = codes_of(blocks, scales, bits).reshape(weights.shape)
    return codes.astype(np.int8), scales


def _importance(seen: InputStatistics) -> FloatArray:
    """How much an error in each column counts: the mean square of its input feature."""
    mean = float(seen.squares.mean())
    if mean == 0:
        return np.ones(len(seen.squares), np.float32)
    return (seen.squares / mean).astype(np.float32)
