"""Lowered graphs on ONNX Runtime's CPU kernels: what calibration and evaluation run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from powerserve.backend.base import FloatArray
from powerserve.backend.qnn import tensors
from powerserve.backend.qnn.config_file import ModelParameters
from powerserve.backend.qnn.tensors import ChunkShape, GraphSpec
from powerserve.backend.reference.rope import rope_tables
from powerserve.convert.qnn.onnx_graph import OnnxGraph
from powerserve.convert.qnn.source import NpuModel
from powerserve.core.errors import BackendError, ContextLengthError

MASK_VALUE = ModelParameters().attention_mask_value
_ONLY_FATAL = 4  # ONNX Runtime's log level; errors are in its exceptions too

Tensors = Mapping[str, npt.NDArray[Any]]
Observe = Callable[[Tensors], None]
"""Called with a batch's outputs, without the rows that pad it."""


class CpuGraph:
    """A graph that is ready to run."""

    def __init__(self, model: bytes | Path, constants: Tensors, num_threads: int) -> None:
        """`constants` are those that the model refers to without holding them.

        Raises BackendError if ONNX Runtime refuses the model.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ONLY_FATAL
        options.intra_op_num_threads = num_threads
        # Weights are widened once, when the session is made, instead of in every run.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(each) for each in constants.values()]
        options.add_external_initializers(list(constants), values)
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has no common base class
            raise BackendError(f"ONNX Runtime refuses a graph: {error}") from None
        self._outputs = [output.name for output in self._session.get_outputs()]

    @classmethod
    def of(cls, graph: OnnxGraph, num_threads: int = 0) -> CpuGraph:
        """A graph in memory, whose constants may take more than the 2 GiB of an ONNX file."""
        model, constants = graph.detached()
        return cls(model, constants, num_threads)

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Every output by name."""
        values = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, values, strict=True))


@dataclass(frozen=True, slots=True)
class _HeadCache:
    """Where K and V of one head go: names of the inputs, and of the outputs they come from."""

    layer: int
    head: int

    @property
    def key_input(self) -> str:
        return tensors.key_cache_name(self.layer, self.head)

    @property
    def value_input(self) -> str:
        return tensors.value_cache_name(self.layer, self.head)

    def store(self, inputs: Tensors, outputs: Tensors, start: int) -> None:
        """Write a batch's K and V into the cells from `start` on."""
        keys = outputs[tensors.key_name(self.layer, self.head)]
        values = outputs[tensors.value_name(self.layer, self.head)]
        cells = slice(start, start + len(keys))
        inputs[self.key_input][:, cells] = keys.T
        inputs[self.value_input][cells] = values


class CpuChunk:
    """A chunk with its KV cache, which computes one chain of tokens."""

    def __init__(
        self, graph: CpuGraph, spec: GraphSpec, shape: ChunkShape, model: NpuModel
    ) -> None:
        self.shape = shape
        self._graph = graph
        self._config = model.config
        self._rope_factors = model.rope_factors()
        self._inputs = {each.name: each.zeros() for each in spec.inputs}
        self._caches = [
            _HeadCache(layer, head)
            for layer in range(shape.start_layer, shape.end_layer)
            for head in range(model.config.num_kv_heads)
        ]

    def run(self, hidden: FloatArray, start: int = 0, observe: Observe | None = None) -> FloatArray:
        """Compute the tokens after the first `start`, batch by batch: [T, embed_dim] as given.

        K and V of the tokens go into the cells of their positions. Raises ContextLengthError if
        there are too few cells.
        """
        if start + len(hidden) > self.shape.cache_size:
            raise ContextLengthError(
                f"{start + len(hidden)} tokens do not fit into a cache of {self.shape.cache_size}"
            )
        result = np.empty_like(hidden)
        for first, piece in _batches(hidden, self.shape.batch_size):
            outputs = self._run_batch(piece, start + first)
            result[first : first + len(piece)] = outputs[tensors.HIDDEN_OUT]
            if observe is not None:
                observe(outputs)
        return result

    def keys(self, layer: int, head: int, num_tokens: int) -> npt.NDArray[Any]:
        """Keys of the first cells, scaled: [num_tokens, head_dim]."""
        return self._inputs[tensors.key_cache_name(layer, head)][:, :num_tokens].T

    def values(self, layer: int, head: int, num_tokens: int) -> npt.NDArray[Any]:
        """Values of the first cells: [num_tokens, head_dim]."""
        return self._inputs[tensors.value_cache_name(layer, head)][:num_tokens]

    def _run_batch(self, hidden: FloatArray, start: int) -> Tensors:
        num_tokens, inputs = len(hidden), self._inputs
        inputs[tensors.HIDDEN_IN][:num_tokens] = hidden
        inputs[tensors.ATTENTION_BIAS][:] = chain_bias(self.shape, start)
        positions = np.arange(start, start + self.shape.batch_size, dtype=np.int32)
        cos, sin = rope_tables(positions, self._config.rope, self._rope_factors)
        inputs[tensors.ROPE_COS][:], inputs[tensors.ROPE_SIN][:] = cos, sin
        outputs = {name: rows[:num_tokens] for name, rows in self._graph.run(inputs).items()}
        for cache in self._caches:
            cache.store(inputs, outputs, start)
        return outputs


class CpuLMHead:
    """The LM head for any number of rows."""

    def __init__(self, graph: CpuGraph, batch_size: int) -> None:
        self._graph = graph
        self._batch_size = batch_size

    def run(self, hidden: FloatArray) -> Iterator[Tensors]:
        """The outputs for hidden states [T, embed_dim], batch by batch."""
        for _, rows in _batches(hidden, self._batch_size):
            padded = np.zeros((self._batch_size, hidden.shape[1]), np.float32)
            padded[: len(rows)] = rows
            outputs = self._graph.run({tensors.HIDDEN_IN: padded})
            yield {name: values[: len(rows)] for name, values in outputs.items()}


def chain_bias(shape: ChunkShape, start: int) -> npt.NDArray[np.float32]:
    """The mask of a chain that follows `start` cached tokens: [B, context]."""
    bias = np.full((shape.batch_size, shape.context_size), MASK_VALUE, np.float32)
    bias[:, :start] = 0
    own = slice(shape.cache_size, shape.cache_size + shape.batch_size)
    bias[:, own] = np.triu(bias[:, own], k=1)
    return bias


def _batches(rows: FloatArray, size: int) -> Iterator[tuple[int, FloatArray]]:
    """Slices of `rows`, each with the index of its first row."""
    for first in range(0, len(rows), size):
        yield first, rows[first : first + size]
