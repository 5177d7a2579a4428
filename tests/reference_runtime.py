"""A stand-in for a device: computes chunks with the reference backend's formulas in float32.

It knows nothing of how steps are split, masked and cached, so an engine over it must give the
reference backend's tokens exactly if that part of the NPU backend is right. Head sizes whose root
is a power of two make the keys' scale exact in float16, as the reference's cache has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray, Weights
from powerserve.backend.qnn import tensors
from powerserve.backend.qnn.config_file import (
    ChunkGraph,
    LMHeadGraph,
    ModelParameters,
    QnnConfig,
    QnnFolder,
)
from powerserve.backend.qnn.runtime.base import CompiledGraph, GraphRequest, Runtime
from powerserve.backend.qnn.runtime.buffers import InputBuffers, allocate
from powerserve.backend.reference.dequantise import dequantise
from powerserve.backend.reference.operations import linear, rms_norm, split_heads, swiglu
from powerserve.core.config import ModelConfig, RopeStyle
from powerserve.graph import Graph, Node
from powerserve.graph.ops import (
    Add,
    Attention,
    Embedding,
    Linear,
    RMSNorm,
    Rope,
    SelectRows,
    SplitHeads,
    SwiGLU,
)

AnyArray = npt.NDArray[np.generic]


class ReferenceRuntime(Runtime):
    """Ignores the binaries: what a graph computes follows from its layers."""

    name = "reference"

    def __init__(self, config: ModelConfig, graph: Graph, weights: Weights) -> None:
        self.config = config
        self.layers = list(_layers(graph, config.num_layers))  # the last one is the output layer
        self.weights = {name: dequantise(weights[name]) for name in graph.weights()}
        self.runs: list[int] = []  # the batch size of every run of a chunk
        self._inputs = InputBuffers()

    def load(self, binary: Path, graphs: Sequence[GraphRequest]) -> list[CompiledGraph]:
        return [self._load(graph) for graph in graphs]

    def close(self) -> None:
        pass

    def _load(self, request: GraphRequest) -> CompiledGraph:
        inputs, outputs = self._inputs.of(request), allocate(request.spec.outputs)
        cached = [name for name in inputs if "_key_t_cache_" in name]
        if not cached:
            return _OutputGraph(self, inputs, outputs)
        layers = sorted({int(name.split("_")[1]) for name in cached})
        return _ChunkGraph(self, inputs, outputs, layers)


class _OutputGraph(CompiledGraph):
    def __init__(
        self,
        runtime: ReferenceRuntime,
        inputs: Mapping[str, AnyArray],
        outputs: Mapping[str, AnyArray],
    ) -> None:
        self.inputs, self.outputs, self._runtime = inputs, outputs, runtime

    def run(self) -> None:
        norm, output = (node.operation for node in self._runtime.layers[-1])
        assert isinstance(norm, RMSNorm) and isinstance(output, Linear)
        weights = self._runtime.weights
        normed = rms_norm(_only(self.inputs), weights[norm.weight.name], norm.eps)
        _only(self.outputs)[:] = linear(normed, weights[output.weight.name], None)


class _ChunkGraph(CompiledGraph):
    def __init__(
        self,
        runtime: ReferenceRuntime,
        inputs: Mapping[str, AnyArray],
        outputs: Mapping[str, AnyArray],
        layers: list[int],
    ) -> None:
        self.inputs, self.outputs, self._runtime, self._layers = inputs, outputs, runtime, layers

    def run(self) -> None:
        hidden = next(iter(self.inputs.values())).astype(np.float32)
        self._runtime.runs.append(len(hidden))
        for layer in self._layers:
            hidden = self._run_layer(self._runtime.layers[layer], hidden)
        next(iter(self.outputs.values()))[:] = hidden

    def _run_layer(self, nodes: list[Node], hidden: FloatArray) -> FloatArray:
        values = {nodes[0].inputs[0].index: hidden}
        for node in nodes:
            inputs = [values[each.index] for each in node.inputs if each.index in values]
            values[node.output.index] = self._compute(node, inputs)
        return values[nodes[-1].output.index]

    def _compute(self, node: Node, inputs: list[FloatArray]) -> FloatArray:
        weights = self._runtime.weights
        match node.operation:
            case Linear(weight, bias):
                addend = None if bias is None else weights[bias.name]
                return linear(inputs[0], weights[weight.name], addend)
            case RMSNorm(weight, eps):
                return rms_norm(inputs[0], weights[weight.name], eps)
            case SplitHeads(num_heads):
                return split_heads(inputs[0], num_heads)
            case Rope(rope, _):
                return self._rotate(inputs[0], rope.style)
            case Attention(layer, scale):
                return self._attend(inputs[0], inputs[1], inputs[2], layer, scale)
            case Add():
                return inputs[0] + inputs[1]
            case SwiGLU():
                return swiglu(inputs[0], inputs[1])
            case SelectRows():
                return inputs[0]
        raise NotImplementedError(type(node.operation).__name__)

    def _rotate(self, x: FloatArray, style: RopeStyle) -> FloatArray:
        """With the tables; x [B, heads, d]."""
        cos, sin = (self.inputs[name][:, None] for name in (tensors.ROPE_COS, tensors.ROPE_SIN))
        half = x.shape[-1] // 2
        pairs = {
            RopeStyle.INTERLEAVED: (slice(0, None, 2), slice(1, None, 2)),
            RopeStyle.HALF_SPLIT: (slice(0, half), slice(half, None)),
        }
        first, second = pairs[style]
        rotated = np.empty_like(x)
        rotated[..., first] = x[..., first] * cos - x[..., second] * sin
        rotated[..., second] = x[..., first] * sin + x[..., second] * cos
        return rotated

    def _attend(
        self, q: FloatArray, k: FloatArray, v: FloatArray, layer: int, scale: float
    ) -> FloatArray:
        """Attention over the cache and the batch, with the bias for both: [B, heads · d]."""
        bias = self.inputs[tensors.ATTENTION_BIAS].astype(np.float32)
        num_kv_heads = k.shape[1]
        per_kv_head = q.shape[1] // num_kv_heads
        mixed: list[FloatArray] = []
        for head in range(num_kv_heads):
            new_k, new_v = (k[:, head] * scale).astype(np.float16), v[:, head].astype(np.float16)
            self.outputs[tensors.key_name(layer, head)][:] = new_k
            self.outputs[tensors.value_name(layer, head)][:] = new_v
            cached_k = self.inputs[tensors.key_cache_name(layer, head)]
            cached_v = self.inputs[tensors.value_cache_name(layer, head)]
            keys = np.concatenate([cached_k.T, new_k]).astype(np.float32)
            values = np.concatenate([cached_v, new_v]).astype(np.float32)
            for query in range(head * per_kv_head, (head + 1) * per_kv_head):
                scores = q[:, query] @ keys.T + bias[:, : len(keys)]
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                mixed.append(weights / weights.sum(axis=1, keepdims=True) @ values)
        return np.concatenate(mixed, axis=1)


def npu_folder(
    path: Path,
    config: ModelConfig,
    *,
    batch_sizes: Sequence[int] = (1, 8, 12),
    chunk_ends: Sequence[int] = (),
    cache_size: int = 64,
    lm_head: bool = True,
    mask_value: float = -5e4,
    system_tokens: tuple[int, ...] | None = None,
    kv_size: int = 0,
) -> QnnFolder:
    """A folder for this runtime, with a chunk up to each of `chunk_ends` (default: one chunk)."""
    path.mkdir(parents=True, exist_ok=True)
    ends = list(chunk_ends) or [config.num_layers]
    context_size = cache_size + max(batch_sizes) + 4
    graphs = tuple(
        ChunkGraph(
            f"batch_{size}", start, end, size, cache_size, context_size, f"chunk_{index}.bin",
            kv_size=kv_size,
        )
        for size in batch_sizes
        for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    )  # fmt: skip
    heads = tuple(LMHeadGraph(f"batch_{size}", size, "lm_head.bin") for size in batch_sizes)
    files = QnnConfig(
        graphs,
        ModelParameters(attention_mask_value=mask_value),
        embeddings=heads if lm_head else (),
        system_prompt_tokens=system_tokens,
    )
    for name in files.model_paths:
        (path / name).write_bytes(b"")
    return QnnFolder(path, files)


def _layers(graph: Graph, num_layers: int) -> Iterator[list[Node]]:
    """The nodes of each layer, then those after the last; the embedding is left out."""
    starts = [f"blk.{layer}.attn_norm.weight" for layer in range(num_layers)]
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node.operation, Embedding):
            continue
        if nodes and any(w.name in (*starts, "output_norm.weight") for w in node.weights()):
            yield nodes
            nodes = []
        nodes.append(node)
    yield nodes


def _only(arrays: Mapping[str, AnyArray]) -> FloatArray:
    (array,) = arrays.values()
    return array  # type: ignore[return-value]
