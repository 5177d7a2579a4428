"""What the kernels should compute, in numpy on dequantised weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from error_bounds import ROUNDING, SMALLEST_NORMAL, Bounded, exactly, product
from kernel_weights import DoubleArray, FloatArray, KernelWeight

BLOCK = 32  # activations that share a scale


@dataclass(frozen=True, eq=False)
class Linear:
    """An operation of the kernels and its inputs: linear(x) for each weight, side by side."""

    x: FloatArray = field(repr=False)  # [columns, in_features]
    weights: tuple[KernelWeight, ...]
    norm: FloatArray | None = None  # [in_features]
    biases: tuple[FloatArray, ...] = ()  # [rows] each
    residual: FloatArray | None = None  # [columns, out_features]
    swiglu: bool = False  # silu(first product) · second product
    eps: float = 1e-5

    @property
    def out_features(self) -> int:
        """Numbers of a column of the result."""
        return self.weights[0].rows if self.swiglu else sum(each.rows for each in self.weights)

    def first(self, num_columns: int) -> Linear:
        """The same for fewer columns."""
        residual = None if self.residual is None else self.residual[:num_columns]
        return replace(self, x=self.x[:num_columns], residual=residual)


def expected(operation: Linear, *, bfloat16: bool) -> Bounded:
    """The result [columns, out_features], with activations (and weights) rounded as kernels do.

    Activations become int8 with a scale for each 32; with `bfloat16`, they and the weights become
    bfloat16.
    """
    multiply = _bfloat16_product if bfloat16 else _int8_product
    x = _normalised(operation)
    products = [multiply(x, weight) for weight in operation.weights]
    biases = operation.biases
    if biases:
        products = [each + exactly(bias) for each, bias in zip(products, biases, strict=True)]
    if operation.swiglu:
        gate, up = products
        products = [gate.silu() * up]
    result = Bounded(
        np.concatenate([each.value for each in products], axis=1),
        np.concatenate([each.error for each in products], axis=1),
    )
    return result if operation.residual is None else result + exactly(operation.residual)


def as_int8(x: Bounded) -> Bounded:
    """Each 32 numbers as multiples of 1/127 of the largest; a near tie may go either way."""
    blocks = x.value.reshape(len(x.value), -1, BLOCK)
    error = x.error.reshape(blocks.shape)
    most = np.abs(blocks).max(axis=2, keepdims=True)
    scale = np.where(most > 0, most / 127, 1)
    steps = blocks / scale
    relative = error.max(axis=2, keepdims=True) / np.where(most > 0, most, 1) + 4 * ROUNDING
    slack = error / scale + np.abs(steps) * relative
    quants, low, high = np.rint(steps), np.rint(steps - slack), np.rint(steps + slack)
    off = np.maximum(high - quants, quants - low) + np.abs(quants) * relative
    return Bounded((quants * scale).reshape(x.value.shape), (off * scale).reshape(x.value.shape))


def as_bfloat16(x: Bounded) -> Bounded:
    """The nearest numbers of 8 significant bits; a near tie may go either way."""
    value, low, high = (_bfloat16(each) for each in (x.value, x.value - x.error, x.value + x.error))
    return Bounded(value, np.maximum(high - value, value - low) + SMALLEST_NORMAL)


def _normalised(operation: Linear) -> Bounded:
    x = operation.x.astype(np.float64)
    if operation.norm is None:
        return exactly(x)
    mean = (x * x).mean(axis=1, keepdims=True)
    factor = 1 / np.sqrt(mean + float(np.float32(operation.eps)))
    value = x * factor * operation.norm
    return Bounded(value, 8 * ROUNDING * np.abs(value))


def _int8_product(x: Bounded, weight: KernelWeight) -> Bounded:
    # Scales may be those of 16 features, and each brings a product and a minimum to add; the
    # product, the sum of the quants and what is added of them are rounded on their way.
    roundings = 2 * (weight.in_features // 16) + 4
    return product(as_int8(x), weight.values.astype(np.float64), weight.summands, roundings)


def _bfloat16_product(x: Bounded, weight: KernelWeight) -> Bounded:
    values = _bfloat16(weight.values.astype(np.float64))
    return product(as_bfloat16(x), values, np.abs(values), weight.in_features + 4)


def _bfloat16(x: DoubleArray) -> DoubleArray:
    """The upper half of the float32, rounded to the nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
