"""What a runtime and its worker process say to each other: one line of JSON for each message.

The worker answers every `Numbered` request with a `Reply`. Tensors lie in files that both have
mapped.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt


class Place(msgspec.Struct, frozen=True):
    """Where a tensor lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    block: int  # index of the file among those that were mapped
    offset: int  # bytes


class MapFile(msgspec.Struct, tag=True, frozen=True):
    """Map a file of memory, the next block."""

    path: str


class LoadGraph(msgspec.Struct, tag=True, frozen=True):
    """Load a graph of a context binary; it gets the next index."""

    binary: str
    name: str
    inputs: list[Place]
    outputs: list[Place]
    libraries: str | None


class RunGraph(msgspec.Struct, tag=True, frozen=True):
    """Compute a graph's outputs."""

    index: int


Request = MapFile | LoadGraph | RunGraph


class Numbered(msgspec.Struct, frozen=True):
    """A request and the number by which its reply is known."""

    number: int
    request: Request


class Reply(msgspec.Struct, frozen=True):
    """That a request is done, or why it cannot be."""

    number: int
    error: str | None = None


def map_file(path: Path) -> npt.NDArray[np.uint8]:
    """A file's content as memory that is shared with everyone who maps it."""
    with path.open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
