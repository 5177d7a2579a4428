"""The model in float32, layer by layer: what quantised graphs are measured against."""

from __future__ import annotations

from collections.abc import Iterator

from powerserve.backend.qnn.tensors import F32, ChunkShape
from powerserve.convert.qnn.cpu_execution import CpuChunk, CpuGraph
from powerserve.convert.qnn.lowering import LoweringOptions, lower_chunk
from powerserve.convert.qnn.source import NpuModel

BATCH_SIZE = 128  # tokens that are computed at once


def float_layers(model: NpuModel, cache_size: int) -> Iterator[CpuChunk]:
    """The layers one by one, nothing in float16, each with a cache of so many tokens."""
    for layer in range(model.config.num_layers):
        shape = ChunkShape(layer, layer + 1, BATCH_SIZE, cache_size, cache_size + BATCH_SIZE)
        graph = lower_chunk(model, shape, LoweringOptions(attention_type=F32))
        yield CpuChunk(CpuGraph.of(graph), graph.spec, shape, model)
