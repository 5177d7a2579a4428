"""Whose kernels multiply with a model's matrices: ggml's or ours, by the type of the matrix."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from powerserve.backend.base import WeightTensor
from powerserve.backend.ggml.kernels.library import KernelLibrary
from powerserve.backend.ggml.kernels.locate import kernel_library
from powerserve.core.dtypes import DType
from powerserve.core.errors import BackendError, UsageError

logger = logging.getLogger("powerserve.backend")


class KernelChoice(StrEnum):
    """What the user may say.

    Raises:
        UsageError: the user said something else.
    """

    AUTO = "auto"  # ours where they are there and measured to be faster
    GGML = "ggml"
    NATIVE = "native"  # ours wherever there are any

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise UsageError(f"there are no kernels {value!r}; choose from {', '.join(cls)}")


@dataclass(frozen=True, slots=True)
class Packing:
    """Which types of matrices are packed for which kernels."""

    kernels: KernelLibrary
    dtypes: frozenset[DType]

    def fits(self, dtype: DType, shape: tuple[int, ...]) -> bool:
        """Whether a matrix [rows, in_features] of a file is to be packed."""
        return dtype in self.dtypes and self.kernels.can_pack(dtype, shape)

    def size_bytes(self, dtype: DType, shape: tuple[int, ...]) -> int:
        """The packed size of a matrix that fits."""
        return self.kernels.packed_size(dtype, shape)

    def __str__(self) -> str:
        types = ", ".join(sorted(map(str, self.dtypes))) or "nothing"
        return f"{self.kernels.instruction_set} for {types}"


def open_kernels(choice: KernelChoice, ggml_folder: Path) -> KernelLibrary | None:
    """Our kernels, if they are wanted and there are any.

    Raises:
        BackendError: they are insisted on and are not there, or do not load.
    """
    if choice is KernelChoice.GGML:
        return None
    try:
        path = kernel_library(ggml_folder)
        if path is not None:
            return KernelLibrary(path)
    except BackendError as error:
        if choice is KernelChoice.NATIVE:
            raise
        logger.warning("our own kernels are not used: %s", error)
    if choice is KernelChoice.NATIVE:
        raise BackendError(
            "our own kernels have not been compiled here; do it with `powerserve build-native`, or "
            "leave out `--kernels native`"
        )
    return None


def packable_types(kernels: KernelLibrary, matrices: Iterable[WeightTensor]) -> frozenset[DType]:
    """The types of these matrices that the kernels can do."""
    return frozenset(each.dtype for each in matrices if kernels.can_pack(each.dtype, each.shape))
