"""Our graph, one operation at a time, as ggml operations for one step shape.

ggml shapes read backwards: our [tokens, features] is ggml's [features, tokens].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from powerserve.backend.base import StepShape
from powerserve.backend.ggml.cache import GgmlCache
from powerserve.backend.ggml.fusion import FusedAttention, FusedLinear, Step, fuse
from powerserve.backend.ggml.graph_inputs import GraphInputs
from powerserve.backend.ggml.kernels.attention import AttentionNodes, can_attend
from powerserve.backend.ggml.kernels.custom import CustomNodes
from powerserve.backend.ggml.kernels.products import ProductNodes
from powerserve.backend.ggml.library import (
    ROPE_HALF_SPLIT,
    ROPE_INTERLEAVED,
    GgmlLibrary,
    Tensor,
)
from powerserve.backend.ggml.slice_attention import SliceAttention
from powerserve.backend.ggml.weights import WeightStore
from powerserve.core import dtypes
from powerserve.core.config import ModelConfig, RopeScaling, RopeStyle
from powerserve.graph import Graph, Node, Value
from powerserve.graph.ops import (
    Add,
    Attention,
    Embedding,
    Linear,
    RMSNorm,
    Rope,
    SelectRows,
    SplitHeads,
    SumSquares,
    SwiGLU,
)

GGML_NODES_PER_OPERATION = 8  # upper bound; attention needs the most, beside its slices
GGML_NODES_PER_SLICE = 10


@dataclass(frozen=True, slots=True)
class LoweredGraph:
    """A ggml graph and the tensors that a step writes to and reads from (addresses)."""

    context: int
    graph: int
    inputs: GraphInputs
    logits: int | None  # F32 [vocab, outputs]; None: the shape has none
    observed: dict[str, int]  # F32
    units: int | None  # F32 [rope dimensions, 1, tokens]: the unit vectors (1, 0), halves apart
    custom: CustomNodes | None  # what operations of our own read


def lower(
    library: GgmlLibrary,
    config: ModelConfig,
    graph: Graph,
    weights: WeightStore,
    cache: GgmlCache,
    shape: StepShape,
) -> LoweredGraph:
    """Build the ggml graph of `graph` for steps of `shape` over `cache`; nothing is allocated."""
    return _Lowering(library, config, graph, weights, cache, shape).build(graph)


class _Lowering:
    def __init__(
        self,
        library: GgmlLibrary,
        config: ModelConfig,
        graph: Graph,
        weights: WeightStore,
        cache: GgmlCache,
        shape: StepShape,
    ) -> None:
        per_slice = GGML_NODES_PER_SLICE * len(shape.slices) * (config.num_layers + 1)
        size = GGML_NODES_PER_OPERATION * len(graph.nodes) + per_slice
        self._library = library
        self._config = config
        self._weights = weights
        self._cache = cache
        self._shape = shape
        self._context = library.new_context(size, num_graph_nodes=size)
        self._graph = library.new_graph_custom(self._context, size, False)
        self._inputs = inputs = GraphInputs.of(library, self._context, shape)
        self._slice_attention = SliceAttention(
            library, self._context, self._graph, config, cache, shape, inputs
        )
        self._units: int | None = None
        self._turns: dict[Rope, int] = {}
        self._custom: CustomNodes | None = None
        self._attention_nodes: AttentionNodes | None = None
        if weights.packing is not None:
            kernels = weights.packing.kernels
            self._custom = CustomNodes(library, kernels, self._context)
            self._products = ProductNodes(self._custom, weights)
            if can_attend(kernels, cache, config):
                self._attention_nodes = AttentionNodes(
                    self._custom, config, cache, shape.slices, inputs
                )
        self._tensors: dict[Value, int] = {
            graph.token_ids: inputs.token_ids,
            graph.positions: inputs.positions,
            graph.output_rows: inputs.output_rows,
        }

    def build(self, graph: Graph) -> LoweredGraph:
        with_attention = self._attention_nodes is not None
        for step in fuse(graph, self._weights.is_packed, with_attention=with_attention):
            outputs = (step.output,) if isinstance(step, Node) else step.outputs
            if graph.logits in outputs and not self._shape.has_logits:
                break  # the last one
            for output, tensor in zip(outputs, self._lower_step(step), strict=True):
                # Appending each result at once keeps our order, which is the model's.
                self._library.build_forward_expand(self._graph, tensor)
                self._tensors[output] = tensor
        observed = {
            name: self._readable(self._tensors[value]) for name, value in graph.observed.items()
        }
        logits = None
        if self._shape.has_logits:
            assert graph.logits is not None
            logits = self._readable(self._tensors[graph.logits])
        return LoweredGraph(
            self._context,
            self._graph,
            self._inputs,
            logits,
            observed,
            self._units,
            self._custom,
        )

    def _readable(self, tensor: int) -> int:
        """What is read after a step: copied if it lies among other things, which do not stay."""
        if Tensor.from_address(tensor).view_src:
            tensor = self._library.cont(self._context, tensor)
            self._library.build_forward_expand(self._graph, tensor)
        self._library.set_output(tensor)
        return tensor

    def _lower_step(self, step: Step) -> list[int]:
        match step:
            case FusedLinear():
                residual = None if step.residual is None else self._tensors[step.residual]
                return self._products.add(step, self._tensors[step.x], residual)
            case FusedAttention():
                assert self._attention_nodes is not None
                q, k, v = (self._tensors[value] for value in step.inputs)
                return [self._attention_nodes.add(step, q, k, v, self._turned_units(step.rope))]
            case Node():
                return [self._lower(step)]

    def _turned_units(self, rope: Rope) -> int:
        """Cosines and sines of all positions: what ggml makes of unit vectors, once for all layers.

        So all kinds of scaling are ggml's own.
        """
        if rope not in self._turns:
            if self._units is None:
                self._units = self._library.new_tensor_3d(
                    self._context, dtypes.F32.ggml_id, rope.rope.dim, 1, self._shape.num_tokens
                )
                self._library.set_input(self._units)
            halves = replace(rope, rope=replace(rope.rope, style=RopeStyle.HALF_SPLIT))
            self._turns[rope] = self._rope(halves, self._units, self._inputs.positions)
        return self._turns[rope]

    def _lower(self, node: Node) -> int:
        library, context, weights = self._library, self._context, self._weights
        inputs = [self._tensors[value] for value in node.inputs]
        tensor: int
        match node.operation:
            case Embedding(table):
                tensor = library.get_rows(context, weights.plain(table), inputs[0])
            case Linear(weight, bias):
                tensor = library.mul_mat(context, weights.matrix(weight), inputs[0])
                if bias is not None:
                    tensor = library.add(context, tensor, weights.plain(bias))
            case RMSNorm(weight, eps):
                normed = library.rms_norm(context, inputs[0], eps)
                tensor = library.mul(context, normed, weights.plain(weight))
            case SplitHeads(num_heads):
                tensor = self._split_heads(inputs[0], num_heads)
            case Rope() as rope:
                tensor = self._rope(rope, *inputs)
            case Attention() as attention:
                tensor = self._slice_attention.add(attention, *inputs)
            case Add():
                tensor = library.add(context, *inputs)
            case SwiGLU():
                tensor = library.swiglu_split(context, *inputs)
            case SelectRows():
                tensor = library.get_rows(context, *inputs)
            case SumSquares():
                features = Tensor.from_address(inputs[0]).ne[0]
                row = library.new_tensor_1d(context, dtypes.F32.ggml_id, features)
                # Repeating a row for each token, backwards, is a sum over the tokens.
                tensor = library.repeat_back(context, library.sqr(context, inputs[0]), row)
            case unknown:
                raise TypeError(f"no ggml lowering for {type(unknown).__name__}")
        return tensor

    def _split_heads(self, x: int, num_heads: int) -> int:
        """A view, because x may be a part of something wider."""
        tensor = Tensor.from_address(x)
        features, tokens = tensor.ne[:2]
        head_dim, token_bytes = features // num_heads, tensor.nb[1]
        head_bytes = dtypes.F32.size_bytes(head_dim)
        view: int = self._library.view_3d(
            self._context, x, head_dim, num_heads, tokens, head_bytes, token_bytes, 0
        )
        return view

    def _rope(self, operation: Rope, x: int, positions: int) -> int:
        rope = operation.rope
        factors = None if operation.factors is None else self._weights.plain(operation.factors)
        mode = ROPE_HALF_SPLIT if rope.style is RopeStyle.HALF_SPLIT else ROPE_INTERLEAVED
        extrapolation = 1.0 if rope.scaling is RopeScaling.YARN else 0.0
        tensor: int = self._library.rope_ext(
            self._context,
            x,
            positions,
            factors,
            rope.dim,
            mode,
            rope.original_context,
            rope.freq_base,
            rope.freq_scale,
            extrapolation,
            rope.attn_factor,
            rope.beta_fast,
            rope.beta_slow,
        )
        return tensor
