"""Tensors as our operations see them, without a ggml graph around them."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from powerserve.backend.ggml.library import Tensor

LINE = 64  # bytes


def bare_tensor(array: npt.NDArray[np.generic], *sources: Tensor) -> Tensor:
    """What an operation sees of a C-contiguous array; all that is passed must outlive it."""
    made = Tensor(data=array.ctypes.data)
    sizes = [*reversed(array.shape), 1, 1, 1][:4]
    strides = [array.itemsize * int(np.prod(sizes[:index])) for index in range(4)]
    made.ne[:], made.nb[:] = sizes, strides
    made.src[: len(sources)] = [ctypes.addressof(each) for each in sources]
    return made


def aligned_bytes(size: int) -> npt.NDArray[np.uint8]:
    """Memory at the start of a cache line, as ggml allocates it."""
    memory = np.zeros(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size]
