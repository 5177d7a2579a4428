"""From the model's graph, which every backend runs, to ONNX graphs for the NPU.

One function lowers each operation. Linear layers are Gemms, because MatMuls lose accuracy on the
NPU; the residual stream, norms and RoPE are float32; attention, the KV cache and the mask float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from powerserve.backend.qnn import tensors
from powerserve.backend.qnn.tensors import F16, ChunkShape, GraphSpec, TensorSpec
from powerserve.convert.qnn.float_parts import FloatParts, Group
from powerserve.convert.qnn.linear import FloatLinears, LinearPart, LinearWriter
from powerserve.convert.qnn.lowering_attention import AttentionLowering
from powerserve.convert.qnn.onnx_graph import OnnxGraph
from powerserve.convert.qnn.pieces import Piece, numbered, suffix, whole
from powerserve.convert.qnn.source import NpuModel
from powerserve.graph import Graph, Node, Value, Weight
from powerserve.graph.ops import (
    Add,
    Attention,
    Linear,
    RMSNorm,
    Rope,
    SelectRows,
    SplitHeads,
    SwiGLU,
)

BATCH_16_GAIN = 2.0
"""The emulator of QAIRT 2.51 computes rows from 2 on wrongly at batch size 16 where float16 heads
are joined and quantised, unless they are multiplied with something between. A power of two, which
the output projection's weights are divided by, changes no result."""


@dataclass(frozen=True, slots=True)
class LoweringOptions:
    """What of the lowered graph can be chosen.

    Attributes:
        attention_type: of attention, KV cache and mask; float32 only serves comparisons.
        attention_gain: see BATCH_16_GAIN; the same for all batch sizes that share weights.
        float_parts: what is to stay in floating point.
    """

    attention_type: np.dtype[np.generic] = F16
    attention_gain: float = 1.0
    float_parts: FloatParts = field(default_factory=FloatParts)


def lower_chunk(
    model: NpuModel,
    shape: ChunkShape,
    options: LoweringOptions = LoweringOptions(),
    linears: LinearWriter | None = None,
) -> OnnxGraph:
    """The layers of `shape`, with inputs and outputs as `chunk_spec` describes them.

    `linears` writes the matrices, by default all in float32.
    """
    config = model.config
    spec = _with_attention_type(tensors.chunk_spec(config, shape), options.attention_type)
    name = f"layers_{shape.start_layer}_{shape.end_layer}_batch_{shape.batch_size}"
    graph = OnnxGraph(name, spec)
    attention = AttentionLowering(
        graph, config, shape, options.attention_type, options.attention_gain
    )
    lowering = _Lowering(model, graph, linears or FloatLinears(), options.float_parts, attention)
    start = _residual_before(model, shape.start_layer)
    end = _residual_before(model, shape.end_layer)
    lowering.lower(start, end, tensors.HIDDEN_OUT)
    return graph


def lower_lm_head(
    model: NpuModel, batch_size: int, linears: LinearWriter | None = None
) -> OnnxGraph:
    """The final norm and the output layer, as `lm_head_spec` describes them."""
    spec = tensors.lm_head_spec(model.config, batch_size)
    graph = OnnxGraph(f"lm_head_batch_{batch_size}", spec)
    lowering = _Lowering(model, graph, linears or FloatLinears(), FloatParts(), None)
    end = model.graph.logits
    assert end is not None
    lowering.lower(_residual_before(model, model.config.num_layers), end, tensors.LOGITS)
    return graph


