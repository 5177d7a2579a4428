"""A checkpoint's numbers in the element types of GGUF files, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from powerserve.backend.ggml.library import GgmlLibrary
from powerserve.backend.ggml.locate import library_folder
from powerserve.backend.ggml.quantisers import Quantisers
from powerserve.convert.tensor_plan import PlannedTensor
from powerserve.core.dtypes import BF16, BY_NAME, F16, F32, Q8_0, DType
from powerserve.core.errors import BackendError, ModelFileError, UnsupportedModelError
from powerserve.storage.safetensors import ELEMENT_BYTES, SafeTensor

# What may be asked for, by llama.cpp's names. Smaller types are `powerserve quantize`'s affair.
OUT_TYPES = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0}
AUTO = "auto"

# `general.file_type`, what most matrices are: llama.cpp's `enum llama_ftype`.
FILE_TYPES = {F32: 0, F16: 1, Q8_0: 7, BF16: 32}

BLOCK_ELEMENTS = 1 << 21  # converted at once: 8 MiB as float32
SOURCE_TYPES = ("F32", "F16", "BF16")


def chosen_type(name: str, tensors: Sequence[PlannedTensor]) -> DType:
    """The type that `name` stands for; “auto” keeps BF16 and makes F16 of anything else."""
    if name != AUTO:
        return OUT_TYPES[name]
    first = next((each for each in tensors if len(each.shape) > 1), None)
    return BF16 if first is not None and first.source.dtype == "BF16" else F16


def type_of(tensor: PlannedTensor, chosen: DType) -> DType:
    """The type of one tensor: vectors stay F32, rows that no block fits become F16."""
    if len(tensor.shape) == 1:
        return F32
    return F16 if tensor.shape[-1] % chosen.block_size else chosen


class ElementConverter:
    """Converts tensors with ggml's own conversions."""

    def __init__(self) -> None:
        """Raises BackendError if there is no ggml library."""
        self._quantisers = Quantisers(GgmlLibrary(library_folder()))

    def pieces(self, tensor: PlannedTensor, dtype: DType) -> Iterator[bytes]:
        """The data of `tensor` as `dtype`, in order.

        Raises ModelFileError for numbers that are not finite or too large for the type.
        """
        source_dtype = BY_NAME[tensor.source.dtype]
        num_columns = tensor.shape[-1]
        for block in _blocks(tensor):
            values = self._quantisers.dequantise(block, source_dtype, num_columns)
            if not np.isfinite(values).all():
                raise ModelFileError(f"{tensor.source.name} holds numbers that are not finite")
            # A mapped file may hold its tensors at any offset.
            values = np.require(values, requirements=("C_CONTIGUOUS", "ALIGNED"))
            try:
                yield self._quantisers.quantise(values, dtype).tobytes()
            except BackendError:
                raise ModelFileError(
                    f"{tensor.source.name} holds numbers that are too large for {dtype}: "
                    "choose bf16 or f32"
                ) from None


def check_element_type(source: SafeTensor) -> None:
    """Raises UnsupportedModelError unless the tensor holds floating-point numbers."""
    if source.dtype not in SOURCE_TYPES:
        raise UnsupportedModelError(
            f"{source.name} has element type {source.dtype}, which cannot be converted; "
            f"{', '.join(SOURCE_TYPES)} can"
        )


def _blocks(tensor: PlannedTensor) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of some rows at a time, in their new order; those of a vector at once."""
    width = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    num_rows = prod(tensor.shape) // width
    source = tensor.source.data.reshape(-1, width * ELEMENT_BYTES[tensor.source.dtype])
    step = max(1, BLOCK_ELEMENTS // width) if width > 1 else num_rows
    for first in range(0, num_rows, step):
        part = slice(first, first + step)
        block = source[part] if tensor.rows is None else source[tensor.rows[part]]
        yield block.reshape(-1)
