"""Operations of our own as nodes of a ggml graph."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import addressof, c_void_p
from typing import Any

from powerserve.backend.ggml.kernels.library import KernelLibrary
from powerserve.backend.ggml.library import ALL_THREADS, GgmlLibrary
from powerserve.core.dtypes import DType

MAX_NAME = 63  # bytes


class CustomNodes:
    """Adds nodes to the graph in `context`, which must not outlive this object."""

    def __init__(self, library: GgmlLibrary, kernels: KernelLibrary, context: int) -> None:
        self.library = library
        self.kernels = kernels
        self.context = context
        self._memory: list[object] = []  # what is read when the graph is computed

    def add(
        self,
        dtype: DType,
        shape: Sequence[int],
        sources: Sequence[int],
        operation: Any,
        user_data: ctypes.Structure,
        name: str,
    ) -> int:
        """A tensor of this shape, the fastest dimension first, that `operation` computes.

        `name` is what profiles say: a kind, and the names of weights if there are any.
        """
        self._memory.append(user_data)
        dimensions = [*shape, 1, 1, 1][:4]
        tensor: int = self.library.custom_4d(
            self.context,
            dtype.ggml_id,
            *dimensions,
            (c_void_p * len(sources))(*sources),
            len(sources),
            self.kernels.address(operation),
            ALL_THREADS,
            addressof(user_data),
        )
        self.library.set_name(tensor, name.encode()[:MAX_NAME])
        return tensor
