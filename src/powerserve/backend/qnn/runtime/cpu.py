"""The quantised graphs on the CPU: what an NPU is expected to compute, wherever one is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from powerserve.backend.qnn.runtime.base import CompiledGraph, GraphRequest, Runtime
from powerserve.backend.qnn.runtime.buffers import InputBuffers, allocate
from powerserve.backend.qnn.runtime.sessions import SessionGraph, cpu_session


class CpuRuntime(Runtime):
    """Runs the ONNX files that binaries are compiled from."""

    name = "quantised graphs on the CPU"

    def __init__(self, num_threads: int = 0) -> None:
        """`num_threads` 0: as many as there are cores."""
        self._num_threads = num_threads
        self._inputs = InputBuffers()

    def load(self, binary: Path, graphs: Sequence[GraphRequest]) -> list[CompiledGraph]:
        """Load an ONNX file, which holds one graph, whatever its name."""
        return [
            SessionGraph(
                cpu_session(binary, graph, self._num_threads),
                self._inputs.of(graph),
                allocate(graph.spec.outputs),
            )
            for graph in graphs
        ]

    def close(self) -> None:
        self._inputs = InputBuffers()
