"""Whether a library's file is whole: the loader maps one that is cut off, and the process dies."""

from __future__ import annotations

import struct
from pathlib import Path

MAGIC = b"\x7fELF"
_FILE_HEADER = struct.Struct("<40xQ10xHH2x")  # where the sections' headers are, their size, number


def is_cut_off(path: Path) -> bool:
    """Whether a 64-bit little-endian ELF file is shorter than it says; others are not judged.

    Linkers put the headers of the sections last. Source: System V ABI, chapter 4. Raises OSError.
    """
    with path.open("rb") as file:
        header = file.read(_FILE_HEADER.size)
    if not header.startswith(MAGIC) or len(header) < _FILE_HEADER.size:
        return False
    offset, entry_size, count = _FILE_HEADER.unpack(header)
    end: int = offset + entry_size * count
    return path.stat().st_size < end
