"""Matrices of the lowered graph, and how they are written in floating point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from powerserve.backend.base import FloatArray
from powerserve.convert.qnn.float_parts import Indices
from powerserve.convert.qnn.onnx_graph import OnnxGraph


@dataclass(frozen=True, slots=True)
class LinearPart:
    """A matrix of the model, or those of its rows or columns that share a precision.

    Attributes:
        name: unique in the model, the same for every batch size.
        rows, columns: indices into the model's matrix.
        is_float: it must not be quantised.
        gain: what its input was multiplied with, and its weights are divided by.
    """

    name: str
    weight: str
    rows: Indices
    columns: Indices
    is_float: bool
    gain: float
    load: Callable[[str], FloatArray]

    def matrix(self) -> FloatArray:
        """Its weights, [rows, columns]."""
        matrix = self.load(self.weight)
        if len(self.rows) < matrix.shape[0]:
            matrix = matrix[self.rows]
        if len(self.columns) < matrix.shape[1]:
            matrix = matrix[:, self.columns]
        return matrix if self.gain == 1 else matrix / self.gain


class LinearWriter(Protocol):
    """How matrices get into a graph: in floating point, or quantised."""

    def write(self, graph: OnnxGraph, part: LinearPart, x: str, output: str) -> None:
        """Append what computes `output` [B, rows] from `x` [B, columns], both float32."""
        ...


class FloatLinears:
    """Every matrix in float32; the NPU's compiler makes float16 of it."""

    def write(self, graph: OnnxGraph, part: LinearPart, x: str, output: str) -> None:
        """Append a Gemm, whose weights are [out, in]."""
        weight = f"{part.name}.weight"
        if weight not in graph.constants:
            graph.constant(weight, part.matrix())
        graph.node("Gemm", [x, weight], output, transB=1)
