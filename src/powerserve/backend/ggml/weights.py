"""The weights of a model in memory, as `placement` plans it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from powerserve.backend.base import Weights
from powerserve.backend.ggml.kernels.choice import Packing
from powerserve.backend.ggml.kernels.library import PANEL_ROWS
from powerserve.backend.ggml.library import USAGE_WEIGHTS, GgmlLibrary
from powerserve.backend.ggml.memory import HostMemory, advise_huge_pages
from powerserve.backend.ggml.placement import Placement, Role, plan_placements
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import BackendError, MemoryLimitError
from powerserve.graph import Graph, Weight

ALIGNMENT = 64  # bytes; ggml's TENSOR_ALIGNMENT is 32, a cache line avoids split loads
PANELS_AT_ONCE = 64  # packed by a thread before it takes others

Item = TypeVar("Item")


class WeightStore:
    """All weights of one model inside ggml.

    `matrix(weight)` is the tensor that ggml multiplies with, `packed(weight)` the one for our own
    kernels, `plain(weight)` the one for everything else.
    """

    def __init__(
        self,
        library: GgmlLibrary,
        device: int,
        graph: Graph,
        weights: Weights,
        *,
        use_mmap: bool,
        packing: Packing | None = None,
    ) -> None:
        self.packing = packing
        self._library = library
        self._contexts: list[int] = []
        self._buffers: list[int] = []
        self._memory: list[object] = []  # keeps host memory and mapped files alive
        self._tensors: dict[tuple[Role, str], int] = {}
        self._packed_types: dict[str, DType] = {}
        self.size_bytes = 0
        self.buffer_sizes: dict[str, int] = {}  # buffer type -> bytes, for reports
        try:
            self._load(plan_placements(library, device, graph, weights, packing), use_mmap)
        except BaseException:
            self.close()
            raise

    def matrix(self, weight: Weight) -> int:
        """The tensor of a weight that Linear multiplies with."""
        tensor = self._tensors.get((Role.MATRIX, weight.name))
        return self.plain(weight) if tensor is None else tensor

    def is_packed(self, weight: Weight) -> bool:
        """Whether our own kernels multiply with this matrix."""
        return (Role.PACKED, weight.name) in self._tensors

    def packed(self, weight: Weight) -> int:
        """The tensor of a packed matrix: its bytes, as I8."""
        return self._tensors[Role.PACKED, weight.name]

    def packed_type(self, weight: Weight) -> DType:
        """The type of what is packed."""
        return self._packed_types[weight.name]

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
        packed = [placement for placement in placements if placement.role is Role.PACKED]
        if packed:
            self._pack(packed)
        by_type: dict[int | None, list[Placement]] = {}
        for placement in placements:
            if placement.role is Role.PACKED:
                continue
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
        memory, buffer = self._new_memory(total, "CPU")
        context = self._new_context(len(placements))
        for placement, offset in zip(placements, offsets, strict=True):
            self._allocate(context, placement, buffer, memory.address + offset)

        def copy(item: tuple[Placement, int]) -> None:
            placement, offset = item
            memory.bytes[offset : offset + placement.data.nbytes] = placement.data

        _in_parallel(copy, list(zip(placements, offsets, strict=True)))

    def _pack(self, placements: list[Placement]) -> None:
        """Rearrange matrices for our own kernels."""
        assert self.packing is not None
        kernels = self.packing.kernels
        sizes = [self.packing.size_bytes(each.dtype, each.shape) for each in placements]
        offsets, total = _offsets(sizes)
        memory, buffer = self._new_memory(total, "kernels")
        context = self._new_context(len(placements))
        work = []
        for placement, offset, size in zip(placements, offsets, sizes, strict=True):
            address = memory.address + offset
            self._packed_types[placement.name] = placement.dtype
            header = Placement(Role.PACKED, placement.name, dtypes.I8, (size,), placement.data)
            self._allocate(context, header, buffer, address)
            num_panels = -(-placement.shape[0] // PANEL_ROWS)
            for first in range(0, num_panels, PANELS_AT_ONCE):
                work.append((placement, address, first, min(PANELS_AT_ONCE, num_panels - first)))

        def pack(item: tuple[Placement, int, int, int]) -> None:
            placement, address, first, count = item
            data = np.ascontiguousarray(placement.data)
            rows, columns = placement.shape
            kernels.pack(
                placement.dtype.ggml_id, rows, columns, data.ctypes.data, address, first, count
            )

        _in_parallel(pack, work)

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

    def _new_memory(self, size: int, kind: str) -> tuple[HostMemory, int]:
        """Memory of our own, and ggml's buffer in it."""
        memory = HostMemory(size, huge_pages=True)
        buffer = self._library.backend_cpu_buffer_from_ptr(memory.address, max(size, ALIGNMENT))
        self._adopt(buffer, memory, kind, size)
        return memory, buffer

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
