"""The compiled graphs of a model: its layers in chunks, for each batch size, and its LM head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from powerserve.backend.qnn.cache import HeadPlanes
from powerserve.backend.qnn.config_file import ChunkGraph, CompiledEntry, QnnFolder
from powerserve.backend.qnn.runtime.base import Array, CompiledGraph, GraphRequest, Runtime
from powerserve.backend.qnn.runtime.buffers import stacked
from powerserve.backend.qnn.tensors import (
    ATTENTION_BIAS,
    HIDDEN_IN,
    HIDDEN_OUT,
    LOGITS,
    ROPE_COS,
    ROPE_SIN,
    GraphSpec,
    TensorSpec,
    chunk_spec,
    key_cache_name,
    key_name,
    lm_head_spec,
    value_cache_name,
    value_name,
)
from powerserve.core.config import ModelConfig


class Chunk:
    """Some layers, compiled for one batch size, and what of their tensors the host touches."""

    def __init__(self, entry: ChunkGraph, graph: CompiledGraph, num_kv_heads: int) -> None:
        heads = [
            (layer, head)
            for layer in range(entry.start_layer_id, entry.end_layer_id)
            for head in range(num_kv_heads)
        ]
        inputs, outputs = graph.inputs, graph.outputs
        self.name = f"layers {entry.start_layer_id} to {entry.end_layer_id - 1}"
        self.run = graph.run
        self.hidden_in = inputs[entry.x_name]  # [B, D]
        self.hidden_out = outputs[entry.out_name]  # [B, D]
        self.bias = inputs[ATTENTION_BIAS]  # [B, context]
        self.cos, self.sin = inputs[ROPE_COS], inputs[ROPE_SIN]  # [B, head_dim / 2]
        self.cached = HeadPlanes(
            stacked([inputs[key_cache_name(*each)] for each in heads]),
            stacked([inputs[value_cache_name(*each)] for each in heads]),
        )
        self.new = HeadPlanes(
            stacked([outputs[key_name(*each)] for each in heads]),
            stacked([outputs[value_name(*each)] for each in heads]),
        )


@dataclass(frozen=True, slots=True)
class LMHead:
    """Final norm and output layer, compiled for one batch size."""

    hidden: Array  # [B, D]
    logits: Array  # [B, vocab]
    graph: CompiledGraph


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """Every graph of a model by its batch size; `heads` is empty where the CPU does that part."""

    chunks: Mapping[int, Sequence[Chunk]]
    heads: Mapping[int, LMHead]


def load_graphs(folder: QnnFolder, config: ModelConfig, runtime: Runtime) -> CompiledModel:
    """Load everything that config.json names; raises BackendError."""
    files = folder.files
    by_file: dict[str, list[CompiledEntry]] = {}
    for entry in files.compiled:
        by_file.setdefault(entry.model_path, []).append(entry)
    graphs: dict[CompiledEntry, CompiledGraph] = {}
    for path, entries in by_file.items():
        requests = [_request(entry, config) for entry in entries]
        graphs.update(zip(entries, runtime.load(folder.path / path, requests), strict=True))
    return CompiledModel(
        {
            size: [Chunk(entry, graphs[entry], config.num_kv_heads) for entry in files.chunks(size)]
            for size in files.batch_sizes
        },
        {
            entry.batch_size: LMHead(
                graphs[entry].inputs[entry.x_name],
                graphs[entry].outputs[entry.out_name],
                graphs[entry],
            )
            for entry in files.embeddings
        },
    )


def _request(entry: CompiledEntry, config: ModelConfig) -> GraphRequest:
    """The graph with the names that config.json gives to its ends."""
    if isinstance(entry, ChunkGraph):
        spec = chunk_spec(config, entry.shape)
        names = {HIDDEN_IN: entry.x_name, HIDDEN_OUT: entry.out_name}
    else:
        spec = lm_head_spec(config, entry.batch_size)
        names = {HIDDEN_IN: entry.x_name, LOGITS: entry.out_name}
    inputs, outputs = (_renamed(tensors, names) for tensors in (spec.inputs, spec.outputs))
    return GraphRequest(entry.graph_name, GraphSpec(inputs, outputs))


def _renamed(specs: tuple[TensorSpec, ...], names: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, name=names.get(spec.name, spec.name)) for spec in specs)
