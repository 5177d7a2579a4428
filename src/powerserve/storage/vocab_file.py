"""vocab.gguf: a model's metadata, with its tokenizer, without its tensors."""

from __future__ import annotations

from mmap import ACCESS_READ, mmap
from pathlib import Path
from struct import Struct

from powerserve.storage.gguf_values import Cursor

_START_BYTES = 8  # magic, version
_COUNT = Struct("<Q")  # of tensors; then of metadata keys


def without_tensors(path: Path) -> bytes:
    """The bytes of a GGUF file with the metadata of the one at `path` and no tensor.

    `path` must have passed `GGUFFile.open`. The metadata is taken over byte for byte.
    """
    with path.open("rb") as file:
        buffer = mmap(file.fileno(), 0, access=ACCESS_READ)
    cursor = Cursor(buffer, path, _START_BYTES + _COUNT.size)
    for _ in range(cursor.u64()):
        key = cursor.string("a metadata key")
        cursor.value(key)
    after_count = _START_BYTES + _COUNT.size
    return buffer[:_START_BYTES] + _COUNT.pack(0) + buffer[after_count : cursor.position]
