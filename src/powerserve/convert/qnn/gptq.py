"""Rounding that makes up for its own errors (GPTQ, Frantar et al. 2023).

Columns are rounded one after another, those with the largest inputs first; what rounding a column
changes in the layer's output is compensated, as far as inputs are correlated, in the columns that
are not rounded yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.convert.qnn.scales import largest_code

BLOCK_COLUMNS = 32  # columns whose effect on later ones is applied at once
_DAMPING = 1e-3  # added to the diagonal, times its mean


@dataclass(frozen=True, slots=True)
class Compensation:
    """In which order the columns of a matrix are rounded, and how their errors are spread.

    Attributes:
        order: indices of the columns.
        factor: upper triangular, float32 [columns, columns], both in that order: the Cholesky
            factor of the inverse of Σ x·xᵀ.
    """

    order: npt.NDArray[np.intp]
    factor: FloatArray


def compensation(hessian: FloatArray, num_tokens: int) -> Compensation:
    """What follows from the inputs of a layer: their Σ x·xᵀ [columns, columns] over some tokens.

    A text has too few tokens to know all correlations between features; making up for errors by
    those that only seem to be there does harm on other texts. So correlations are shrunk, the more
    so the fewer tokens there are for each feature.
    """
    size = len(hessian)
    diagonal = np.diagonal(hessian).astype(np.float64)
    order = np.argsort(-diagonal, kind="stable")
    shrunk = hessian[np.ix_(order, order)] * np.float64(num_tokens / (num_tokens + size))
    # Features that were zero in every token get a one: any rounding will do.
    damping = _DAMPING * max(float(diagonal.mean()), 1e-12)
    shrunk[np.diag_indices_from(shrunk)] = np.where(diagonal > 0, diagonal, 1)[order] + damping
    factor = np.linalg.cholesky(np.linalg.inv(shrunk)).T.astype(np.float32)
    return Compensation(order, factor)


def compensated_codes(
    weights: FloatArray, scales: FloatArray, bits: int, spread: Compensation
) -> FloatArray:
    """Codes [rows, columns] of weights with scales [rows, groups of columns]."""
    groups = spread.order // (weights.shape[1] // scales.shape[1])
    remaining = weights.T[spread.order].astype(np.float32)  # [columns, rows], a copy
    codes = np.empty_like(remaining)
    for start in range(0, len(remaining), BLOCK_COLUMNS):
        block = slice(start, min(start + BLOCK_COLUMNS, len(remaining)))
        errors = np.empty_like(remaining[block])
        for column in range(block.start, block.stop):
            row_scales = scales[:, groups[column]]
            codes[column] = _nearest(remaining[column], row_scales, bits)
            error = remaining[column] - codes[column] * row_scales
            errors[column - start] = error / spread.factor[column, column]
            later = slice(column + 1, block.stop)
            remaining[later] -= np.outer(spread.factor[column, later], errors[column - start])
        remaining[block.stop :] -= spread.factor[block, block.stop :].T @ errors
    result = np.empty_like(weights)
    result[:, spread.order] = codes.T
    return result


def _nearest(column: FloatArray, scales: FloatArray, bits: int) -> FloatArray:
    """Codes of one column [rows]."""
    largest = largest_code(bits)
    codes: FloatArray = np.clip(np.rint(column / scales), -largest - 1, largest)
    return codes
