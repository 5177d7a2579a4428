"""safetensors files written from the format's description, so that any part can be wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "float64": "F64", "int64": "I64"}


def write_safetensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> Path:
    """Write the arrays; uint16 arrays are taken for the bits of BF16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in tensors.items():
        end = position + array.nbytes
        header[name] = entry(NAMES[array.dtype.name], list(array.shape), position, end)
        position = end
    write_raw(path, header)
    with path.open("ab") as file:
        for array in tensors.values():
            np.ascontiguousarray(array).tofile(file)
    return path


def write_raw(
    path: Path, header: Mapping[str, Any] | bytes, data: bytes = b"", size: int | None = None
) -> Path:
    """Write a header, as it is or from JSON, and what follows it; `size` lies about its length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if size is None else size) + raw + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def bfloat16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the BF16 numbers below each number in size."""
    return (array.view(np.uint32) >> 16).astype(np.uint16)
