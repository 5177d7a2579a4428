"""The typed values of a GGUF file, read from its mapping with every length checked.

Source: the GGUF specification, versions 2 and 3 (ggml/docs/gguf.md).
"""

from __future__ import annotations

from mmap import mmap
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from powerserve.core.errors import ModelFileError
from powerserve.storage.gguf_strings import LENGTH, StringArray, string_offsets

MetadataValue = bool | int | float | str | StringArray | npt.NDArray[Any]

MAX_STRING_BYTES = 1 << 24
MAX_STRINGS = 1 << 22  # in one array; the largest vocabularies have 2^18

# numpy and struct agree on the sizes of these, by GGUF value type.
_NUMBERS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRUCTS = {
    0: Struct("<B"), 1: Struct("<b"), 2: Struct("<H"), 3: Struct("<h"), 4: Struct("<I"),
    5: Struct("<i"), 6: Struct("<f"), 10: Struct("<Q"), 11: Struct("<q"), 12: Struct("<d"),
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9


class Cursor:
    """A place in a mapped file that moves on with each value read.

    Every method raises ModelFileError rather than read beyond the end of the file.
    """

    def __init__(self, buffer: mmap, path: Path, position: int = 0) -> None:
        self.buffer = buffer
        self.path = path
        self.position = position

    @property
    def remaining(self) -> int:
        """Bytes between here and the end of the file."""
        return len(self.buffer) - self.position

    def error(self, reason: str) -> ModelFileError:
        """The error that says `reason` about this file."""
        return ModelFileError(f"{self.path}: {reason}")

    def truncated(self) -> ModelFileError:
        """The error for a header that is longer than its file."""
        return self.error(
            f"the file ends after {len(self.buffer)} bytes, inside its header: "
            "the download was probably cut off, fetch it again"
        )

    def take(self, size: int) -> int:
        """Move over `size` bytes; their start."""
        start = self.position
        if size > self.remaining:
            raise self.truncated()
        self.position = start + size
        return start

    def number(self, struct: Struct) -> Any:
        """The next number, of this format."""
        return struct.unpack_from(self.buffer, self.take(struct.size))[0]

    def u32(self) -> int:
        """The next unsigned 32-bit integer."""
        return int(self.number(_STRUCTS[4]))

    def u64(self) -> int:
        """The next unsigned 64-bit integer."""
        return int(self.number(LENGTH))

    def string(self, what: str, max_bytes: int = MAX_STRING_BYTES) -> str:
        """The next string; `what` names it in errors."""
        size = self.u64()
        if size > max_bytes:
            raise self.error(
                f"{what} claims {size} bytes where at most {max_bytes} make sense: "
                "the file is damaged, fetch it again"
            )
        start = self.take(size)
        try:
            return self.buffer[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: the file is damaged") from error

    def value(self, key: str) -> MetadataValue:
        """The next value type and value, which belong to `key`."""
        value_type = self.u32()
        if value_type == _STRING:
            return self.string(key)
        if value_type == _BOOL:
            return self._boolean(key)
        if value_type == _ARRAY:
            return self._array(key)
        if value_type not in _STRUCTS:
            raise self._unknown_type(key, value_type)
        number: int | float = self.number(_STRUCTS[value_type])
        return number

    def _boolean(self, key: str) -> bool:
        byte = self.buffer[self.take(1)]
        if byte > 1:
            raise self.error(f"{key} is neither true nor false: the file is damaged")
        return byte == 1

    def _array(self, key: str) -> StringArray | npt.NDArray[Any]:
        element_type, count = self.u32(), self.u64()
        if element_type == _STRING:
            return self._strings(key, count)
        if element_type == _BOOL:
            bytes_ = self._numbers(count, "u1")
            if (bytes_ > 1).any():
                raise self.error(f"{key} holds neither true nor false: the file is damaged")
            return bytes_.view(np.bool_)
        if element_type == _ARRAY:
            raise self.error(f"{key} is an array of arrays, which no model needs")
        if element_type not in _NUMBERS:
            raise self._unknown_type(key, element_type)
        return self._numbers(count, _NUMBERS[element_type])

    def _numbers(self, count: int, dtype: str) -> npt.NDArray[Any]:
        start = self.take(count * np.dtype(dtype).itemsize)
        return np.frombuffer(self.buffer, dtype, count, start)

    def _strings(self, key: str, count: int) -> StringArray:
        if count > MAX_STRINGS:
            raise self.error(f"{key} claims {count} strings: the file is damaged, fetch it again")
        if count * LENGTH.size > self.remaining:
            raise self.truncated()
        offsets = string_offsets(self.buffer, self.position, count)
        if offsets is None:
            raise self.truncated()
        self.position = int(offsets[-1])
        return StringArray(self.buffer, offsets, f"{self.path}: {key}")

    def _unknown_type(self, key: str, value_type: int) -> ModelFileError:
        return self.error(f"{key} has value type {value_type}, which GGUF does not define")
