"""What executes compiled graphs; small, so that a phone's helper process can stand behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from powerserve.backend.qnn.tensors import GraphSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """A graph wanted from a context binary, with the tensors it must have."""

    name: str
    spec: GraphSpec


class CompiledGraph(ABC):
    """A graph on the device, with its input and output buffers.

    The arrays stay the same for the graph's life: write into `inputs`, call `run`, read `outputs`.
    Inputs of like name, type and shape in the graphs of one runtime, whichever binaries they come
    from, are one buffer: the KV cache is written once for every batch size, the mask once for every
    chunk. Keys (and values) of a chunk's heads lie at equal distances: see `buffers.stacked`.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    @abstractmethod
    def run(self) -> None:
        """Compute the outputs from the inputs; raises BackendError."""


class Runtime(ABC):
    """A device (or its emulator) that loads the context binaries of one model."""

    name: str

    @abstractmethod
    def load(self, binary: Path, graphs: Sequence[GraphRequest]) -> list[CompiledGraph]:
        """Load a context binary and the graphs wanted from it, in order.

        Raises:
            BackendError: the binary is damaged, made for another SoC or by a newer SDK, or has no
                such graph, or one with other tensors.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the device; its graphs cannot be used afterwards."""
