"""ONNX Runtime with Qualcomm's execution provider in a process of its own.

That library can crash (a weight-shared binary does it on x86), and on a machine without an NPU it
is an emulator that takes minutes where the NPU takes milliseconds.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import IO

import msgspec
import numpy as np
import numpy.typing as npt

from powerserve.backend.qnn.runtime.base import Array, CompiledGraph, GraphRequest, Runtime
from powerserve.backend.qnn.runtime.buffers import InputBuffers, allocate, find_place
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
from powerserve.core.errors import BackendError
from powerserve.core.exit_status import describe_exit

COMMAND = (sys.executable, "-m", "powerserve.backend.qnn.runtime.worker")
TIME_LIMIT_S = 900.0  # of one request: the emulator is slow
END_TIMEOUT_S = 10


class ProcessRuntime(Runtime):
    """Context binaries in a worker process; close it, or use it as long as this process lives."""

    def __init__(
        self,
        name: str,
        libraries: Path | None = None,
        *,
        command: Sequence[str] = COMMAND,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        """Args:
        name: what the device is called in messages.
        libraries: the folder of Qualcomm's libraries; None: those of onnxruntime-qnn.
        command: what serves the requests.
        time_limit_s: of one request.
        """
        self.name = name
        self._libraries = libraries
        self._worker = WorkerProcess(command, time_limit_s)
        self._blocks = SharedBlocks(self._worker)
        self._inputs = InputBuffers(self._blocks.new)
        self._num_graphs = 0

    def load(self, binary: Path, graphs: Sequence[GraphRequest]) -> list[CompiledGraph]:
        if not binary.is_file():
            raise BackendError(f"there is no context binary {binary}")
        return [self._load(binary, graph) for graph in graphs]

    def close(self) -> None:
        self._worker.close()

    def _load(self, binary: Path, graph: GraphRequest) -> CompiledGraph:
        inputs = self._inputs.of(graph)
        outputs = allocate(graph.spec.outputs, self._blocks.new)
        places = (self._blocks.places(inputs), self._blocks.places(outputs))
        libraries = None if self._libraries is None else str(self._libraries)
        request = LoadGraph(str(binary.absolute()), graph.name, *places, libraries)
        self._worker.ask(request, f"loading {binary}")
        index = self._num_graphs
        self._num_graphs += 1
        return _RemoteGraph(self._worker, index, f"running {graph.name}", inputs, outputs)


class _RemoteGraph(CompiledGraph):
    def __init__(
        self,
        worker: WorkerProcess,
        index: int,
        action: str,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._worker = worker
        self._request = RunGraph(index)
        self._action = action

    def run(self) -> None:
        self._worker.ask(self._request, self._action)


class SharedBlocks:
    """Memory that this process and a worker have mapped."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._blocks: list[npt.NDArray[np.uint8]] = []

    def new(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Zeroed memory, the next block."""
        with _memory_file(size_bytes) as path:
            block = map_file(path)
            self._worker.ask(MapFile(str(path)), "sharing memory")
        self._blocks.append(block)
        return block

    def places(self, arrays: Mapping[str, Array]) -> list[Place]:
        """Where each of these arrays lies."""
        return [self._place(name, array) for name, array in arrays.items()]

    def _place(self, name: str, array: Array) -> Place:
        index, offset = find_place(array, enumerate(self._blocks))
        return Place(name, array.dtype.name, array.shape, index, offset)


@contextmanager
def _memory_file(size_bytes: int) -> Iterator[Path]:
    """A file of zeros that is gone when nobody has it mapped any more.

    Not one in /dev/shm: containers have 64 MB of that, and die where it ends.
    """
    if sys.platform == "linux":
        descriptor = os.memfd_create("powerserve-npu")
        try:
            os.ftruncate(descriptor, size_bytes)
            yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "tensors"
        with path.open("wb") as file:
            file.truncate(size_bytes)
        yield path


class WorkerProcess:
    """A process that answers requests one after another."""

    def __init__(self, command: Sequence[str], time_limit_s: float) -> None:
        self._time_limit_s = time_limit_s
        self._number = 0  # of the latest request
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def ask(self, request: Request, action: str) -> None:
        """Have a request done; `action` says in messages what that is ("loading x").

        Ctrl-C leaves the worker at work; its late reply is skipped.

        Raises BackendError if the request cannot be done, the process dies or the time limit
        passes.
        """
        self._number += 1
        try:
            self._requests.write(msgspec.json.encode(Numbered(self._number, request)) + b"\n")
            self._requests.flush()
            reply = self._reply()
        except (OSError, ValueError):  # a broken pipe, or one that was closed
            reply = None
        except queue.Empty:
            self._process.kill()
            raise BackendError(
                f"{action} took more than {self._time_limit_s:g} seconds and was stopped"
            ) from None
        if reply is None:
            raise BackendError(self._obituary(action))
        if reply.error is not None:
            raise BackendError(reply.error)

    def close(self) -> None:
        """End the process."""
        try:
            self._requests.close()
            self._process.wait(END_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._log.close()

    def _reply(self) -> Reply | None:
        """The reply to the latest request; None if the process has ended."""
        while line := self._replies.get(timeout=self._time_limit_s):
            reply = msgspec.json.decode(line, type=Reply)
            if reply.number == self._number:
                return reply
        return None

    def _read(self, replies: IO[bytes]) -> None:
        with replies:
            for line in replies:
                self._replies.put(line)
        self._replies.put(b"")

    def _obituary(self, action: str) -> str:
        how = describe_exit(self._process.wait(END_TIMEOUT_S))
        return f"the NPU process {how} while {action}{self._last_words()}"

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ""
