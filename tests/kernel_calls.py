"""Calls of the kernels as ggml makes them, with margins around everything that they write to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from ctypes import addressof
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernel_reference import Linear
from kernel_weights import ByteArray, FloatArray, KernelWeight
from powerserve.backend.ggml.kernels.library import PANEL_ROWS, Flag, KernelLibrary, LinearSpec
from powerserve.backend.ggml.library import Tensor

MARGIN = 64  # floats
UNTOUCHED = 0xFFFFFFFF  # not a number, and none that arithmetic makes


class GuardedColumns:
    """A float32 matrix [columns, features] inside memory that must stay as it is."""

    def __init__(self, columns: int, features: int, padding: int = 0, offset: int = 0) -> None:
        """`padding` floats follow each column; the first begins `offset` floats later."""
        start, stride = MARGIN + offset, features + padding
        self._words = np.empty(start + columns * stride + MARGIN, np.uint32)
        self._around = np.ones(self._words.shape, bool)
        self._inside(self._around, start, stride)[:, :features] = False
        floats = self._words.view(np.float32)
        self.values: FloatArray = self._inside(floats, start, stride)[:, :features]
        self.tensor = tensor_of(self.values)
        self.clear()

    def clear(self) -> None:
        """Make every number one that no kernel has written."""
        self._words[:] = UNTOUCHED

    def check(self) -> None:
        """Nothing was written around the matrix."""
        assert (self._words[self._around] == UNTOUCHED).all(), "written outside of the output"

    @staticmethod
    def _inside(memory: npt.NDArray[Any], start: int, stride: int) -> npt.NDArray[Any]:
        return memory[start:-MARGIN].reshape(-1, stride)


def tensor_of(array: npt.NDArray[Any]) -> Tensor:
    """A ggml tensor of the array's memory; the array must outlive it."""
    tensor = Tensor(data=array.ctypes.data)
    ne = [*array.shape[::-1], 1, 1, 1][:4]
    nb = [*array.strides[::-1]]
    for axis in range(4):
        tensor.ne[axis] = ne[axis]
        tensor.nb[axis] = nb[axis] if axis < len(nb) else nb[-1] * ne[len(nb) - 1]
    return tensor


def packed(kernels: KernelLibrary, weight: KernelWeight) -> ByteArray:
    """A weight's panels."""
    size = kernels.packed_bytes(weight.dtype.ggml_id, weight.rows, weight.in_features)
    assert size > 0
    memory = np.empty(size, np.uint8)
    pack_panels(kernels, weight, memory, 0, num_panels(weight.rows))
    return memory


def pack_panels(
    kernels: KernelLibrary, weight: KernelWeight, memory: ByteArray, first: int, count: int
) -> None:
    """Some of a weight's panels into the memory of all."""
    size = (weight.rows, weight.in_features)
    source, target = weight.blocks.ctypes.data, memory.ctypes.data
    kernels.pack(weight.dtype.ggml_id, *size, source, target, first, count)


