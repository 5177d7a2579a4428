"""Runs compiled graphs and their ONNX graphs on a text's activations, for the gate to compare."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.backend.qnn import tensors
from powerserve.backend.qnn.runtime.base import CompiledGraph, GraphRequest, Runtime
from powerserve.backend.qnn.tensors import ChunkShape
from powerserve.backend.reference.rope import rope_tables
from powerserve.convert.qnn.build_folder import BuildFolder
from powerserve.convert.qnn.compile_plan import CompiledPart
from powerserve.convert.qnn.cpu_execution import CpuChunk, CpuGraph, chain_bias
from powerserve.convert.qnn.gate import Array, GraphErrors, Tensors, compare
from powerserve.convert.qnn.plan import Part, Plan
from powerserve.convert.qnn.quantised_files import open_chunk
from powerserve.convert.qnn.source import NpuModel
from powerserve.core.errors import ConfigError
from powerserve.storage.json_file import read_json, write_json

FORMAT_VERSION = 2  # of what is remembered of comparisons
NUM_PAST = 64  # tokens in the cache when graphs are compared

InputsOf = Callable[[int], Tensors]
"""The inputs of a part's graph for a batch size."""


@dataclass(frozen=True, slots=True)
class GateRecord:
    """A comparison that was made; `key` is a digest of graphs and text."""

    key: str
    errors: GraphErrors


class GateRun:
    """Compares the graphs of a model one after another; comparisons that were made stay valid."""

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
        largest = plan.sizes.batch_sizes[-1]
        self._num_past = min(NUM_PAST, plan.sizes.cache_size - largest)
        self._num_tokens = self._num_past + largest

    def errors(
        self, compiled: Mapping[Part, CompiledPart], token_ids: Sequence[int]
    ) -> Iterator[GraphErrors]:
        """Compare every graph, chunk after chunk, on the beginning of a text.

        Raises BackendError if a graph cannot be loaded or run.
        """
        tokens = np.resize(np.asarray(token_ids), self._num_tokens)
        key = _key(compiled, tokens)
        hidden = self._model.embed(tokens)
        for part in self._plan.parts:
            inputs_of: InputsOf = partial(self._lm_head_inputs, hidden)
            if not part.is_lm_head:
                chunk = open_chunk(self._model, self._plan, self._build, part)
                made = chunk.run(hidden)
                inputs_of = _ChunkInputs(self._model, chunk, hidden, self._num_past).of
                hidden = made
            yield from self._part_errors(part, compiled[part], inputs_of, key)

    def _part_errors(
        self, part: Part, compiled: CompiledPart, inputs_of: InputsOf, key: str
    ) -> Iterator[GraphErrors]:
        """Compare the graphs of a part; the emulator runs as long as that takes."""
        with ExitStack() as stack:
            runtime: Runtime | None = None
            for batch_size, binary in compiled.emulator.items():
                path = self._build.emulator_binary(part, batch_size, self._soc)
                errors = _recorded(path, key)
                if errors is None:
                    if runtime is None:
                        runtime = stack.enter_context(closing(self._open_runtime()))
                    request = GraphRequest(binary.graph_names[0], self._plan.spec(part, batch_size))
                    graph = runtime.load(path, [request])[0]
                    errors = self._compare(part, batch_size, graph, inputs_of(batch_size))
                    write_json(_record_path(path), asdict(GateRecord(key, errors)))
                yield errors

    def _compare(
        self, part: Part, batch_size: int, graph: CompiledGraph, inputs: Tensors
    ) -> GraphErrors:
        source = self._build.onnx_file(part, batch_size)
        expected = CpuGraph(source, {}, num_threads=0).run(inputs)
        for name, values in inputs.items():
            graph.inputs[name][:] = values
        start = time.perf_counter()
        graph.run()
        seconds = time.perf_counter() - start
        errors = compare(expected, graph.outputs, self._num_layers(part))
        return GraphErrors(part.label, batch_size, seconds, errors)

    def _num_layers(self, part: Part) -> dict[str, int]:
        """How many layers of its chunk each output has gone through."""
        passed = {
            name(layer, head): layer - part.start_layer + 1
            for layer in range(part.start_layer, part.end_layer)
            for head in range(self._plan.config.num_kv_heads)
            for name in (tensors.key_name, tensors.value_name)
        }
        return {tensors.HIDDEN_OUT: part.end_layer - part.start_layer, **passed}

    def _lm_head_inputs(self, hidden: FloatArray, batch_size: int) -> Tensors:
        """The LM head's input: the tokens after those that are past."""
        return {tensors.HIDDEN_IN: hidden[self._num_past : self._num_past + batch_size]}


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


def _key(compiled: Mapping[Part, CompiledPart], tokens: npt.NDArray[np.integer]) -> str:
    """A digest of all graphs, since the later ones get what the earlier ones make, and the text."""
    graphs = [binary.key for part in compiled.values() for binary in part.emulator.values()]
    return hashlib.sha256(
        json.dumps([FORMAT_VERSION, graphs, tokens.tolist()]).encode()
    ).hexdigest()


def _record_path(binary: Path) -> Path:
    return binary.with_name(f"{binary.name}.gate.json")


def _recorded(binary: Path, key: str) -> GraphErrors | None:
    """The comparison of a binary if it was made with the same graphs and text."""
    try:
        record = read_json(_record_path(binary), GateRecord)
    except ConfigError:
        return None
    return record.errors if record.key == key else None