class _Lowering:
    """Writes a part of the model's graph into an ONNX graph."""

    def __init__(
        self,
        model: NpuModel,
        graph: OnnxGraph,
        linears: LinearWriter,
        float_parts: FloatParts,
        attention: AttentionLowering | None,
    ) -> None:
        self._model = model
        self._graph = graph
        self._linears = linears
        self._float_parts = float_parts
        self._attention = attention
        self._values: dict[Value, list[Piece]] = {}

    def lower(self, start: Value, end: Value, name: str) -> None:
        """Lower what makes `end` from `start`; the tensor of `end` is called `name`."""
        self._values[start] = [Piece(tensors.HIDDEN_IN, np.arange(self._model.config.embed_dim))]
        for node in _nodes_between(self._model.graph, start, end):
            output = name if node.output == end else _name_of(node)
            self._values[node.output] = self._lower(node, output)

    def _lower(self, node: Node, output: str) -> list[Piece]:
        # Positions and output rows are no inputs of the NPU's graphs, so they have no value here.
        inputs = [self._values[value] for value in node.inputs if value in self._values]
        match node.operation:
            case Linear():
                return self._linear(node.operation, inputs[0], output)
            case RMSNorm():
                return self._rms_norm(node.operation, inputs[0], output)
            case Add():
                a, b = (whole(each) for each in inputs)
                return [replace(a, name=self._graph.node("Add", [a.name, b.name], output))]
            case SwiGLU():
                return self._swiglu(inputs[0], inputs[1], output)
            case SelectRows():
                return inputs[0]  # which rows need logits is known only when the graph runs
        return self._lower_heads(node, inputs, output)

    def _lower_heads(self, node: Node, inputs: list[list[Piece]], output: str) -> list[Piece]:
        if self._attention is not None:
            match node.operation:
                case SplitHeads():
                    return self._attention.split_heads(inputs[0], output)
                case Rope():
                    return self._attention.rope(inputs[0], output)
                case Attention():
                    q, k, v = inputs
                    return self._attention.attention(node.operation, q, k, v, output)
        raise NotImplementedError(f"operation {type(node.operation).__name__}")

    def _linear(self, operation: Linear, x: list[Piece], output: str) -> list[Piece]:
        groups = self._float_parts.row_groups(self._model.config, operation.weight)
        names = [output if len(groups) == 1 else output + suffix(each.is_float) for each in groups]
        return [
            self._rows(operation, x, group, name) for group, name in zip(groups, names, strict=True)
        ]

    def _rows(self, operation: Linear, x: list[Piece], group: Group, output: str) -> Piece:
        """The output features of one group: the sum over the input's pieces, and the bias."""
        terms: list[str] = []
        is_single = len(x) == 1 and operation.bias is None
        for piece in x:
            linear = self._part(operation.weight, group, piece)
            terms.append(output if is_single else f"{output}_{len(terms)}")
            self._linears.write(self._graph, linear, piece.name, terms[-1])
        if operation.bias is not None:
            bias = self._model.weight(operation.bias.name)[group.indices]
            terms.append(self._graph.constant(f"{output}_bias", bias))
        self._sum(terms, output)
        return Piece(output, group.indices, group.is_float)

    def _part(self, weight: Weight, group: Group, x: Piece) -> LinearPart:
        is_float = group.is_float or x.is_float
        is_whole = (len(group.indices), len(x.columns)) == weight.shape
        return LinearPart(
            name=weight.name.removesuffix(".weight") + ("" if is_whole else suffix(is_float)),
            weight=weight.name,
            rows=group.indices,
            columns=x.columns,
            is_float=is_float,
            gain=x.gain,
            load=self._model.weight,
        )

    def _sum(self, terms: list[str], output: str) -> None:
        """Add up `terms`; a single one is `output` already."""
        total = terms[0]
        for count, term in enumerate(terms[1:], 2):
            name = output if count == len(terms) else f"{output}_sum_{count}"
            total = self._graph.node("Add", [total, term], name)

    def _rms_norm(self, operation: RMSNorm, x: list[Piece], output: str) -> list[Piece]:
        return [
            replace(piece, name=self._normalise(operation, piece.name, numbered(output, i, len(x))))
            for i, piece in enumerate(x)
        ]

    def _normalise(self, operation: RMSNorm, x: str, output: str) -> str:
        # Not spelled out: the NPU computes float32 as float16 that saturates at 131,008, which the
        # squares of the first token's activations exceed. And not with the weight inside: the
        # emulator is wrong at some batch sizes where the operation's result is quantised at once.
        name = operation.weight.name
        values = self._model.weight(name)
        ones = self._graph.constant(f"ones_{len(values)}", np.ones_like(values))
        normed = self._graph.node(
            "RMSNormalization", [x, ones], f"{output}_unit", axis=-1, epsilon=operation.eps
        )
        return self._graph.node("Mul", [normed, self._graph.constant(name, values)], output)

    def _swiglu(self, gate: list[Piece], up: list[Piece], output: str) -> list[Piece]:
        made = []
        for index, (gate_piece, up_piece) in enumerate(zip(gate, up, strict=True)):
            name = numbered(output, index, len(gate))
            sigmoid = self._graph.node("Sigmoid", [gate_piece.name], f"{name}_sigmoid")
            silu = self._graph.node("Mul", [gate_piece.name, sigmoid], f"{name}_silu")
            product = self._graph.node("Mul", [silu, up_piece.name], name)
            made.append(replace(gate_piece, name=product))
        return made


def _residual_before(model: NpuModel, layer: int) -> Value:
    """What layer `layer` reads; for the number of layers, what the final norm reads."""
    is_layer = layer < model.config.num_layers
    name = f"blk.{layer}.attn_norm.weight" if is_layer else "output_norm.weight"
    return next(
        node.inputs[0]
        for node in model.graph.nodes
        if isinstance(node.operation, RMSNorm) and node.operation.weight.name == name
    )


def _nodes_between(graph: Graph, start: Value, end: Value) -> Sequence[Node]:
    """The nodes that compute `end` from `start`, in order."""
    needed, nodes = {end}, list[Node]()
    for node in reversed(graph.nodes):
        if node.output in needed and node.output != start:
            nodes.append(node)
            needed.update(node.inputs)
    return nodes[::-1]


def _with_attention_type(spec: GraphSpec, dtype: np.dtype[np.generic]) -> GraphSpec:
    def typed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(each, dtype=dtype) if each.dtype == F16 else each for each in specs)

    return GraphSpec(typed(spec.inputs), typed(spec.outputs))


def _name_of(node: Node) -> str:
    """What the node's tensors are called: after its weight, or by the number of its value."""
    weight = next(node.weights(), None)
    if weight is None or isinstance(node.operation, Rope):
        return f"{type(node.operation).__name__.lower()}_{node.output.index}"
    return f"{weight.name.removesuffix('.weight')}.out"