def num_panels(rows: int) -> int:
    """Panels of so many rows."""
    return -(-rows // PANEL_ROWS)


def uses_bfloat16(kernels: KernelLibrary, columns: int) -> bool:
    """Whether the instruction set in use multiplies so many columns as bfloat16.

    They take two bytes an activation then, else one and a half: int8 and four floats for each 32.
    """
    in_features = 4096
    size: int = kernels.prepared_bytes(in_features, columns)
    return size >= 2 * in_features * columns


def each_instruction_set(kernels: KernelLibrary) -> Iterator[str]:
    """Use one after the other, and the best again in the end."""
    best, *_ = kernels.instruction_sets
    try:
        for name in kernels.instruction_sets:
            kernels.use(name)
            yield name
    finally:
        kernels.use(best)


@dataclass(frozen=True)
class Calls:
    """How an operation is executed."""

    prepared: bool = False  # its activations by an operation of their own
    num_threads: int = 1
    padding: int = 0  # floats after each column of x, of the residual and of the result
    offset: int = 0  # floats by which the memory of prepared activations is shifted


DIRECTLY = Calls()


class Execution:
    """An operation with its weights packed and its tensors laid out; runs as often as wanted."""

    def __init__(self, kernels: KernelLibrary, operation: Linear, calls: Calls = DIRECTLY) -> None:
        self._kernels = kernels
        self._calls = calls
        self._operation = operation
        columns = len(operation.x)
        self._result = GuardedColumns(columns, operation.out_features, calls.padding)
        self._arrays: list[FloatArray | ByteArray] = []  # must live as long as the tensors
        self._tensors: list[Tensor] = []
        self._prepared = self._prepared_memory() if calls.prepared else None
        self._spec = _spec(operation, _flags(operation, calls.prepared))
        sources = [self._columns(operation.x)] if self._prepared is None else [self._prepared[1]]
        if operation.norm is not None and self._prepared is None:
            sources.append(self._tensor(operation.norm))
        sources += [self._tensor(packed(kernels, each)) for each in operation.weights]
        sources += [self._tensor(each) for each in operation.biases]
        if operation.residual is not None:
            sources.append(self._columns(operation.residual))
        set_sources(self._result.tensor, sources)

    def run(self) -> FloatArray:
        """The result [columns, out_features] of one execution."""
        threads = self._calls.num_threads
        self._result.clear()
        if self._prepared is not None:
            memory, tensor, spec = self._prepared
            memory.clear()
            on_threads(threads, _calls_of(self._kernels.op_prepare, tensor, spec))
            memory.check()
        on_threads(threads, _calls_of(self._kernels.op_linear, self._result.tensor, self._spec))
        self._result.check()
        return self._result.values.copy()

    def _prepared_memory(self) -> tuple[GuardedColumns, Tensor, LinearSpec]:
        operation = self._operation
        size = self._kernels.prepared_bytes(*operation.x.shape[::-1])
        memory = GuardedColumns(1, size // 4, offset=self._calls.offset)
        tensor = tensor_of(memory.values[0].view(np.uint8))
        sources = [self._columns(operation.x)]
        flags = Flag(0)
        if operation.norm is not None:
            sources.append(self._tensor(operation.norm))
            flags = Flag.NORM
        set_sources(tensor, sources)
        return memory, tensor, _spec(operation, flags)

    def _columns(self, values: FloatArray) -> Tensor:
        columns, features = values.shape
        copy = GuardedColumns(columns, features, self._calls.padding)
        copy.values[:] = values
        self._arrays.append(copy.values)
        self._tensors.append(copy.tensor)
        return copy.tensor

    def _tensor(self, array: FloatArray | ByteArray) -> Tensor:
        tensor = tensor_of(array)
        self._arrays.append(array)
        self._tensors.append(tensor)
        return tensor


def run(kernels: KernelLibrary, operation: Linear, calls: Calls = DIRECTLY) -> FloatArray:
    """The result of one execution."""
    return Execution(kernels, operation, calls).run()


def _flags(operation: Linear, prepared: bool) -> Flag:
    flags = Flag.PREPARED if prepared else Flag(0)
    if operation.norm is not None and not prepared:
        flags |= Flag.NORM
    if operation.biases:
        flags |= Flag.BIAS
    if operation.residual is not None:
        flags |= Flag.RESIDUAL
    if operation.swiglu:
        flags |= Flag.SWIGLU
    return flags


def _spec(operation: Linear, flags: Flag) -> LinearSpec:
    spec = LinearSpec(int(flags), len(operation.weights), eps=operation.eps)
    spec.in_features = operation.x.shape[1]
    for index, weight in enumerate(operation.weights):
        spec.types[index] = weight.dtype.ggml_id
        spec.rows[index] = weight.rows
    return spec


def set_sources(tensor: Tensor, sources: list[Tensor]) -> None:
    """What an operation reads; they must outlive it."""
    for index, source in enumerate(sources):
        tensor.src[index] = addressof(source)


def _calls_of(
    function: Callable[[int, int, int, int], None], tensor: Tensor, spec: LinearSpec
) -> Callable[[int, int], None]:
    return lambda ith, nth: function(addressof(tensor), ith, nth, addressof(spec))


def on_threads(num_threads: int, call: Callable[[int, int], None]) -> None:
    """Call with each thread's number and their count, all at the same time; ctypes lets them."""
    together = threading.Barrier(num_threads)

    def work(ith: int) -> None:
        together.wait()
        call(ith, num_threads)

    others = [threading.Thread(target=work, args=(ith,)) for ith in range(1, num_threads)]
    for other in others:
        other.start()
    work(0)
    for other in others:
        other.join()
