"""Where the tensors of compiled graphs lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from powerserve.backend.qnn.runtime.base import Array, GraphRequest
from powerserve.backend.qnn.tensors import TensorSpec

ALIGNMENT = 64  # bytes; a cache line

NewBlock = Callable[[int], npt.NDArray[np.uint8]]
"""Zeroed memory of so many bytes, which begins at a multiple of ALIGNMENT."""


def zeroed_block(size_bytes: int) -> npt.NDArray[np.uint8]:
    """Memory of this process."""
    padded = np.zeros(size_bytes + ALIGNMENT, np.uint8)
    start = -padded.ctypes.data % ALIGNMENT
    return padded[start : start + size_bytes]


def allocate(specs: Iterable[TensorSpec], new_block: NewBlock = zeroed_block) -> dict[str, Array]:
    """Arrays for tensors, one after another in one block.

    The keys (or values) of a chunk's heads come at equal distances then, as `stacked` wants them.
    """
    places: list[tuple[TensorSpec, int]] = []
    end = 0
    for spec in specs:
        places.append((spec, end))
        end += -(-spec.size_bytes // ALIGNMENT) * ALIGNMENT
    block = new_block(max(end, ALIGNMENT))
    return {spec.name: view(block, spec, offset) for spec, offset in places}


def view(block: npt.NDArray[np.uint8], spec: TensorSpec, offset: int) -> Array:
    """The tensor that lies in a block from `offset` on."""
    return block[offset : offset + spec.size_bytes].view(spec.dtype).reshape(spec.shape)


def find_place(
    array: Array, blocks: Iterable[tuple[int, npt.NDArray[np.uint8]]]
) -> tuple[int, int]:
    """The number of the block that an array lies in, and how many bytes after its beginning.

    Raises ValueError if it lies in none.
    """
    for number, block in blocks:
        offset = array.ctypes.data - block.ctypes.data
        if 0 <= offset < block.nbytes:
            return number, offset
    raise ValueError("the array lies in none of the blocks")


class InputBuffers:
    """The input arrays of a runtime: one for each name, type and shape that its graphs have."""

    def __init__(self, new_block: NewBlock = zeroed_block) -> None:
        self._new_block = new_block
        self._arrays: dict[TensorSpec, Array] = {}

    def of(self, graph: GraphRequest) -> dict[str, Array]:
        """The inputs of a graph by name."""
        inputs = graph.spec.inputs
        new = [spec for spec in inputs if spec not in self._arrays]
        if new:
            arrays = allocate(new, self._new_block)
            self._arrays.update({spec: arrays[spec.name] for spec in new})
        return {spec.name: self._arrays[spec] for spec in inputs}


def stacked(arrays: Sequence[Array]) -> Array:
    """Arrays of one type and shape that lie at equal distances, as one array [n, …] of them.

    Raises ValueError if they lie otherwise.
    """
    first = arrays[0]
    addresses = [array.ctypes.data for array in arrays]
    distances = {after - before for before, after in pairwise(addresses)} or {first.nbytes}
    if len(distances) > 1 or any(array.strides != first.strides for array in arrays):
        raise ValueError("the arrays do not lie at equal distances")
    shape, strides = (len(arrays), *first.shape), (distances.pop(), *first.strides)
    return np.lib.stride_tricks.as_strided(first, shape, strides)
