"""The last two operations of a model alone: for backends that compute the others elsewhere."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray, StepInterrupted, Weights
from powerserve.backend.ggml.backend import GgmlBackend
from powerserve.backend.ggml.executable import ComputeBuffer
from powerserve.backend.ggml.library import STATUS_ABORTED, STATUS_SUCCESS, Tensor
from powerserve.backend.ggml.weights import WeightStore
from powerserve.core import dtypes
from powerserve.core.errors import BackendError
from powerserve.graph import Graph, Node
from powerserve.graph.ops import Linear, RMSNorm


class GgmlOutputLayer:
    """Final norm and output layer on the CPU: hidden states [N, D] to logits [N, vocab]."""

    def __init__(self, backend: GgmlBackend, nodes: Sequence[Node], weights: Weights) -> None:
        """`nodes`: the norm's and the output layer's.

        Raises as `plan_placements` does.
        """
        norm, output = (node.operation for node in nodes)
        assert isinstance(norm, RMSNorm) and isinstance(output, Linear)
        self._norm, self._output = norm, output
        self._backend = backend
        self._library = library = backend.library
        device = library.backend_get_device(backend.handle)
        self._weights = WeightStore(
            library, device, Graph(nodes=list(nodes)), weights, use_mmap=backend.options.use_mmap
        )
        self.size_bytes = self._weights.size_bytes
        self._buffer = ComputeBuffer(library, library.backend_cpu_buffer_type())
        self._context = 0
        self._num_rows = 0

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """Logits, valid until the next call; raises StepInterrupted after `Backend.interrupt`."""
        if len(hidden) != self._num_rows:
            self._build(len(hidden))
        self._hidden[:] = hidden
        status = self._backend.threads.compute(self._backend.handle, self._graph)
        if status == STATUS_ABORTED:
            raise StepInterrupted
        if status != STATUS_SUCCESS:
            raise BackendError(f"ggml could not compute the output layer (status {status})")
        return self._logits

    def close(self) -> None:
        """Release graph, buffer and weights."""
        self._free_graph()
        self._buffer.close()
        self._weights.close()

    def _build(self, num_rows: int) -> None:
        """The graph for this many rows; most often the next call has as many."""
        self._free_graph()
        library, weights = self._library, self._weights
        out_features, in_features = self._output.weight.shape
        self._context = context = library.new_context(8, num_graph_nodes=8)
        self._graph = library.new_graph_custom(context, 8, False)
        hidden = library.new_tensor_2d(context, dtypes.F32.ggml_id, in_features, num_rows)
        library.set_input(hidden)
        normed = library.rms_norm(context, hidden, self._norm.eps)
        normed = library.mul(context, normed, weights.plain(self._norm.weight))
        logits = library.mul_mat(context, weights.matrix(self._output.weight), normed)
        if self._output.bias is not None:
            logits = library.add(context, logits, weights.plain(self._output.bias))
        library.set_output(logits)
        library.build_forward_expand(self._graph, logits)
        self._buffer.place(self._graph)
        self._hidden = _view(hidden, (num_rows, in_features))
        self._logits = _view(logits, (num_rows, out_features))
        self._num_rows = num_rows

    def _free_graph(self) -> None:
        if self._context:
            self._library.free(self._context)
            self._context = self._num_rows = 0


def _view(address: int, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """A float32 tensor's memory."""
    data = Tensor.from_address(address).data
    memory: Any = (ctypes.c_char * dtypes.F32.size_bytes(shape[0] * shape[1])).from_address(data)
    values: npt.NDArray[np.float32] = np.frombuffer(memory, np.float32).reshape(shape)
    return values
