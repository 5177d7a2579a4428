"""A graph compiled for one shape: write the inputs, compute, read the logits."""

from __future__ import annotations

import ctypes
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import (
    Batch,
    Executable,
    FloatArray,
    OperationTime,
    StepInterrupted,
    StepShape,
)
from powerserve.backend.ggml.cache import GgmlCache
from powerserve.backend.ggml.library import STATUS_ABORTED, STATUS_SUCCESS, GgmlLibrary, Tensor
from powerserve.backend.ggml.lowering import lower
from powerserve.backend.ggml.mask import write_mask
from powerserve.backend.ggml.single_node import SingleNodeGraph
from powerserve.core.errors import BackendError, MemoryLimitError

if TYPE_CHECKING:
    from powerserve.backend.ggml.backend import GgmlModel


class ComputeBuffer:
    """The scratch memory that all graphs of a model share; only one of them runs at a time.

    `generation` changes when the buffer had to grow: graphs made before must be made again.
    """

    def __init__(self, library: GgmlLibrary, buffer_type: int) -> None:
        self._library = library
        self._allocator: int = library.gallocr_new(buffer_type)
        self.generation = 0

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        size: int = self._library.gallocr_get_buffer_size(self._allocator, 0)
        return size

    def place(self, graph: int) -> None:
        """Give every tensor of a new ggml graph its address."""
        before = self.size_bytes
        if not self._library.gallocr_alloc_graph(self._allocator, graph):
            raise MemoryLimitError(
                "there is not enough memory for the compute buffer; "
                "choose a smaller batch (-b) or context (-c)"
            )
        if self.size_bytes != before:
            self.generation += 1

    def close(self) -> None:
        """Free the memory."""
        self._library.gallocr_free(self._allocator)


class GgmlExecutable(Executable):
    """One compiled shape. A smaller last slice is padded by repeating the batch's last token.

    A repeated token computes the same K and V and writes them to the same cell, so padding changes
    nothing and needs no cell of its own.
    """

    def __init__(self, model: GgmlModel, cache: GgmlCache, shape: StepShape) -> None:
        self._model = model
        self._library = model.library
        self._cache = cache
        self.shape = shape
        self._context = 0
        self._build()

    def run(self, batch: Batch) -> FloatArray:
        self._prepare(batch)
        self._compute(self._graph)
        return self._logits[: len(batch.output_rows)]

    def profile(self, batch: Batch) -> list[OperationTime]:
        self._prepare(batch)
        times: list[OperationTime] = []
        with SingleNodeGraph(self._library) as single:
            for node in single.nodes_of(self._graph):
                start_s = perf_counter()
                self._compute(single.of(node))
                seconds = perf_counter() - start_s
                times.append(OperationTime(*single.describe(node), seconds))
        return times

    def observed(self) -> dict[str, FloatArray]:
        return self._observed

    def close(self) -> None:
        """Free the graph."""
        if self._context:
            self._library.free(self._context)
            self._context = 0

    def _prepare(self, batch: Batch) -> None:
        if self._generation != self._model.compute_buffer.generation:
            self._build()
        self._write(batch)

    def _compute(self, graph: int) -> None:
        status = self._model.threads.compute(self._model.backend_handle, graph)
        if status == STATUS_ABORTED:
            raise StepInterrupted
        if status != STATUS_SUCCESS:
            raise BackendError(f"ggml could not compute a step (status {status})")

    def _build(self) -> None:
        self.close()
        model = self._model
        lowered = lower(
            self._library, model.config, model.graph, model.weights, self._cache, self.shape
        )
        self._context = lowered.context
        self._graph = lowered.graph
        self._custom = lowered.custom
        model.compute_buffer.place(lowered.graph)
        self._generation = model.compute_buffer.generation
        inputs = lowered.inputs
        self._token_ids = self._view(inputs.token_ids, np.int32)
        self._positions = self._view(inputs.positions, np.int32)
        self._cells = self._view(inputs.cells, np.int64)
        self._masks = self._mask_views(self._view(inputs.masks, np.uint16))
        self._output_rows = self._view(inputs.output_rows, np.int32)
        self._units = self._units_view(lowered.units)
        self._logits = self._logits_view(lowered.logits)
        self._observed = {
            name: self._view(tensor, np.float32) for name, tensor in lowered.observed.items()
        }

    def _mask_views(self, masks: npt.NDArray[np.uint16]) -> list[npt.NDArray[np.uint16]]:
        """The mask of each slice, [tokens, cells]."""
        views, start = [], 0
        for piece in self.shape.slices:
            stop = start + piece.num_tokens * piece.num_cells
            views.append(masks[start:stop].reshape(piece.num_tokens, piece.num_cells))
            start = stop
        return views

    def _units_view(self, address: int | None) -> FloatArray:
        """The unit vectors as [tokens, 2, pairs]."""
        if address is None:
            return np.empty((0, 2, 0), np.float32)
        units = self._view(address, np.float32)
        return units.reshape(self.shape.num_tokens, 2, -1)

    def _logits_view(self, address: int | None) -> FloatArray:
        if address is None:
            return np.empty((self.shape.num_outputs, 0), np.float32)
        logits = self._view(address, np.float32)
        return logits.reshape(self.shape.num_outputs, self._model.config.vocab_size)

    def _write(self, batch: Batch) -> None:
        for target, source in (
            (self._token_ids, batch.token_ids),
            (self._positions, batch.positions),
            (self._cells, batch.cells),
            (self._output_rows, batch.output_rows),
        ):
            length = len(source)
            target[:length] = source
            if length < len(target):
                target[length:] = source[length - 1]
        self._units[:, 0], self._units[:, 1] = 1, 0  # other graphs use the same memory
        for mask, shape, piece in zip(self._masks, self.shape.slices, batch.slices, strict=True):
            own_cells = batch.cells[piece.start : piece.start + len(piece.parents)]
            write_mask(mask, piece, own_cells, shape.first_cell)

    def _view(self, address: int, dtype: Any) -> npt.NDArray[Any]:
        """A tensor's memory as a flat array."""
        data = Tensor.from_address(address).data
        size = self._library.nbytes(address)
        if not data:  # ggml gives no memory to an input that nothing reads
            return np.zeros(size, np.uint8).view(dtype)
        return np.frombuffer((ctypes.c_char * size).from_address(data), dtype)
