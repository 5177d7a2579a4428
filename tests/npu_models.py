"""Tiny models lowered to ONNX and computed on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from powerserve.backend.base import FloatArray
from powerserve.backend.qnn.tensors import F32, ChunkShape
from powerserve.convert.qnn.cpu_execution import CpuChunk, CpuGraph, CpuLMHead
from powerserve.convert.qnn.linear import LinearWriter
from powerserve.convert.qnn.lowering import LoweringOptions, lower_chunk, lower_lm_head
from powerserve.convert.qnn.source import NpuModel
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

EXACT = LoweringOptions(attention_type=F32)
"""Nothing in float16."""
LLAMA = TinyModel()
CACHE_SIZE = 40
CONTEXT_SIZE = 64


def open_tiny(folder: Path, tiny: TinyModel = LLAMA) -> NpuModel:
    """Write the model into `folder` and open it for conversion."""
    return NpuModel(GGUFFile.open(write_tiny_model(folder / f"{tiny.architecture}.gguf", tiny)))


def cpu_chunk(
    model: NpuModel,
    batch_size: int = 8,
    *,
    layers: tuple[int, int] | None = None,
    options: LoweringOptions = EXACT,
    linears: LinearWriter | None = None,
) -> CpuChunk:
    """Layers `layers`, by default all, as one chunk."""
    start, end = layers or (0, model.config.num_layers)
    shape = ChunkShape(start, end, batch_size, CACHE_SIZE, CONTEXT_SIZE)
    graph = lower_chunk(model, shape, options, linears)
    return CpuChunk(CpuGraph.of(graph, 1), graph.spec, shape, model)


def cpu_lm_head(model: NpuModel, linears: LinearWriter | None = None) -> CpuLMHead:
    """The LM head for eight rows at a time."""
    return CpuLMHead(CpuGraph.of(lower_lm_head(model, 8, linears), 1), 8)


def logits_of(model: NpuModel, chunks: Sequence[CpuChunk], ids: Sequence[int]) -> FloatArray:
    """Logits [tokens, vocabulary] after each token, the LM head in float32."""
    hidden = model.embed(ids)
    for chunk in chunks:
        hidden = chunk.run(hidden)
    return np.concatenate([outputs["logits"] for outputs in cpu_lm_head(model).run(hidden)])
