"""The tensors of a GGUF file: read, checked, and shown as views of the mapping.

All sizes are computed in Python integers and checked against the file before anything native sees
them: ggml's own reader accepts shapes such as 2^33 x 2^33, or a dimension of zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from powerserve.core.dtypes import BY_ID, DType
from powerserve.core.errors import UnsupportedModelError
from powerserve.storage.gguf_values import Cursor

MAX_DIMS = 4
MAX_NAME_BYTES = 63  # ggml's GGML_MAX_NAME without the closing NUL
MAX_TENSOR_BYTES = 1 << 46  # far above any model, far below overflow
MIN_ENTRY_BYTES = 33  # name of one byte, one dimension, type, offset


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as it lies in the file; satisfies `backend.base.WeightTensor`.

    Attributes:
        name: as in the file, e.g. `blk.0.attn_q.weight`.
        shape: row-major, so the reverse of GGUF's `ne`: a matrix is [out_features, in_features].
        dtype: element type.
        offset: of the first byte in its file (for a split model: in its shard).
        size_bytes: length of `data`.
        data: uint8 [size_bytes], a read-only view of the mapping, which it keeps alive.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    offset: int
    size_bytes: int
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the table of tensors; `offset` counts from the start of the data."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes


def read_tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    """The `count` tensors whose table starts at the cursor.

    Raises ModelFileError if the table is inconsistent or the file shorter than it says, and
    UnsupportedModelError for an element type that is not known.
    """
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        entry = _read_entry(cursor, alignment)
        if entry.name in entries:
            raise cursor.error(f"tensor {entry.name} appears twice: the file is damaged")
        entries[entry.name] = entry
    data_start = -(-cursor.position // alignment) * alignment
    _check_layout(cursor, list(entries.values()), data_start)
    return {name: _view(cursor, entry, data_start) for name, entry in entries.items()}


def _read_entry(cursor: Cursor, alignment: int) -> _Entry:
    name = cursor.string("a tensor's name", MAX_NAME_BYTES)
    if not name or not name.isprintable():  # NUL, for one, would end it early in native code
        raise cursor.error("a tensor has no proper name: the file is damaged")
    shape = _read_shape(cursor, name)
    dtype = _read_dtype(cursor, name)
    if shape[-1] % dtype.block_size:
        raise cursor.error(
            f"tensor {name} has rows of {shape[-1]} elements, not a whole number of {dtype} "
            f"blocks of {dtype.block_size}: the file is damaged"
        )
    size_bytes = dtype.size_bytes(_num_elements(shape))
    if size_bytes > MAX_TENSOR_BYTES:
        raise cursor.error(
            f"tensor {name} has the impossible shape {list(shape)}: the file is damaged"
        )
    offset = cursor.u64()
    if offset % alignment:
        raise cursor.error(
            f"tensor {name} starts at {offset}, not at a multiple of {alignment}: "
            "the file is damaged"
        )
    return _Entry(name, shape, dtype, offset, size_bytes)


def _read_shape(cursor: Cursor, name: str) -> tuple[int, ...]:
    num_dims = cursor.u32()
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.error(
            f"tensor {name} has {num_dims} dimensions instead of 1 to {MAX_DIMS}: "
            "the file is damaged"
        )
    shape = tuple(reversed([cursor.u64() for _ in range(num_dims)]))
    if 0 in shape:
        raise cursor.error(f"tensor {name} has a dimension of zero: the file is damaged")
    return shape


def _read_dtype(cursor: Cursor, name: str) -> DType:
    number = cursor.u32()
    if number not in BY_ID:
        raise UnsupportedModelError(
            f"{cursor.path}: tensor {name} has element type {number}, which this version does "
            "not know; use a file with another quantisation"
        )
    return BY_ID[number]


def _num_elements(shape: tuple[int, ...]) -> int:
    number = 1
    for dim in shape:
        number *= dim
    return number


def _check_layout(cursor: Cursor, entries: list[_Entry], data_start: int) -> None:
    """Tensors must not overlap, and must end before the file does."""
    in_order = sorted(entries, key=lambda entry: entry.offset)
    for entry, following in pairwise(in_order):
        if entry.end > following.offset:
            raise cursor.error(
                f"tensors {entry.name} and {following.name} overlap: the file is damaged"
            )
    end = data_start + in_order[-1].end if in_order else 0
    size = len(cursor.buffer)
    if end > size:
        raise cursor.error(
            f"the file ends after {size} of {end} bytes: "
            "the download was probably cut off, fetch it again"
        )


def _view(cursor: Cursor, entry: _Entry, data_start: int) -> TensorInfo:
    offset = data_start + entry.offset
    data = np.frombuffer(cursor.buffer, np.uint8, entry.size_bytes, offset)
    return TensorInfo(entry.name, entry.shape, entry.dtype, offset, entry.size_bytes, data)
