"""Runs compiled graphs and their ONNX graphs on a text's activations, for the gate to compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from powerserve.backend.base import FloatArray
from powerserve.backend.qnn import tensors
from powerserve.backend.qnn.runtime.base import GraphRequest, Runtime
from powerserve.backend.qnn.tensors import ChunkShape
from powerserve.backend.reference.rope import rope_tables
from powerserve.convert.qnn.build_folder import BuildFolder
from powerserve.convert.qnn.compile_plan import CompiledPart
from powerserve.convert.qnn.cpu_execution import CpuChunk, CpuGraph, chain_bias
from powerserve.convert.qnn.gate import Array, GraphErrors, Tensors, compare
from powerserve.convert.qnn.plan import Part, Plan
from powerserve.convert.qnn.quantised_files import open_chunk
from powerserve.convert.qnn.source import NpuModel

NUM_PAST = 64  # tokens in the cache when graphs are compared


class GateRun:
    """Compares the graphs of a model one after another; a runtime is opened for each part."""

    def __init__(
        self,
        model: NpuModel,
        plan: Plan,
        build: BuildFolder,
        soc: str,
        open_runtime: Callable[[], Runtime],
    ) -> None:
        """`open_runtime` starts the emulator."""
        self._model = model
        self._plan = plan
        self._build = build
        self._soc = soc
        self._open_runtime = open_runtime

    def errors(
        self, compiled: Mapping[Part, CompiledPart], token_ids: Sequence[int]
    ) -> Iterator[GraphErrors]:
        """Compare every graph, chunk after chunk, on the beginning of a text.

        Raises BackendError if a graph cannot be loaded or run.
        """
        largest = self._plan.sizes.batch_sizes[-1]
        self._num_past = min(NUM_PAST, self._plan.sizes.cache_size - largest)
        hidden = self._model.embed(np.resize(token_ids, self._num_past + largest))
        for part in self._plan.parts:
            if part.is_lm_head:
                yield from self._compare(part, compiled[part], partial(self._new, hidden))
            else:
                chunk = open_chunk(self._model, self._plan, self._build, part)
                made = chunk.run(hidden)
                inputs = _ChunkInputs(self._model, chunk, hidden, self._num_past)
                yield from self._compare(part, compiled[part], inputs.of)
                hidden = made

    def _compare(
        self, part: Part, compiled: CompiledPart, inputs_of: Callable[[int], Tensors]
    ) -> Iterator[GraphErrors]:
        runtime = self._open_runtime()
        try:
            for batch_size, binary in compiled.emulator.items():
                inputs = inputs_of(batch_size)
                expected = self._cpu_graph(part, batch_size).run(inputs)
                path = self._build.emulator_binary(part, batch_size, self._soc)
                spec = self._plan.spec(part, batch_size)
                graph = runtime.load(path, [GraphRequest(binary.graph_names[0], spec)])[0]
                for name, values in inputs.items():
                    graph.inputs[name][:] = values
                start = time.perf_counter()
                graph.run()
                seconds = time.perf_counter() - start
                yield GraphErrors(part.label, batch_size, seconds, compare(expected, graph.outputs))
        finally:
            runtime.close()

    def _new(self, hidden: FloatArray, batch_size: int) -> Tensors:
        """The LM head's input: the tokens after those that are past."""
        return {tensors.HIDDEN_IN: hidden[self._num_past : self._num_past + batch_size]}

    def _cpu_graph(self, part: Part, batch_size: int) -> CpuGraph:
        return CpuGraph(self._build.onnx_file(part, batch_size), {}, num_threads=0)


class _ChunkInputs:
    """The inputs of a chunk's graphs when `num_past` tokens are cached and more come.

    The cache holds the later tokens too: what the mask hides must not matter.
    """

    def __init__(self, model: NpuModel, chunk: CpuChunk, hidden: FloatArray, num_past: int) -> None:
        self._model = model
        self._chunk = chunk
        self._hidden = hidden
        self._num_past = num_past

    def of(self, batch_size: int) -> Tensors:
        """For the `batch_size` tokens after those that are past."""
        past, chunk = self._num_past, self._chunk.shape
        shape = ChunkShape(
            chunk.start_layer, chunk.end_layer, batch_size, chunk.cache_size, chunk.context_size
        )
        config = self._model.config
        positions = np.arange(past, past + batch_size, dtype=np.int32)
        cos, sin = rope_tables(positions, config.rope, self._model.rope_factors())
        inputs: dict[str, Array] = {
            tensors.HIDDEN_IN: self._hidden[past : past + batch_size],
            tensors.ATTENTION_BIAS: chain_bias(shape, past).astype(np.float16),
            tensors.ROPE_COS: cos,
            tensors.ROPE_SIN: sin,
        }
        for layer in range(shape.start_layer, shape.end_layer):
            for head in range(config.num_kv_heads):
                keys = self._chunk.keys(layer, head, shape.cache_size)
                inputs[tensors.key_cache_name(layer, head)] = np.ascontiguousarray(keys.T)
                values = self._chunk.values(layer, head, shape.cache_size)
                inputs[tensors.value_cache_name(layer, head)] = values
        return inputs
