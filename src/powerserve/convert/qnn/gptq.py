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
_SMALL = 128  # columns of a triangular matrix that is inverted at once


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
    energies = np.diagonal(hessian)
    order = np.argsort(-energies, kind="stable")
    # Features that were zero in every token get a one: any rounding will do.
    roots = np.sqrt(np.where(energies > 0, energies, 1)[order])
    correlations = hessian[np.ix_(order, order)]
    correlations /= roots[:, None] * (1 + len(hessian) / num_tokens)
    correlations /= roots
    np.fill_diagonal(correlations, 1)
    # With the columns reversed, the inverse of a Cholesky factor is the factor of the inverse.
    lower = np.linalg.cholesky(correlations[::-1, ::-1])
    factor = np.ascontiguousarray(_inverse_of_lower(lower)[::-1, ::-1])
    factor /= roots
    return Compensation(order, factor)


def _inverse_of_lower(matrix: FloatArray) -> FloatArray:
    """The inverse of a lower triangular matrix, by halves."""
    if len(matrix) <= _SMALL:
        small: FloatArray = np.linalg.inv(matrix)
        return small
    half = len(matrix) // 2
    first, last = _inverse_of_lower(matrix[:half, :half]), _inverse_of_lower(matrix[half:, half:])
    inverse = np.zeros_like(matrix)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -last @ matrix[half:, :half] @ first
    return inverse


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
