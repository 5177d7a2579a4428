"""Saved prefixes as a file: what the tokens were, and what their KV cells held.

    magic "PSPREFIX" · uint32 version · 32 bytes identity · uint32 bytes of a cell
    uint32 rows · uint32 prefixes                                              (little-endian)
    int32 token_ids [rows] · int32 branches [prefixes, 3]                      (see PrefixTree)
    cells in blocks of BLOCK rows, each as `Cache.save` writes it
    32 bytes SHA-256 of all that comes before

A file is private (mode 0600): it holds conversations.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from powerserve.cache.prefix_tree import PrefixTree
from powerserve.core.errors import PrefixFileError
from powerserve.storage.atomic import new_file

VERSION = 1
BLOCK = 256  # rows that are written and read at once

_MAGIC = b"PSPREFIX"
_HEADER = struct.Struct("<8sI32sIII")
_DIGEST_BYTES = 32
_CHUNK_BYTES = 1 << 20
_PRIVATE = 0o600
_INT32 = np.dtype("<i4")


@dataclass(frozen=True, slots=True)
class CellFormat:
    """Which cells these are: content is of use only to a cache with the same."""

    identity: bytes  # of model and backend, 32 bytes
    cell_bytes: int


def write_prefixes(
    path: Path, cells: CellFormat, tree: PrefixTree, blocks: Iterable[bytes]
) -> None:
    """Replace the file. `blocks` hold the cells of `blocks_of(rows)`. Raises OSError."""
    digest = hashlib.sha256()
    with new_file(path, mode=_PRIVATE) as file:
        for part in chain([_head(cells, tree)], blocks):
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def read_prefixes(
    path: Path, cells: CellFormat, take_block: Callable[[slice, bytes], None], max_rows: int
) -> PrefixTree:
    """Read the first rows of a file, in whole blocks, at most `max_rows`.

    `take_block` gets the rows and the content of each block; before the first the whole file has
    been checked. The tree is complete, even if not all of its rows are.

    Raises FileNotFoundError if there is no file, PrefixFileError if it cannot be used.
    """
    try:
        with open(path, "rb") as file:
            _check_private(file)
            num_rows, num_prefixes = _checked_header(file, cells)
            _check_digest(file)
            tree = _read_tree(file, num_rows, num_prefixes)
            for rows in blocks_of(num_rows):
                if rows.stop > max_rows:
                    break
                take_block(rows, file.read((rows.stop - rows.start) * cells.cell_bytes))
            return tree
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PrefixFileError(f"it cannot be read ({error.strerror or error})") from None


def blocks_of(num_rows: int) -> Iterator[slice]:
    """The rows of each block."""
    for start in range(0, num_rows, BLOCK):
        yield slice(start, min(start + BLOCK, num_rows))


def _head(cells: CellFormat, tree: PrefixTree) -> bytes:
    counts = len(tree.token_ids), len(tree.branches)
    head = _HEADER.pack(_MAGIC, VERSION, cells.identity, cells.cell_bytes, *counts)
    tables = (tree.token_ids, tree.branches)
    return head + b"".join(table.astype(_INT32).tobytes() for table in tables)


def _check_private(file: BinaryIO) -> None:
    """Whoever can write the file could put words into the model's mouth."""
    if os.name == "nt":
        return
    status = os.fstat(file.fileno())
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PrefixFileError("others have access to it (it must be yours, with mode 0600)")


def _checked_header(file: BinaryIO, cells: CellFormat) -> tuple[int, int]:
    """The numbers of rows and prefixes; the file's size is what they make it."""
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise PrefixFileError("it is not a file of saved prefixes")
    _, version, identity, cell_bytes, num_rows, num_prefixes = _HEADER.unpack(head)
    if version != VERSION:
        raise PrefixFileError(f"it has version {version} of the format, not {VERSION}")
    if CellFormat(identity, cell_bytes) != cells:
        raise PrefixFileError("it belongs to another model, or to another type of cache")
    tables_bytes = _INT32.itemsize * (num_rows + 3 * num_prefixes)
    expected = _HEADER.size + tables_bytes + num_rows * cell_bytes + _DIGEST_BYTES
    if (actual := os.fstat(file.fileno()).st_size) != expected:
        raise PrefixFileError(f"it has {actual:,} bytes instead of {expected:,}")
    return num_rows, num_prefixes


def _check_digest(file: BinaryIO) -> None:
    """Compare the checksum of everything; the position is behind the header afterwards."""
    digest = hashlib.sha256()
    file.seek(0)
    remaining = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
    while remaining > 0 and (part := file.read(min(remaining, _CHUNK_BYTES))):
        digest.update(part)
        remaining -= len(part)
    if file.read(_DIGEST_BYTES) != digest.digest():
        raise PrefixFileError("it is damaged (its checksum is wrong)")
    file.seek(_HEADER.size)


def _read_tree(file: BinaryIO, num_rows: int, num_prefixes: int) -> PrefixTree:
    token_ids = np.frombuffer(file.read(num_rows * _INT32.itemsize), _INT32)
    branches = np.frombuffer(file.read(3 * num_prefixes * _INT32.itemsize), _INT32)
    return PrefixTree(token_ids.astype(np.int32), branches.astype(np.int32).reshape(-1, 3))
