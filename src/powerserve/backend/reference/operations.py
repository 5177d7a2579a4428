"""The operations of `graph/ops.py` that need neither cache nor batch, on float32 arrays."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import FloatArray


def linear(x: FloatArray, weight: FloatArray, bias: FloatArray | None) -> FloatArray:
    """x [T, in], weight [out, in] -> x · weightᵀ + bias: [T, out]."""
    product: FloatArray = x @ weight.T
    if bias is not None:
        product += bias
    return product


def rms_norm(x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
    """x [..., D] -> x / sqrt(mean(x²) + eps) · weight."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    normalised: FloatArray = x / np.sqrt(mean_square + np.float32(eps))
    return normalised * weight


def swiglu(gate: FloatArray, up: FloatArray) -> FloatArray:
    """silu(gate) · up."""
    decay = np.exp(-np.abs(gate))  # never overflows, unlike exp(-gate)
    sigmoid: FloatArray = np.where(gate >= 0, 1, decay) / (1 + decay)
    return gate * sigmoid * up


def split_heads(x: FloatArray, num_heads: int) -> FloatArray:
    """x [T, heads · d] -> [T, heads, d]."""
    return x.reshape(len(x), num_heads, x.shape[1] // num_heads)


def sum_squares(x: FloatArray) -> FloatArray:
    """x [T, D] -> Σ x² over T: [D]."""
    total: FloatArray = np.square(x, dtype=np.float64).sum(axis=0).astype(np.float32)
    return total
