"""Rounding that makes up for its own errors (GPTQ, Frantar et al. 2023).

Columns are rounded one after another; what rounding a column changes in the layer's output is
compensated, as far as inputs are correlated, in the columns that are not rounded yet.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from powerserve.backend.base import FloatArray
from powerserve.convert.qnn.scales import largest_code

BLOCK_COLUMNS = 32  # columns whose effect on later ones is applied at once
_DAMPING = 1e-3  # added to the diagonal, times its mean

FindScales = Callable[[FloatArray, slice], FloatArray]
"""Scales [rows] for the given columns [rows, n], which are those of the slice."""


def gptq_codes(
    weights: FloatArray, inverse: FloatArray, bits: int, group_size: int, find_scales: FindScales
) -> tuple[FloatArray, FloatArray]:
    """Codes [rows, columns] and scales [rows, columns / group_size].

    `inverse` is the `inverse_factor` of the layer's inputs. Every group of columns gets its scales
    when it is reached, from its weights as they are by then.
    """
    remaining = np.array(weights.T, np.float32, order="C")  # [columns, rows], a copy
    codes, scales = np.empty_like(remaining), []
    for start in range(0, len(remaining), BLOCK_COLUMNS):
        block = slice(start, min(start + BLOCK_COLUMNS, len(remaining)))
        errors = np.empty_like(remaining[block])
        for column in range(block.start, block.stop):
            if column % group_size == 0:
                group = slice(column, column + group_size)
                scales.append(find_scales(remaining[group].T, group))
            codes[column], errors[column - start] = _round(
                remaining[column], scales[-1], inverse[column, column], bits
            )
            later = slice(column + 1, block.stop)
            remaining[later] -= np.outer(inverse[column, later], errors[column - start])
        remaining[block.stop :] -= inverse[block, block.stop :].T @ errors
    return codes.T, np.stack(scales, axis=1)


def inverse_factor(hessian: FloatArray, num_tokens: int) -> FloatArray:
    """The upper Cholesky factor of the inverse of Σ x·xᵀ [columns, columns] over so many tokens.

    A text has too few tokens to know all correlations of a layer's inputs; errors that are made up
    for by those that only seem to be there are worse on other texts. So correlations are shrunk
    towards none, the more so the fewer tokens there are for each feature.
    """
    size = len(hessian)
    shrunk = hessian.astype(np.float64) * (num_tokens / (num_tokens + size))
    diagonal = np.diagonal(hessian).astype(np.float64)
    unused = diagonal <= 0  # features that were zero in every token: any rounding will do
    diagonal = np.where(unused, 1.0, diagonal) + _DAMPING * max(float(diagonal.mean()), 1e-12)
    shrunk[np.diag_indices_from(shrunk)] = diagonal
    factor: FloatArray = np.linalg.cholesky(np.linalg.inv(shrunk)).T.astype(np.float32)
    return factor


def _round(
    column: FloatArray, scales: FloatArray, pivot: float, bits: int
) -> tuple[FloatArray, FloatArray]:
    """Codes of one column [rows], and its error in units of the pivot."""
    largest = largest_code(bits)
    codes = np.clip(np.rint(column / scales), -largest - 1, largest)
    return codes, (column - codes * scales) / np.float32(pivot)
