"""The dozen operations a model is made of, each with its own shape inference.

An operation is data: what it computes, never how. Shapes are written row-major; a dimension is an
integer or one of the two symbols `TOKENS` (tokens in the step) and `OUTPUTS` (tokens whose logits
are wanted). All activations are float32; weights keep the type of their file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from powerserve.core.config import RopeConfig

Dim = int | str
Shape = tuple[Dim, ...]

TOKENS: Final = "tokens"
OUTPUTS: Final = "outputs"


class ShapeError(ValueError):
    """An operation was given inputs it cannot take: a bug, or a file with wrong sizes."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A named tensor of the model file; row-major: a matrix is [out_features, in_features]."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """Base of all operations."""

    def infer(self, *inputs: Shape) -> Shape:
        """The output's shape; raises ShapeError if the inputs do not fit."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Embedding(Operation):
    """ids [T] -> rows of a table [V, D]: [T, D]."""

    table: Weight

    def infer(self, *inputs: Shape) -> Shape:
        (ids,) = _ranks(self, inputs, 1)
        return (ids[0], self.table.shape[1])


@dataclass(frozen=True, slots=True)
class Linear(Operation):
    """x [T, in] -> x · weightᵀ + bias: [T, out]."""

    weight: Weight
    bias: Weight | None = None

    def infer(self, *inputs: Shape) -> Shape:
        (x,) = _ranks(self, inputs, 2)
        out_features, in_features = self.weight.shape
        if x[1] != in_features:
            raise ShapeError(f"{self.weight.name} takes {in_features} features, not {x[1]}")
        if self.bias is not None and self.bias.shape != (out_features,):
            raise ShapeError(f"{self.bias.name} has shape {self.bias.shape}, not ({out_features},)")
        return (x[0], out_features)


@dataclass(frozen=True, slots=True)
class RMSNorm(Operation):
    """x [..., D] -> x / sqrt(mean(x²) + eps) · weight, over D (Zhang & Sennrich 2019)."""

    weight: Weight
    eps: float

    def infer(self, *inputs: Shape) -> Shape:
        (x,) = _ranks(self, inputs, None)
        if self.weight.shape != (x[-1],):
            raise ShapeError(f"{self.weight.name} has shape {self.weight.shape}, not ({x[-1]},)")
        return x


@dataclass(frozen=True, slots=True)
class SplitHeads(Operation):
    """x [T, heads · d] -> [T, heads, d]."""

    num_heads: int

    def infer(self, *inputs: Shape) -> Shape:
        (x,) = _ranks(self, inputs, 2)
        if not isinstance(x[1], int) or x[1] % self.num_heads:
            raise ShapeError(f"{x[1]} features do not split into {self.num_heads} heads")
        return (x[0], self.num_heads, x[1] // self.num_heads)


@dataclass(frozen=True, slots=True)
class Rope(Operation):
    """x [T, heads, d], positions [T] -> x rotated by its position (Su et al. 2021).

    `factors` [dim / 2] divide the frequencies, as Llama 3.1 needs.
    """

    rope: RopeConfig
    factors: Weight | None = None

    def infer(self, *inputs: Shape) -> Shape:
        x, positions = _ranks(self, inputs, 3, 1)
        if positions[0] != x[0]:
            raise ShapeError(f"{positions[0]} positions for {x[0]} tokens")
        if not isinstance(x[2], int) or self.rope.dim > x[2] or self.rope.dim % 2:
            raise ShapeError(f"cannot rotate {self.rope.dim} of {x[2]} dimensions")
        if self.factors is not None and self.factors.shape != (self.rope.dim // 2,):
            raise ShapeError(
                f"{self.factors.name} has shape {self.factors.shape}, not ({self.rope.dim // 2},)"
            )
        return x


@dataclass(frozen=True, slots=True)
class Attention(Operation):
    """q [T, heads, d], k and v [T, kv_heads, d] -> [T, heads · d].

    Stores k and v in the cells of `layer`, then attends to every cell the batch lets a token see.
    One operation, because backends differ in how cells are laid out and masked.
    """

    layer: int
    scale: float

    def infer(self, *inputs: Shape) -> Shape:
        q, k, v = _ranks(self, inputs, 3, 3, 3)
        if k != v or k[0] != q[0] or k[2] != q[2]:
            raise ShapeError(f"attention over q {q}, k {k}, v {v}")
        if not isinstance(q[1], int) or not isinstance(k[1], int) or q[1] % k[1]:
            raise ShapeError(f"{q[1]} query heads cannot share {k[1]} key heads")
        assert isinstance(q[2], int)
        return (q[0], q[1] * q[2])


@dataclass(frozen=True, slots=True)
class Add(Operation):
    """a + b, same shapes."""

    def infer(self, *inputs: Shape) -> Shape:
        a, b = _ranks(self, inputs, None, None)
        if a != b:
            raise ShapeError(f"cannot add {a} and {b}")
        return a


@dataclass(frozen=True, slots=True)
class SwiGLU(Operation):
    """gate, up [T, F] -> silu(gate) · up (Shazeer 2020)."""

    def infer(self, *inputs: Shape) -> Shape:
        gate, up = _ranks(self, inputs, 2, 2)
        if gate != up:
            raise ShapeError(f"gate {gate} and up {up} differ")
        return gate


@dataclass(frozen=True, slots=True)
class SumSquares(Operation):
    """x [T, D] -> Σ x² over all tokens: [D]; what importance matrices are made of."""

    def infer(self, *inputs: Shape) -> Shape:
        (x,) = _ranks(self, inputs, 2)
        return (x[1],)


@dataclass(frozen=True, slots=True)
class SelectRows(Operation):
    """x [T, D], rows [N] -> x[rows]: [N, D]; placed before the work that only outputs need."""

    def infer(self, *inputs: Shape) -> Shape:
        x, rows = _ranks(self, inputs, 2, 1)
        return (rows[0], x[1])


def _ranks(
    operation: Operation, inputs: tuple[Shape, ...], *ranks: int | None
) -> tuple[Shape, ...]:
    """Check the number of inputs and the rank of each (None: any)."""
    fits = len(inputs) == len(ranks) and all(
        rank is None or len(shape) == rank for shape, rank in zip(inputs, ranks, strict=True)
    )
    if not fits:
        raise ShapeError(f"{type(operation).__name__} cannot take inputs of shapes {inputs}")
    return inputs
