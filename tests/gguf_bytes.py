"""GGUF files put together byte by byte, so that any part can be wrong.

write_gguf(path, keys=[string_key("general.architecture", "llama")], tensors=[RawTensor("a")])
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

F32, Q4_0 = 0, 2
U8, I8, U16, I16, U32, I32, FLOAT32, BOOL, STRING, ARRAY, U64, I64, FLOAT64 = range(13)


@dataclass(frozen=True)
class RawTensor:
    """One line of the tensor table, written as it is; `dims` in GGUF order, row length first."""

    name: str | bytes
    dims: Sequence[int] = (32,)
    dtype: int = F32
    offset: int = 0
    num_dims: int | None = None


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw)) + raw


def key(name: str | bytes, value_type: int, value: bytes) -> bytes:
    """A metadata key with a value that is encoded already."""
    return string(name) + u32(value_type) + value


def string_key(name: str | bytes, text: str | bytes) -> bytes:
    return key(name, STRING, string(text))


def array_key(name: str, element_type: int, count: int, content: bytes) -> bytes:
    """A metadata key with an array of `count` elements, encoded already."""
    return key(name, ARRAY, u32(element_type) + u64(count) + content)


def tensor_line(tensor: RawTensor) -> bytes:
    num_dims = len(tensor.dims) if tensor.num_dims is None else tensor.num_dims
    return b"".join(
        (
            string(tensor.name),
            u32(num_dims),
            *(u64(dim) for dim in tensor.dims),
            u32(tensor.dtype),
            u64(tensor.offset),
        )
    )


def write_gguf(
    path: Path,
    *,
    keys: Sequence[bytes] = (),
    tensors: Sequence[RawTensor] = (),
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> Path:
    """Write the file and return its path; the counts can be made to lie."""
    counts = u64(len(tensors) if num_tensors is None else num_tensors)
    counts += u64(len(keys) if num_keys is None else num_keys)
    lines = [tensor_line(tensor) for tensor in tensors]
    header = b"".join((magic, u32(version), counts, *keys, *lines))
    path.write_bytes(header + b"\0" * (-len(header) % alignment) + data)
    return path
