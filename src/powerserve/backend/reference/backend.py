"""Runs a graph node by node, with every weight in float32."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy.typing as npt

from powerserve.backend.base import (
    Backend,
    Batch,
    Cache,
    Capabilities,
    Executable,
    FloatArray,
    LoadedModel,
    OperationTime,
    StepShape,
    Weights,
)
from powerserve.backend.checks import check_batch, check_weights
from powerserve.backend.reference.attention import attend
from powerserve.backend.reference.cache import KV_DTYPES, ReferenceCache
from powerserve.backend.reference.dequantise import dequantise
from powerserve.backend.reference.operations import (
    linear,
    rms_norm,
    split_heads,
    sum_squares,
    swiglu,
)
from powerserve.backend.reference.rope import apply_rope
from powerserve.core.config import ModelConfig
from powerserve.core.dtypes import DType
from powerserve.core.errors import BackendError
from powerserve.graph import Graph, Node, Weight
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

AnyArray = npt.NDArray[Any]


class ReferenceBackend(Backend):
    """numpy on the CPU. Weights take four bytes an element, whatever their type in the file."""

    name = "reference"

    def load(self, config: ModelConfig, graph: Graph, weights: Weights) -> ReferenceModel:
        """Take the weights in; raises as `check_weights` and `dequantise` do."""
        check_weights(graph, weights)
        arrays = {name: dequantise(weights[name]) for name in graph.weights()}
        return ReferenceModel(config, graph, arrays)


class ReferenceModel(LoadedModel):
    """A graph and its weights as arrays."""

    def __init__(self, config: ModelConfig, graph: Graph, weights: dict[str, FloatArray]) -> None:
        self.config = config
        self.capabilities = Capabilities(kv_dtypes=KV_DTYPES)
        self.weights_bytes = sum(array.nbytes for array in weights.values())
        self._graph = graph
        self._weights = weights

    def new_cache(self, num_cells: int, dtype: DType) -> ReferenceCache:
        return ReferenceCache(self.config, num_cells, dtype)

    def compile(self, shape: StepShape, cache: Cache) -> ReferenceExecutable:
        if not isinstance(cache, ReferenceCache):
            raise BackendError("the reference backend works only with a cache of its own")
        for piece in shape.slices:
            stop = piece.first_cell + piece.num_cells
            if stop > cache.num_cells:
                raise BackendError(f"cell {stop - 1} is outside the cache's {cache.num_cells}")
        return ReferenceExecutable(self.config, self._graph, self._weights, shape, cache)

    def close(self) -> None:
        self._weights.clear()


class ReferenceExecutable(Executable):
    """Interprets the graph; the shape only serves to check batches."""

    def __init__(
        self,
        config: ModelConfig,
        graph: Graph,
        weights: dict[str, FloatArray],
        shape: StepShape,
        cache: ReferenceCache,
    ) -> None:
        self._config = config
        self._graph = graph
        self._weights = weights
        self._shape = shape
        self._cache = cache
        self._observed: dict[str, FloatArray] = {}

    def run(self, batch: Batch) -> FloatArray:
        """Compute one step; raises ValueError for an inconsistent batch (see `check_batch`)."""
        return self._run(batch, None)

    def profile(self, batch: Batch) -> list[OperationTime]:
        times: list[OperationTime] = []
        self._run(batch, times)
        return times

    def _run(self, batch: Batch, times: list[OperationTime] | None) -> FloatArray:
        """Compute one step, and note in `times` how long each operation takes."""
        check_batch(batch, self._shape, self._config.vocab_size)
        graph = self._graph
        if graph.logits is None:
            raise ValueError("the graph has no logits")
        values: dict[int, AnyArray] = {
            graph.token_ids.index: batch.token_ids,
            graph.positions.index: batch.positions,
            graph.output_rows.index: batch.output_rows,
        }
        for node in graph.nodes:
            inputs = [values[value.index] for value in node.inputs]
            start_s = perf_counter()
            values[node.output.index] = self._compute(node, inputs, batch)
            if times is not None:
                times.append(_operation_time(node, perf_counter() - start_s))
        self._observed = {name: values[value.index] for name, value in graph.observed.items()}
        return values[graph.logits.index]

    def observed(self) -> dict[str, FloatArray]:
        return self._observed

    def _compute(self, node: Node, inputs: list[AnyArray], batch: Batch) -> FloatArray:
        match node.operation:
            case Embedding(table):
                return self._array(table)[inputs[0]]
            case Linear(weight, bias):
                return linear(inputs[0], self._array(weight), self._optional(bias))
            case RMSNorm(weight, eps):
                return rms_norm(inputs[0], self._array(weight), eps)
            case SplitHeads(num_heads):
                return split_heads(inputs[0], num_heads)
            case Rope(rope, factors):
                return apply_rope(inputs[0], inputs[1], rope, self._optional(factors))
            case Attention(layer, scale):
                return attend(*inputs, layer=layer, scale=scale, batch=batch, cache=self._cache)
            case Add():
                return inputs[0] + inputs[1]
            case SwiGLU():
                return swiglu(inputs[0], inputs[1])
            case SelectRows():
                return inputs[0][inputs[1]]
            case SumSquares():
                return sum_squares(inputs[0])
        raise NotImplementedError(f"operation {type(node.operation).__name__}")

    def _array(self, weight: Weight) -> FloatArray:
        return self._weights[weight.name]

    def _optional(self, weight: Weight | None) -> FloatArray | None:
        return None if weight is None else self._array(weight)


def _operation_time(node: Node, seconds: float) -> OperationTime:
    name = next((weight.name for weight in node.weights()), "")
    return OperationTime(type(node.operation).__name__, name, seconds)
