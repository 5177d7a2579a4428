"""Shape inference of each operation, and what a graph tells about itself."""

from __future__ import annotations

import pytest

from powerserve.core.config import RopeConfig, RopeStyle
from powerserve.graph import Graph, ShapeError, Weight
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
    SwiGLU,
)

MATRIX = Weight("matrix", (6, 4))
ROPE = RopeConfig(RopeStyle.HALF_SPLIT, dim=4)

FITTING: list[tuple[Operation, list[Shape], Shape]] = [
    (Embedding(MATRIX), [(TOKENS,)], (TOKENS, 4)),
    (Linear(MATRIX), [(TOKENS, 4)], (TOKENS, 6)),
    (Linear(MATRIX, Weight("bias", (6,))), [(OUTPUTS, 4)], (OUTPUTS, 6)),
    (RMSNorm(Weight("norm", (4,)), 1e-5), [(TOKENS, 3, 4)], (TOKENS, 3, 4)),
    (SplitHeads(3), [(TOKENS, 6)], (TOKENS, 3, 2)),
    (Rope(ROPE), [(TOKENS, 2, 6), (TOKENS,)], (TOKENS, 2, 6)),
    (Rope(ROPE, Weight("factors", (2,))), [(TOKENS, 2, 4), (TOKENS,)], (TOKENS, 2, 4)),
    (Attention(0, 1.0), [(TOKENS, 4, 8), (TOKENS, 2, 8), (TOKENS, 2, 8)], (TOKENS, 32)),
    (Add(), [(TOKENS, 4), (TOKENS, 4)], (TOKENS, 4)),
    (SwiGLU(), [(TOKENS, 4), (TOKENS, 4)], (TOKENS, 4)),
    (SelectRows(), [(TOKENS, 4), (OUTPUTS,)], (OUTPUTS, 4)),
]

MISFITTING: list[tuple[Operation, list[Shape]]] = [
    (Embedding(MATRIX), [(TOKENS, 1)]),
    (Linear(MATRIX), [(TOKENS, 6)]),
    (Linear(MATRIX), [(TOKENS, 2, 4)]),
    (Linear(MATRIX, Weight("bias", (4,))), [(TOKENS, 4)]),
    (RMSNorm(Weight("norm", (3,)), 1e-5), [(TOKENS, 4)]),
    (SplitHeads(4), [(TOKENS, 6)]),
    (Rope(ROPE), [(TOKENS, 2, 2), (TOKENS,)]),
    (Rope(ROPE), [(TOKENS, 2, 4), (OUTPUTS,)]),
    (Rope(ROPE, Weight("factors", (4,))), [(TOKENS, 2, 4), (TOKENS,)]),
    (Attention(0, 1.0), [(TOKENS, 3, 8), (TOKENS, 2, 8), (TOKENS, 2, 8)]),
    (Attention(0, 1.0), [(TOKENS, 4, 8), (TOKENS, 2, 8), (TOKENS, 4, 8)]),
    (Attention(0, 1.0), [(TOKENS, 4, 8), (TOKENS, 2, 4), (TOKENS, 2, 4)]),
    (Attention(0, 1.0), [(TOKENS, 4, 8), (TOKENS, 2, 8)]),
    (Add(), [(TOKENS, 4), (OUTPUTS, 4)]),
    (SwiGLU(), [(TOKENS, 4), (TOKENS, 6)]),
    (SelectRows(), [(TOKENS, 2, 2), (OUTPUTS,)]),
]


def name_of(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, Operation) else None


@pytest.mark.parametrize(("operation", "inputs", "output"), FITTING, ids=name_of)
def test_output_shape(operation: Operation, inputs: list[Shape], output: Shape) -> None:
    assert operation.infer(*inputs) == output


@pytest.mark.parametrize(("operation", "inputs"), MISFITTING, ids=name_of)
def test_inputs_that_do_not_fit_are_refused(operation: Operation, inputs: list[Shape]) -> None:
    with pytest.raises(ShapeError):
        operation.infer(*inputs)


def test_a_refused_operation_leaves_no_node() -> None:
    graph = Graph()
    with pytest.raises(ShapeError):
        graph.split_heads(graph.embedding(graph.token_ids, MATRIX), 3)
    assert [type(node.operation) for node in graph.nodes] == [Embedding]


def test_weights_are_listed_once_in_order_of_first_use() -> None:
    graph = Graph()
    bias, norm, factors = Weight("bias", (4,)), Weight("norm", (4,)), Weight("factors", (2,))
    x = graph.embedding(graph.token_ids, Weight("table", (9, 4)))
    x = graph.linear(graph.rms_norm(x, norm, 1e-5), Weight("square", (4, 4)), bias)
    graph.rope(graph.split_heads(x, 1), ROPE, factors)
    graph.linear(x, Weight("table", (9, 4)))
    assert list(graph.weights()) == ["table", "norm", "square", "bias", "factors"]
    assert graph.weights()["bias"] is bias


def test_values_have_indices_of_their_own() -> None:
    graph = Graph()
    made = [graph.embedding(graph.token_ids, MATRIX) for _ in range(3)]
    values = [graph.token_ids, graph.positions, graph.output_rows, *made]
    assert len({value.index for value in values}) == len(values)
