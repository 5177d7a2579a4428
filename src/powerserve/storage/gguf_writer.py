"""Writing GGUF files piece by piece: the header at once, then each tensor's data as it comes.

Source: the GGUF specification, version 3 (ggml/docs/gguf.md). Values of metadata are kept as the
bytes they have in a file, so that what is copied from another file keeps its exact type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from struct import pack
from typing import BinaryIO

from powerserve.core.dtypes import DType
from powerserve.storage.gguf_header import DEFAULT_ALIGNMENT, MAGIC
from powerserve.storage.gguf_values import Cursor

VERSION = 3
ALIGNMENT_KEY = "general.alignment"
_UINT32, _STRING, _ARRAY = 4, 8, 9  # GGUF value types
_COUNTS_OFFSET = 16  # magic, version and the number of tensors come before the number of keys

RawMetadata = Mapping[str, bytes]
"""By key: the value's type and the value, as they lie in a file."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What the header says about a tensor; `shape` is row-major: a matrix is [out, in]."""

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return self.dtype.size_bytes(prod(self.shape))


def raw_metadata(path: Path) -> dict[str, bytes]:
    """The metadata of the GGUF file at `path`, which must have passed `GGUFFile.open`."""
    with path.open("rb") as file:
        buffer = mmap(file.fileno(), 0, access=ACCESS_READ)
    cursor = Cursor(buffer, path, _COUNTS_OFFSET)
    found = {}
    for _ in range(cursor.u64()):
        key = cursor.string("a metadata key")
        start = cursor.position
        cursor.value(key)
        found[key] = buffer[start : cursor.position]
    return found


def uint32_value(number: int) -> bytes:
    """A number as a metadata value."""
    return pack("<II", _UINT32, number)


def string_value(text: str) -> bytes:
    """A string as a metadata value."""
    return pack("<I", _STRING) + _string(text)


def strings_value(texts: Sequence[str]) -> bytes:
    """An array of strings as a metadata value."""
    return pack("<IIQ", _ARRAY, _STRING, len(texts)) + b"".join(map(_string, texts))


def data_alignment(metadata: RawMetadata) -> int:
    """The alignment of tensor data in bytes that a file with this metadata has."""
    value = metadata.get(ALIGNMENT_KEY)
    return DEFAULT_ALIGNMENT if value is None else int.from_bytes(value[4:], "little")


def write_gguf(
    file: BinaryIO,
    metadata: RawMetadata,
    tensors: Sequence[tuple[TensorHeader, Iterable[bytes]]],
) -> None:
    """Write a whole file; each tensor's data comes in pieces that are asked for one by one.

    Raises ValueError if the pieces of a tensor are not as long as its header says; OSError.
    """
    alignment = data_alignment(metadata)
    header = _header(metadata, [each for each, _ in tensors], alignment)
    file.write(header + _padding(len(header), alignment))
    for tensor, pieces in tensors:
        written = sum(map(file.write, pieces))
        if written != tensor.size_bytes:
            raise ValueError(f"{tensor.name} has {written} bytes instead of {tensor.size_bytes}")
        file.write(_padding(written, alignment))


def file_size(metadata: RawMetadata, tensors: Sequence[TensorHeader]) -> int:
    """Bytes of the file that `write_gguf` would write."""
    alignment = data_alignment(metadata)
    sizes = [len(_header(metadata, tensors, alignment)), *(each.size_bytes for each in tensors)]
    return sum(size + len(_padding(size, alignment)) for size in sizes)


def _header(metadata: RawMetadata, tensors: Sequence[TensorHeader], alignment: int) -> bytes:
    parts = [MAGIC, pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [_string(key) + value for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        parts.append(_tensor_line(tensor, offset))
        offset += tensor.size_bytes + len(_padding(tensor.size_bytes, alignment))
    return b"".join(parts)


def _tensor_line(tensor: TensorHeader, offset: int) -> bytes:
    dims = tensor.shape[::-1]
    sizes = pack(f"<I{len(dims)}Q", len(dims), *dims)
    return _string(tensor.name) + sizes + pack("<IQ", tensor.dtype.ggml_id, offset)


def _string(text: str) -> bytes:
    raw = text.encode()
    return pack("<Q", len(raw)) + raw


def _padding(size: int, alignment: int) -> bytes:
    return b"\0" * (-size % alignment)
