"""What the loader reads of an ELF file: for which machine it is, and which libraries it needs.

Only 64-bit little-endian files, which is what the devices run. Source: System V ABI, chapters 4
(object files) and 5 (program loading and dynamic linking).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from powerserve.core.errors import BundleError

MAGIC = b"\x7fELF"
MACHINES = {62: "x86-64", 183: "aarch64"}  # e_machine
_CLASS_64, _LITTLE_ENDIAN = 2, 1
_LOAD, _DYNAMIC = 1, 2  # p_type
_END, _NEEDED, _STRING_TABLE, _SONAME = 0, 1, 5, 14  # d_tag
_FILE_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC_ENTRY = struct.Struct("<qQ")


@dataclass(frozen=True, slots=True)
class ElfFile:
    """A program or shared library, as its loader sees it."""

    machine: str  # "aarch64", or a number that we have no name for
    soname: str | None  # what other files call it
    needed: tuple[str, ...]  # the sonames of the libraries it is loaded with
    alignment: int  # bytes: the smallest of its loaded segments; the largest page size it allows


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    address: int
    file_size: int
    alignment: int


def is_elf(path: Path) -> bool:
    """Whether `path` starts like an ELF file."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_elf(path: Path) -> ElfFile:
    """Read the headers of `path`.

    Raises:
        BundleError: it is no 64-bit little-endian ELF file, or it is damaged.
    """
    data = path.read_bytes()
    if data[:6] != MAGIC + bytes((_CLASS_64, _LITTLE_ENDIAN)):
        raise BundleError(f"{path} is no 64-bit little-endian ELF file")
    try:
        return _parse(data)
    except (struct.error, ValueError, OverflowError) as error:  # offsets may be any 64 bits
        raise BundleError(f"{path} is a damaged ELF file: {error}") from None


def _parse(data: bytes) -> ElfFile:
    _, machine, _, _, table, _, _, _, entry_size, count, _, _, _ = _FILE_HEADER.unpack_from(data)
    segments = [_segment(data, table + index * entry_size) for index in range(count)]
    loaded = [segment for segment in segments if segment.kind == _LOAD]
    if not loaded:
        raise ValueError("it has no segments to load")
    entries = [entry for segment in segments for entry in _dynamic_entries(data, segment)]
    strings = next((value for tag, value in entries if tag == _STRING_TABLE), 0)
    table_offset = _file_offset(strings, loaded) if entries else 0
    names = {
        wanted: tuple(
            _string(data, table_offset + value) for tag, value in entries if tag == wanted
        )
        for wanted in (_NEEDED, _SONAME)
    }
    return ElfFile(
        machine=MACHINES.get(machine, str(machine)),
        soname=next(iter(names[_SONAME]), None),
        needed=names[_NEEDED],
        alignment=min(segment.alignment for segment in loaded),
    )


def _segment(data: bytes, position: int) -> _Segment:
    kind, _, offset, address, _, file_size, _, alignment = _SEGMENT.unpack_from(data, position)
    return _Segment(kind, offset, address, file_size, alignment)


def _dynamic_entries(data: bytes, segment: _Segment) -> Iterator[tuple[int, int]]:
    """The (tag, value) pairs of the dynamic section; none in other segments."""
    if segment.kind != _DYNAMIC:
        return
    for position in range(segment.offset, segment.offset + segment.file_size, _DYNAMIC_ENTRY.size):
        tag, value = _DYNAMIC_ENTRY.unpack_from(data, position)
        if tag == _END:
            return
        yield tag, value


def _file_offset(address: int, loaded: list[_Segment]) -> int:
    for segment in loaded:
        if segment.address <= address < segment.address + segment.file_size:
            return address - segment.address + segment.offset
    raise ValueError("its table of strings is in no segment")


def _string(data: bytes, position: int) -> str:
    return data[position : data.index(b"\0", position)].decode()
