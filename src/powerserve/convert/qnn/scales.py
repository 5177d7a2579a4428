"""The step between neighbouring codes of a quantised matrix, per row or per block of a row.

Codes are signed and symmetric: 4 bits reach from -8 to 7, and a weight is its code times the scale.
"""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import FloatArray

_CLIP_RATIOS = np.linspace(1.0, 0.5, 26, dtype=np.float32)
_NUM_REFINEMENTS = 2
_SMALLEST = np.float32(1e-8)  # the scale of a row of zeros


def largest_code(bits: int) -> int:
    """The largest positive code; the smallest negative one is one further from zero."""
    return (1 << bits - 1) - 1


def minmax_scales(weights: FloatArray, bits: int) -> FloatArray:
    """The scales that clip nothing: weights [..., n] -> [...]."""
    largest: FloatArray = np.abs(weights).max(axis=-1) / np.float32(largest_code(bits))
    return np.maximum(largest, _SMALLEST)


def mse_scales(weights: FloatArray, bits: int, importance: FloatArray | None = None) -> FloatArray:
    """The scales with the least squared error: weights [..., n] -> [...].

    Scales that clip more and more are tried; the best is then refined by least squares over the
    codes it gives. `importance`, broadcast over `weights`, weighs the errors.
    """
    widest = minmax_scales(weights, bits)
    best, least = widest, _error(weights, widest, bits, importance)
    for ratio in _CLIP_RATIOS[1:]:
        best, least = _better(weights, widest * ratio, bits, importance, best, least)
    for _ in range(_NUM_REFINEMENTS):
        fitted = _fitted(weights, best, bits, importance)
        best, least = _better(weights, fitted, bits, importance, best, least)
    return best


def codes_of(weights: FloatArray, scales: FloatArray, bits: int) -> FloatArray:
    """The nearest codes, as whole float32 numbers: weights [..., n], scales [...]."""
    largest = largest_code(bits)
    codes: FloatArray = np.rint(weights / scales[..., None])
    return np.clip(codes, -largest - 1, largest, out=codes)


def _better(
    weights: FloatArray,
    scales: FloatArray,
    bits: int,
    importance: FloatArray | None,
    best: FloatArray,
    least: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """For each row the scale with the smaller error, and that error."""
    error = _error(weights, scales, bits, importance)
    return np.where(error < least, scales, best), np.minimum(error, least)


def _error(
    weights: FloatArray, scales: FloatArray, bits: int, importance: FloatArray | None
) -> FloatArray:
    difference = codes_of(weights, scales, bits)
    difference *= scales[..., None]
    difference -= weights
    difference *= difference
    if importance is not None:
        difference *= importance
    error: FloatArray = difference.sum(axis=-1)
    return error


def _fitted(
    weights: FloatArray, scales: FloatArray, bits: int, importance: FloatArray | None
) -> FloatArray:
    """The scale that suits the codes of `scales` best; never negative."""
    codes = codes_of(weights, scales, bits)
    weighted = codes if importance is None else codes * importance
    above = (weights * weighted).sum(axis=-1)
    below = (codes * weighted).sum(axis=-1)
    fitted: FloatArray = np.where(below > 0, above / np.maximum(below, _SMALLEST), scales)
    return np.maximum(fitted, _SMALLEST)
