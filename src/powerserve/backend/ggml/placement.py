"""What becomes of each weight: which tensors are made of it, and where they lie.

A matrix is packed for our kernels if there are any for its type; else it goes into a repacking
buffer of ggml's if the CPU has kernels for its type and size there; everything else lies in plain
memory. An embedding table is read by rows and must stay plain; if it is also the output layer, a
second copy, packed or repacked, serves that (as llama.cpp does).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import Weights, WeightTensor
from powerserve.backend.checks import check_weights
from powerserve.backend.ggml.kernels.choice import Packing
from powerserve.backend.ggml.library import GgmlLibrary, Tensor
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import UnsupportedModelError
from powerserve.graph import Graph, Weight
from powerserve.graph.ops import Embedding, Linear

PROBE_COLUMNS = 512  # activation columns in the question whether a kernel exists


class Role(Enum):
    """What a tensor is for: products by ggml's kernels, products by ours, or anything else."""

    MATRIX = "matrix"
    PACKED = "packed"
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


def plan_placements(
    library: GgmlLibrary,
    device: int,
    graph: Graph,
    weights: Weights,
    packing: Packing | None = None,
) -> list[Placement]:
    """Decide for every weight of the graph which tensors to make of it, and where.

    Matrices that fit `packing` are packed for our own kernels.

    Raises:
        ModelFileError: a tensor is missing or has another shape than the model's sizes need.
        UnsupportedModelError: ggml cannot multiply a matrix of this type.
    """
    check_weights(graph, weights)
    multiplied, plain = _roles(graph)
    placements = [_place_plain(weight, weights[weight.name]) for weight in plain.values()]
    probe = _KernelProbe(library, device)
    try:
        for weight in multiplied.values():
            tensor = weights[weight.name]
            if packing is not None and packing.fits(tensor.dtype, tensor.shape):
                placements.append(_place(Role.PACKED, weight, tensor))
                continue
            buffer_type = probe.best_buffer_type(weight, tensor.dtype)
            if buffer_type is None and weight.name in plain:
                continue  # without repacking kernels, a tied table serves both roles
            placements.append(_place(Role.MATRIX, weight, tensor, buffer_type))
    finally:
        probe.close()
    return placements


def matrices(graph: Graph, weights: Weights) -> list[WeightTensor]:
    """What the graph's products multiply with.

    Raises:
        ModelFileError: a tensor is missing or has another shape than the model's sizes need.
    """
    check_weights(graph, weights)
    return [weights[name] for name in _roles(graph)[0]]


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
    multiplied = {
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
        if name not in multiplied or name in tables
    }
    return multiplied, plain


def _place(
    role: Role, weight: Weight, tensor: WeightTensor, buffer_type: int | None = None
) -> Placement:
    return Placement(role, weight.name, tensor.dtype, tensor.shape, tensor.data, buffer_type)


def _place_plain(weight: Weight, tensor: WeightTensor) -> Placement:
    """Vectors become float32, as ggml's element-wise kernels want them; tables stay as they are."""
    if len(weight.shape) == 2 or tensor.dtype == dtypes.F32:
        return _place(Role.PLAIN, weight, tensor)
    widened = _widen(weight.name, tensor).view(np.uint8)
    return Placement(Role.PLAIN, weight.name, dtypes.F32, tensor.shape, widened, can_map=False)


def _widen(name: str, tensor: WeightTensor) -> npt.NDArray[np.float32]:
    if tensor.dtype == dtypes.F16:
        return tensor.data.view(np.float16).astype(np.float32)
    if tensor.dtype == dtypes.BF16:
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    raise UnsupportedModelError(f"vector {name} has type {tensor.dtype}; F32, F16 and BF16 work")
