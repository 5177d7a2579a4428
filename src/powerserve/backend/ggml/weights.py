"""Weights into ggml buffers: each matrix where this CPU multiplies it fastest.

A matrix goes into a repacking buffer if the CPU has kernels for its type and size there; everything
else lies in plain memory. An embedding table is read by rows and must stay plain; if it is also the
output layer, a second, repacked copy serves that (as llama.cpp does).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import Weights, WeightTensor
from powerserve.backend.checks import check_weights
from powerserve.backend.ggml.library import USAGE_WEIGHTS, GgmlLibrary, Tensor
from powerserve.backend.ggml.memory import HostMemory, advise_huge_pages
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import (
    BackendError,
    MemoryLimitError,
    UnsupportedModelError,
)
from powerserve.graph import Graph, Weight
from powerserve.graph.ops import Embedding, Linear

ALIGNMENT = 64  # bytes; ggml's TENSOR_ALIGNMENT is 32, a cache line avoids split loads
PROBE_COLUMNS = 512  # activation columns in the question whether a kernel exists


Item = TypeVar("Item")


class Role(Enum):
    """What a tensor is used for: the right-hand side of Linear, or anything else."""

    MATRIX = "matrix"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Placement:
    """One tensor to create: what for, from which bytes, and where (None: plain memory)."""

    role: Role
    name: str
    dtype: DType
    shape: tuple[int, ...]  # row-major
    data: npt.NDArray[np.uint8]
    buffer_type: int | None = None
    can_map: bool = True  # the file's bytes can be used in place


class WeightStore:
    """All weights of one model inside ggml.

    `matrix(weight)` is the tensor for multiplication, `plain(weight)` the one for everything else.
    """

    def __init__(
        self, library: GgmlLibrary, device: int, graph: Graph, weights: Weights, *, use_mmap: bool
    ) -> None:
        self._library = library
        self._contexts: list[int] = []
        self._buffers: list[int] = []
        self._memory: list[object] = []  # keeps host memory and mapped files alive
        self._tensors: dict[tuple[Role, str], int] = {}
        self.size_bytes = 0
        self.buffer_sizes: dict[str, int] = {}  # buffer type -> bytes, for reports
        try:
            self._load(plan_placements(library, device, graph, weights), use_mmap)
        except BaseException:
            self.close()
            raise

    def matrix(self, weight: Weight) -> int:
        """The tensor of a weight that Linear multiplies with."""
        tensor = self._tensors.get((Role.MATRIX, weight.name))
        return self.plain(weight) if tensor is None else tensor

    def plain(self, weight: Weight) -> int:
        """The tensor of a table, norm, bias or factor."""
        return self._tensors[Role.PLAIN, weight.name]

    def close(self) -> None:
        """Free buffers and tensor headers."""
        for buffer in self._buffers:
            self._library.backend_buffer_free(buffer)
        for context in self._contexts:
            self._library.free(context)
        self._buffers, self._contexts, self._memory = [], [], []

    def _load(self, placements: list[Placement], use_mmap: bool) -> None:
        by_type: dict[int | None, list[Placement]] = {}
        for placement in placements:
            by_type.setdefault(placement.buffer_type, []).append(placement)
        for buffer_type, group in by_type.items():
            if buffer_type is not None:
                self._fill_repacked(buffer_type, group)
            else:
                self._map([item for item in group if use_mmap and _can_map(item)])
                self._copy([item for item in group if not (use_mmap and _can_map(item))])

    def _map(self, placements: list[Placement]) -> None:
        """Use the file's own pages. ggml wants a buffer per memory range: one for each tensor."""
        context = self._new_context(len(placements))
        for placement in placements:
            address, size = placement.data.ctypes.data, placement.data.nbytes
            buffer = self._library.backend_cpu_buffer_from_ptr(address, size)
            self._adopt(buffer, placement.data, "mapped", size)
            self._allocate(context, placement, buffer, address)

    def _copy(self, placements: list[Placement]) -> None:
        """Copy into memory of our own."""
        offsets, total = _offsets(placement.data.nbytes for placement in placements)
        memory = HostMemory(total, huge_pages=True)
        buffer = self._library.backend_cpu_buffer_from_ptr(memory.address, max(total, ALIGNMENT))
        self._adopt(buffer, memory, "CPU", total)
        context = self._new_context(len(placements))
        for placement, offset in zip(placements, offsets, strict=True):
            self._allocate(context, placement, buffer, memory.address + offset)

        def copy(item: tuple[Placement, int]) -> None:
            placement, offset = item
            memory.bytes[offset : offset + placement.data.nbytes] = placement.data

        _in_parallel(copy, list(zip(placements, offsets, strict=True)))

    def _fill_repacked(self, buffer_type: int, placements: list[Placement]) -> None:
        """Let ggml rearrange each matrix for its kernels."""
        library = self._library
        context = self._new_context(len(placements))
        for placement in placements:
            self._new_tensor(context, placement)
        buffer: int | None = library.backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise MemoryLimitError("there is not enough memory for the model's weights")
        size = library.backend_buffer_get_size(buffer)
        advise_huge_pages(library.backend_buffer_get_base(buffer), size)
        self._adopt(buffer, None, library.backend_buft_name(buffer_type).decode(), size)

        def repack(placement: Placement) -> None:
            data = np.ascontiguousarray(placement.data)
            tensor = self._tensors[placement.role, placement.name]
            library.backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)

        _in_parallel(repack, placements)  # ctypes lets go of the GIL while ggml repacks

    def _new_tensor(self, context: int, placement: Placement) -> int:
        dimensions = placement.shape[::-1]  # ggml counts from the fastest dimension
        create = getattr(self._library, f"new_tensor_{len(dimensions)}d")
        tensor: int = create(context, placement.dtype.ggml_id, *dimensions)
        self._library.set_name(tensor, placement.name.encode()[:63])
        self._tensors[placement.role, placement.name] = tensor
        return tensor

    def _allocate(self, context: int, placement: Placement, buffer: int, address: int) -> None:
        tensor = self._new_tensor(context, placement)
        if self._library.backend_tensor_alloc(buffer, tensor, address):
            raise BackendError(f"ggml refused memory for {placement.name}")

    def _new_context(self, num_tensors: int) -> int:
        context = self._library.new_context(num_tensors)
        self._contexts.append(context)
        return context

    def _adopt(self, buffer: int, memory: object, kind: str, size: int) -> None:
        self._library.backend_buffer_set_usage(buffer, USAGE_WEIGHTS)
        self._buffers.append(buffer)
        self._memory.append(memory)
        self.size_bytes += size
        self.buffer_sizes[kind] = self.buffer_sizes.get(kind, 0) + size


