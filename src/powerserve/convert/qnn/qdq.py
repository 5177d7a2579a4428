"""Quantised linear layers in ONNX: QuantizeLinear and DequantizeLinear around a Gemm.

The NPU's compiler makes one integer operation of each such group. Source: the ONNX operators of
opset 21, and the QDQ format that ONNX Runtime's QNN execution provider documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from powerserve.convert.qnn.linear import FloatLinears, LinearPart
from powerserve.convert.qnn.onnx_graph import Constant, OnnxGraph, constant_of, int4_constant
from powerserve.convert.qnn.quantise import QuantisedMatrix
from powerserve.convert.qnn.statistics import NUM_ACTIVATION_STEPS, ValueRange

_SMALLEST_RANGE = 1e-6


@dataclass(frozen=True, slots=True)
class QuantisedLinear:
    """A matrix, and the ranges of its input and output that activations are quantised by."""

    matrix: QuantisedMatrix
    input: ValueRange
    output: ValueRange


@dataclass(frozen=True, slots=True)
class QuantisedLinears:
    """Writes the matrices in `linears`, by part, quantised; others in floating point."""

    linears: Mapping[str, QuantisedLinear]

    def write(self, graph: OnnxGraph, part: LinearPart, x: str, output: str) -> None:
        """Append what computes `output` from `x`."""
        linear = self.linears.get(part.name)
        if linear is None:
            FloatLinears().write(graph, part, x, output)
            return
        rounded = f"{x}_dequantised"
        if not graph.has(rounded):  # layers with the same input share its rounding
            _round_activation(graph, x, rounded, linear.input)
        weight = _dequantised_weight(graph, f"{part.name}.weight", linear.matrix)
        product = graph.node("Gemm", [rounded, weight], f"{output}_product", transB=1)
        _round_activation(graph, product, output, linear.output)


def _round_activation(graph: OnnxGraph, x: str, output: str, seen: ValueRange) -> None:
    """x as 16-bit codes and back: the type that integer operations read and write."""
    scale, zero_point = activation_parameters(seen)
    parameters = [
        graph.constant(f"{output}_scale", np.array(scale, np.float32)),
        graph.constant(f"{output}_zero_point", np.array(zero_point, np.uint16)),
    ]
    codes = graph.node("QuantizeLinear", [x, *parameters], f"{output}_codes")
    graph.node("DequantizeLinear", [codes, *parameters], output)


def activation_parameters(seen: ValueRange) -> tuple[float, int]:
    """Scale and zero point of a range, which has zero in it."""
    scale = max(seen.high - seen.low, _SMALLEST_RANGE) / NUM_ACTIVATION_STEPS
    return scale, min(round(-seen.low / scale), NUM_ACTIVATION_STEPS)


def _dequantised_weight(graph: OnnxGraph, name: str, matrix: QuantisedMatrix) -> str:
    per_row = matrix.scales.shape[1] == 1
    scales = matrix.scales[:, 0] if per_row else matrix.scales
    parameters = [
        graph.constant(f"{name}_codes", _code_constant(matrix.codes, matrix.bits)),
        graph.constant(f"{name}_scales", scales),
        graph.constant(
            f"{name}_zero_points", _code_constant(np.zeros(scales.shape, np.int8), matrix.bits)
        ),
    ]
    layout = {"axis": 0} if per_row else {"axis": 1, "block_size": matrix.block_size}
    return graph.node("DequantizeLinear", parameters, name, **layout)


def _code_constant(codes: np.ndarray[tuple[int, ...], np.dtype[np.int8]], bits: int) -> Constant:
    return int4_constant(codes) if bits == 4 else constant_of(codes)
