"""What is said to the helper process; native/npu_helper/npu_helper.cpp explains the protocol."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import msgspec

from powerserve.backend.qnn.inspect import BinaryInfo
from powerserve.backend.qnn.libraries import QnnLibraries

PROTOCOL = 1
OPEN_FOR_PERFORMANCE = 1  # flag of OPEN
ALLOCATE_PLAIN = 1  # flag of ALLOCATE

HEAD = struct.Struct("<III")  # length of what follows, serial, operation or status
LENGTH_SIZE = 4
DONE = 0


class Operation(IntEnum):
    """What the helper can do."""

    OPEN = 1
    DESCRIBE = 2
    LOAD = 3
    ALLOCATE = 4
    BIND = 5
    RUN = 6


@dataclass(frozen=True, slots=True)
class Request:
    """An operation and its encoded arguments."""

    operation: Operation
    arguments: bytes

    def frame(self, serial: int) -> bytes:
        """The bytes to send; the reply carries the same serial."""
        length = HEAD.size - LENGTH_SIZE + len(self.arguments)
        return HEAD.pack(length, serial, self.operation) + self.arguments


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: in which buffer, and how many bytes after its beginning."""

    buffer: int
    offset: int


class DeviceInfo(msgspec.Struct, frozen=True):
    """The NPU, and the libraries that drive it.

    Attributes:
        build_id: the QNN version of the libraries, such as "v2.51.0.260929181845".
        soc_model: Qualcomm's number of the SoC; the emulator names an arbitrary one.
        htp_arch: version of the NPU's instruction set.
        refused_votes: settings for performance that the device did not take, and why.
    """

    build_id: str
    core_api: str
    backend_api: str
    system_api: str
    soc_model: int
    htp_arch: int
    refused_votes: tuple[str, ...]


class Description(msgspec.Struct, frozen=True):
    """The answer to DESCRIBE."""

    binary: BinaryInfo


class LoadedContext(msgspec.Struct, frozen=True):
    """The answer to LOAD."""

    context: int


class Allocation(msgspec.Struct, frozen=True):
    """The answer to ALLOCATE; `rpc`: whether the NPU reaches the memory without a copy."""

    buffer: int
    rpc: int


class BoundGraph(msgspec.Struct, frozen=True):
    """The answer to BIND."""

    graph: int


class Nothing(msgspec.Struct, frozen=True):
    """The answer to RUN."""


class Failure(msgspec.Struct, frozen=True):
    """Why a request could not be done.

    Attributes:
        operation: the function of QNN or of the system that failed.
        code: QNN's number of the error, 0 if it is none of QNN's.
        log: the error lines that QNN logged meanwhile.
    """

    operation: str
    code: int
    text: str
    log: tuple[str, ...]


def open_request(libraries: QnnLibraries, *, performance: bool) -> Request:
    """Load the libraries and open the device, for `performance` at its highest clock rates."""
    flags = OPEN_FOR_PERFORMANCE if performance else 0
    paths = _string(libraries.backend) + _string(libraries.system)
    return Request(Operation.OPEN, _u32(PROTOCOL) + paths + _u32(flags))


def describe_request(binary: Path) -> Request:
    """Say what is in a context binary."""
    return Request(Operation.DESCRIBE, _string(binary.absolute()))


def load_request(binary: Path) -> Request:
    """Load a context binary into the NPU."""
    return Request(Operation.LOAD, _string(binary.absolute()))


def allocate_request(size_bytes: int, *, plain: bool) -> Request:
    """Make a shared buffer; `plain`: of ordinary memory even where the NPU has its own."""
    flags = ALLOCATE_PLAIN if plain else 0
    return Request(Operation.ALLOCATE, struct.pack("<QI", size_bytes, flags))


def bind_request(
    context: int, graph: str, inputs: Sequence[Place], outputs: Sequence[Place]
) -> Request:
    """Prepare a graph to work on tensors at these places, given in the binary's order."""
    arguments = _u32(context) + _string(graph) + _places(inputs) + _places(outputs)
    return Request(Operation.BIND, arguments)


def run_request(graph: int) -> Request:
    """Execute a graph."""
    return Request(Operation.RUN, _u32(graph))


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _string(value: str | Path) -> bytes:
    encoded = os.fsencode(value)
    return _u32(len(encoded)) + encoded


def _places(places: Sequence[Place]) -> bytes:
    encoded = (struct.pack("<IQ", place.buffer, place.offset) for place in places)
    return _u32(len(places)) + b"".join(encoded)
