"""safetensors files, mapped into memory and checked before use.

Source: the format section of https://huggingface.co/docs/safetensors. A file is a little-endian
u64 (the header's length), a JSON header and the tensors' bytes, which must cover the rest of the
file without holes or overlaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from reprlib import repr as short_repr
from stat import S_ISREG
from struct import Struct

import msgspec
import numpy as np
import numpy.typing as npt

from powerserve.core.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit
MAX_NAME_CHARS = 1000
MAX_DIMS = 8
MAX_TENSOR_BYTES = 1 << 46  # far above any model, far below overflow
ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_METADATA = "__metadata__"
_LENGTH = Struct("<Q")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """A tensor of a safetensors file.

    Attributes:
        name: as in the file.
        shape: row-major, so a matrix is [out_features, in_features].
        dtype: element type, one of ELEMENT_BYTES.
        data: uint8 [size], a read-only view of the mapping, which it keeps alive.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: npt.NDArray[np.uint8]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """One tensor of the header; offsets count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Layout:
    """A checked header: what lies where in the bytes that follow it."""

    entries: Mapping[str, _Entry]
    data_start: int


def read_safetensors(path: Path) -> dict[str, SafeTensor]:
    """The tensors of the file at `path`, in the order of its header; their bytes stay on disk.

    Raises ModelNotFoundError if there is no such file, ModelFileError if it cannot be read or is
    damaged, UnsupportedModelError for an element type that the format does not define.
    """
    buffer = _map(path)
    layout = _read_layout(buffer, path)
    return {name: _view(buffer, layout, name, entry) for name, entry in layout.entries.items()}


def _map(path: Path) -> mmap:
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ModelFileError(f"{path} is not a regular file")
        if status.st_size == 0:
            raise ModelFileError(f"{path} is empty: fetch it again")
        with path.open("rb") as file:
            return mmap(file.fileno(), 0, access=ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_layout(buffer: mmap, path: Path) -> _Layout:
    header = _header_bytes(buffer, path)
    try:
        items = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        items.pop(_METADATA, None)  # notes of the program that wrote the file
        entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in items.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(
            f"{path}: the header is not that of a safetensors file ({error}): the file is damaged"
        ) from None
    for name, entry in entries.items():
        _check_entry(path, name, entry)
    layout = _Layout(entries, _LENGTH.size + len(header))
    _check_coverage(path, layout, len(buffer) - layout.data_start)
    return layout


def _header_bytes(buffer: mmap, path: Path) -> bytes:
    start = buffer[: len(_LFS_POINTER)]
    if start == _LFS_POINTER:
        raise ModelFileError(f"{path} is a Git LFS pointer, not the model: run `git lfs pull`")
    if len(buffer) < _LENGTH.size:
        raise ModelFileError(f"{path} has only {len(buffer)} bytes: fetch it again")
    (size,) = _LENGTH.unpack(start[: _LENGTH.size])
    if size > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{path}: the header claims {size} bytes where at most {MAX_HEADER_BYTES} are allowed: "
            "this is no safetensors file, or a damaged one"
        )
    if _LENGTH.size + size > len(buffer):
        raise ModelFileError(
            f"{path} ends after {len(buffer)} bytes, inside its header: "
            "the download was probably cut off, fetch it again"
        )
    return buffer[_LENGTH.size : _LENGTH.size + size]


def _check_entry(path: Path, name: str, entry: _Entry) -> None:
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():  # it appears in messages
        raise ModelFileError(f"{path}: a tensor has no proper name: the file is damaged")
    if entry.dtype not in ELEMENT_BYTES:
        raise UnsupportedModelError(
            f"{path}: tensor {name} has element type {short_repr(entry.dtype)}, which is not known"
        )
    size = prod(entry.shape) * ELEMENT_BYTES[entry.dtype]
    in_range = len(entry.shape) <= MAX_DIMS and min(entry.shape, default=0) >= 0
    if not in_range or size > MAX_TENSOR_BYTES:
        raise ModelFileError(
            f"{path}: tensor {name} has the impossible shape {short_repr(list(entry.shape))}: "
            "the file is damaged"
        )
    begin, end = entry.data_offsets
    if begin < 0 or end - begin != size:
        raise ModelFileError(
            f"{path}: tensor {name} takes {size} bytes, but its place is from {begin} to {end}: "
            "the file is damaged"
        )


def _check_coverage(path: Path, layout: _Layout, num_bytes: int) -> None:
    """The tensors must lie end to end and fill the file, as the format demands."""
    position, previous = 0, ""
    for name, entry in sorted(layout.entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin < position:
            raise ModelFileError(
                f"{path}: tensors {previous} and {name} overlap: the file is damaged"
            )
        if begin > position:
            raise ModelFileError(
                f"{path}: there are unused bytes before tensor {name}: the file is damaged"
            )
        position, previous = end, name
    if position > num_bytes:
        raise ModelFileError(
            f"{path} ends after {layout.data_start + num_bytes} of {layout.data_start + position} "
            "bytes: the download was probably cut off, fetch it again"
        )
    if position < num_bytes:
        raise ModelFileError(
            f"{path}: {num_bytes - position} bytes follow the last tensor: the file is damaged"
        )


def _view(buffer: mmap, layout: _Layout, name: str, entry: _Entry) -> SafeTensor:
    begin, end = (layout.data_start + offset for offset in entry.data_offsets)
    data = np.frombuffer(buffer, np.uint8)[begin:end]
    return SafeTensor(name, entry.shape, entry.dtype, data)