def plan_placements(
    library: GgmlLibrary, device: int, graph: Graph, weights: Weights
) -> list[Placement]:
    """Decide for every weight of the graph which tensors to make of it, and where.

    Raises:
        ModelFileError: a tensor is missing or has another shape than the model's sizes need.
        UnsupportedModelError: ggml cannot multiply a matrix of this type.
    """
    check_weights(graph, weights)
    matrices, plain = _roles(graph)
    placements = [_place_plain(weight, weights[weight.name]) for weight in plain.values()]
    probe = _KernelProbe(library, device)
    try:
        for weight in matrices.values():
            tensor = weights[weight.name]
            buffer_type = probe.best_buffer_type(weight, tensor.dtype)
            if buffer_type is None and weight.name in plain:
                continue  # without repacking kernels, a tied table serves both roles
            placements.append(
                Placement(
                    Role.MATRIX, weight.name, tensor.dtype, tensor.shape, tensor.data, buffer_type
                )
            )
    finally:
        probe.close()
    return placements


class _KernelProbe:
    """Asks which buffer type has a multiplication kernel for a weight, once per type and shape."""

    def __init__(self, library: GgmlLibrary, device: int) -> None:
        self._library = library
        self._device = device
        # ggml looks only at the weight's buffer type, so an empty buffer is enough to ask.
        self._empty = {
            buffer_type: library.backend_buft_alloc_buffer(buffer_type, 0)
            for buffer_type in library.extra_buffer_types(device)
        }
        self._answers: dict[tuple[DType, tuple[int, ...]], int | None] = {}

    def best_buffer_type(self, weight: Weight, dtype: DType) -> int | None:
        key = (dtype, weight.shape)
        if key not in self._answers:
            self._answers[key] = self._ask(weight, dtype)
        return self._answers[key]

    def close(self) -> None:
        for buffer in self._empty.values():
            self._library.backend_buffer_free(buffer)

    def _ask(self, weight: Weight, dtype: DType) -> int | None:
        for buffer_type, buffer in self._empty.items():
            if self._multiplies(weight, dtype, buffer):
                return buffer_type
        if not self._multiplies(weight, dtype, None):
            raise UnsupportedModelError(
                f"ggml {self._library.version_text} cannot multiply {weight.name} of type {dtype}"
            )
        return None

    def _multiplies(self, weight: Weight, dtype: DType, buffer: int | None) -> bool:
        library = self._library
        context = library.new_context(3)
        try:
            rows, columns = weight.shape
            matrix = library.new_tensor_2d(context, dtype.ggml_id, columns, rows)
            Tensor.from_address(matrix).buffer = buffer
            x = library.new_tensor_2d(context, dtypes.F32.ggml_id, columns, PROBE_COLUMNS)
            product = library.mul_mat(context, matrix, x)
            supported: bool = library.backend_dev_supports_op(self._device, product)
            return supported
        finally:
            library.free(context)


def _roles(graph: Graph) -> tuple[dict[str, Weight], dict[str, Weight]]:
    """The graph's weights as (multiplied by Linear, read in any other way)."""
    matrices = {
        node.operation.weight.name: node.operation.weight
        for node in graph.nodes
        if isinstance(node.operation, Linear)
    }
    tables = {
        node.operation.table.name for node in graph.nodes if isinstance(node.operation, Embedding)
    }
    plain = {
        name: weight
        for name, weight in graph.weights().items()
        if name not in matrices or name in tables
    }
    return matrices, plain


def _place_plain(weight: Weight, tensor: WeightTensor) -> Placement:
    """Vectors become float32, as ggml's element-wise kernels want them; tables stay as they are."""
    if len(weight.shape) == 2 or tensor.dtype == dtypes.F32:
        return Placement(Role.PLAIN, weight.name, tensor.dtype, tensor.shape, tensor.data)
    widened = _widen(weight.name, tensor).view(np.uint8)
    return Placement(Role.PLAIN, weight.name, dtypes.F32, tensor.shape, widened, can_map=False)


def _widen(name: str, tensor: WeightTensor) -> npt.NDArray[np.float32]:
    if tensor.dtype == dtypes.F16:
        return tensor.data.view(np.float16).astype(np.float32)
    if tensor.dtype == dtypes.BF16:
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    raise UnsupportedModelError(f"vector {name} has type {tensor.dtype}; F32, F16 and BF16 work")


def _can_map(placement: Placement) -> bool:
    # ggml's CPU buffers start at a multiple of 32 bytes; GGUF's alignment usually provides that.
    return placement.can_map and placement.data.ctypes.data % 32 == 0


def _offsets(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Aligned offsets for tensors of these sizes laid end to end, and the total."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _in_parallel(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Run `work` on each item in a few threads; the first error is raised."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(work, items):
            pass
