"""A model's computation as pure data: values, and the operations that connect them in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from powerserve.core.config import RopeConfig
from powerserve.graph.ops import (
    OUTPUTS,
    TOKENS,
    Add,
    Attention,
    Embedding,
    Linear,
    Operation,
    RMSNorm,
    Rope,
    SelectRows,
    Shape,
    SplitHeads,
    SumSquares,
    SwiGLU,
    Weight,
)


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the computation; `index` is unique within its graph."""

    index: int
    shape: Shape
    name: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation with the values it reads and the value it makes."""

    operation: Operation
    inputs: tuple[Value, ...]
    output: Value

    def weights(self) -> Iterator[Weight]:
        """The weights that the operation reads, the matrix before its bias."""
        match self.operation:
            case Embedding(table):
                yield table
            case RMSNorm(weight, _):
                yield weight
            case Linear(weight, bias):
                yield weight
                if bias is not None:
                    yield bias
            case Rope(_, factors) if factors is not None:
                yield factors


@dataclass(slots=True)
class Graph:
    """Nodes in execution order, from the batch's inputs to the logits.

    Built by calling its methods, which append a node, check shapes and return the new value. Every
    batch gives the three inputs: token ids, positions and output rows. Cells and visibility belong
    to Attention, and only the backend needs them.
    """

    nodes: list[Node] = field(default_factory=list)
    logits: Value | None = None
    observed: dict[str, Value] = field(default_factory=dict)  # read beside the logits, by name
    _num_values: int = 0
    token_ids: Value = field(init=False)
    positions: Value = field(init=False)
    output_rows: Value = field(init=False)

    def __post_init__(self) -> None:
        self.token_ids = self._value((TOKENS,), "token_ids")
        self.positions = self._value((TOKENS,), "positions")
        self.output_rows = self._value((OUTPUTS,), "output_rows")

    def append(self, operation: Operation, *inputs: Value, name: str = "") -> Value:
        """Add an operation; raises ShapeError if its inputs do not fit."""
        shape = operation.infer(*(value.shape for value in inputs))
        output = self._value(shape, name)
        self.nodes.append(Node(operation, inputs, output))
        return output

    # One method per operation; the operation's docstring says what it computes.

    def embedding(self, ids: Value, table: Weight) -> Value:
        return self.append(Embedding(table), ids)

    def linear(self, x: Value, weight: Weight, bias: Weight | None = None, name: str = "") -> Value:
        return self.append(Linear(weight, bias), x, name=name)

    def rms_norm(self, x: Value, weight: Weight, eps: float) -> Value:
        return self.append(RMSNorm(weight, eps), x)

    def split_heads(self, x: Value, num_heads: int) -> Value:
        return self.append(SplitHeads(num_heads), x)

    def rope(self, x: Value, rope: RopeConfig, factors: Weight | None = None) -> Value:
        return self.append(Rope(rope, factors), x, self.positions)

    def attention(self, q: Value, k: Value, v: Value, layer: int, scale: float) -> Value:
        return self.append(Attention(layer, scale), q, k, v)

    def add(self, a: Value, b: Value) -> Value:
        return self.append(Add(), a, b)

    def swiglu(self, gate: Value, up: Value) -> Value:
        return self.append(SwiGLU(), gate, up)

    def select_outputs(self, x: Value) -> Value:
        """Keep only the rows whose logits are wanted."""
        return self.append(SelectRows(), x, self.output_rows)

    def sum_squares(self, x: Value) -> Value:
        return self.append(SumSquares(), x)

    def weights(self) -> dict[str, Weight]:
        """Every weight the graph reads, by name, in order of first use."""
        return {weight.name: weight for node in self.nodes for weight in node.weights()}

    def _value(self, shape: Shape, name: str) -> Value:
        value = Value(self._num_values, shape, name)
        self._num_values += 1
        return value
