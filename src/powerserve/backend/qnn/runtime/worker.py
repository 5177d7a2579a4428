"""The process in which Qualcomm's library lives: `python -m powerserve.backend.qnn.runtime.worker`.

It reads requests from standard input until that ends, and answers on standard output.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from powerserve.backend.qnn.inspect import BinaryInfo, check_graph, inspect_binary
from powerserve.backend.qnn.libraries import find_libraries
from powerserve.backend.qnn.runtime.base import Array, GraphRequest
from powerserve.backend.qnn.runtime.buffers import view
from powerserve.backend.qnn.runtime.sessions import SessionGraph, npu_session
from powerserve.backend.qnn.runtime.worker_messages import (
    LoadGraph,
    MapFile,
    Numbered,
    Place,
    Reply,
    Request,
    RunGraph,
    map_file,
)
from powerserve.backend.qnn.tensors import GraphSpec, TensorSpec
from powerserve.core.errors import BackendError


class Worker:
    """The blocks that were mapped and the graphs that were loaded."""

    def __init__(self) -> None:
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._graphs: list[SessionGraph] = []
        self._described: dict[Path, BinaryInfo] = {}

    def handle(self, request: Request) -> None:
        """Do what is asked; raises BackendError."""
        match request:
            case MapFile(path):
                self._blocks.append(map_file(Path(path)))
            case LoadGraph():
                self._graphs.append(self._load(request))
            case RunGraph(index):
                self._graphs[index].run()

    def _load(self, request: LoadGraph) -> SessionGraph:
        inputs, outputs = (
            {_spec(place): self._array(place) for place in places}
            for places in (request.inputs, request.outputs)
        )
        graph = GraphRequest(request.name, GraphSpec(tuple(inputs), tuple(outputs)))
        binary = Path(request.binary)
        libraries = None if request.libraries is None else Path(request.libraries)
        self._check(binary, graph, libraries)
        session = npu_session(binary, graph, libraries)
        return SessionGraph(
            session,
            {spec.name: array for spec, array in inputs.items()},
            {spec.name: array for spec, array in outputs.items()},
        )

    def _check(self, binary: Path, graph: GraphRequest, libraries: Path | None) -> None:
        """ONNX Runtime would take any graph whose tensors have the right number of bytes."""
        if sys.platform == "win32":
            return  # binaries cannot be described there
        if binary not in self._described:
            self._described[binary] = inspect_binary(binary, find_libraries(libraries))
        check_graph(binary, self._described[binary], graph)

    def _array(self, place: Place) -> Array:
        return view(self._blocks[place.block], _spec(place), place.offset)


def _spec(place: Place) -> TensorSpec:
    return TensorSpec(place.name, np.dtype(place.dtype), place.shape)


def main() -> int:
    """Serve requests until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the parent, which ends us when it is done
        signal.signal(number, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Qualcomm's library prints to standard output
    decoder = msgspec.json.Decoder(Numbered)
    worker = Worker()
    for line in sys.stdin.buffer:
        numbered = decoder.decode(line)
        try:
            worker.handle(numbered.request)
            reply = Reply(numbered.number)
        except BackendError as error:
            reply = Reply(numbered.number, str(error))
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
