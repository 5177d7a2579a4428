"""QNN itself, behind the helper process: for phones, and where a crash must not end the server."""

from __future__ import annotations

import logging
import mmap
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerserve.backend.qnn.inspect import (
    BinaryInfo,
    GraphInfo,
    TensorInfo,
    check_graph,
    qnn_version,
)
from powerserve.backend.qnn.libraries import QnnLibraries
from powerserve.backend.qnn.runtime.base import Array, CompiledGraph, GraphRequest, Runtime
from powerserve.backend.qnn.runtime.buffers import InputBuffers, allocate, find_place
from powerserve.backend.qnn.runtime.helper_process import HelperError, HelperProcess
from powerserve.backend.qnn.runtime.messages import (
    Allocation,
    BoundGraph,
    Description,
    DeviceInfo,
    LoadedContext,
    Nothing,
    Place,
    allocate_request,
    bind_request,
    describe_request,
    load_request,
    open_request,
    run_request,
)
from powerserve.backend.qnn.soc import load_socs, soc_by_model
from powerserve.core.errors import BackendError

logger = logging.getLogger("powerserve.backend")

TIME_LIMIT_S = 900.0  # of one request: the emulator is slow
_EMULATED = platform.machine() in ("x86_64", "AMD64")  # there are no NPUs beside such CPUs


class HelperRuntime(Runtime):
    """The NPU (on x86-64: Qualcomm's emulator of it) through `native/npu_helper`."""

    name = "NPU emulator" if _EMULATED else "NPU"

    def __init__(
        self,
        executable: Path,
        libraries: QnnLibraries,
        *,
        performance: bool = True,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        """Start the helper and open the device.

        Args:
            executable: the helper, of `build.helper_executable`.
            libraries: Qualcomm's, for the system that runs the helper.
            performance: hold the NPU's clock rates at their highest while this lives.
            time_limit_s: of one request, such as a run.

        Raises:
            BackendError: the helper does not start, or the libraries are too old or do not load.
        """
        self._process = HelperProcess(executable, libraries, time_limit_s)
        self._memory = _SharedMemory(self._process)
        self._inputs = InputBuffers(self._memory.new_block)
        request = open_request(libraries, performance=performance)
        try:
            self.device = self._process.ask(request, DeviceInfo, "opening the NPU")
        except BaseException:
            self.close()
            raise
        for refused in self.device.refused_votes:
            logger.warning("the NPU may be slower than it could be: %s", refused)

    def load(self, binary: Path, graphs: Sequence[GraphRequest]) -> list[CompiledGraph]:
        """Load a binary, and check its tensors before anything touches the NPU."""
        info = self.describe(binary)
        found = [check_graph(binary, info, graph) for graph in graphs]
        context = self._load_context(binary, info)
        return [self._bind(context, *pair) for pair in zip(graphs, found, strict=True)]

    def describe(self, binary: Path) -> BinaryInfo:
        """What is in a context binary; raises BackendError."""
        request = describe_request(binary)
        return self._process.ask(request, Description, f"reading {binary}").binary

    def close(self) -> None:
        """End the helper."""
        self._process.close()

    def _load_context(self, binary: Path, info: BinaryInfo) -> int:
        request = load_request(binary)
        try:
            return self._process.ask(request, LoadedContext, f"loading {binary}").context
        except HelperError as error:
            if reason := refused_because(info, self.device, error.log):
                raise BackendError(f"{binary} cannot be loaded: {reason}") from None
            raise

    def _bind(self, context: int, wanted: GraphRequest, found: GraphInfo) -> CompiledGraph:
        inputs = self._inputs.of(wanted)
        outputs = allocate(wanted.spec.outputs, self._memory.new_block)
        request = bind_request(
            context,
            found.name,
            self._memory.places(found.inputs, inputs),
            self._memory.places(found.outputs, outputs),
        )
        bound = self._process.ask(request, BoundGraph, f"preparing {found.name}")
        return _HelperGraph(self._process, bound.graph, found.name, inputs, outputs)


class _HelperGraph(CompiledGraph):
    def __init__(
        self,
        process: HelperProcess,
        index: int,
        name: str,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._process = process
        self._request = run_request(index)
        self._action = f"running {name}"

    def run(self) -> None:
        self._process.ask(self._request, Nothing, self._action)


class _SharedMemory:
    """The buffers that the helper made and this process has mapped too."""

    def __init__(self, process: HelperProcess) -> None:
        self._process = process
        self._blocks: dict[int, npt.NDArray[np.uint8]] = {}  # by the helper's index

    def new_block(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Zeroed memory, the NPU's own where it has such that can be mapped here."""
        try:
            return self._allocate(size_bytes, plain=False)
        except OSError:
            return self._allocate(size_bytes, plain=True)

    def places(self, tensors: Sequence[TensorInfo], arrays: Mapping[str, Array]) -> list[Place]:
        """Where the arrays of these tensors lie."""
        blocks = self._blocks.items()
        return [Place(*find_place(arrays[tensor.name], blocks)) for tensor in tensors]

    def _allocate(self, size_bytes: int, *, plain: bool) -> npt.NDArray[np.uint8]:
        request = allocate_request(size_bytes, plain=plain)
        allocation = self._process.ask(request, Allocation, "sharing memory")
        descriptor = self._process.take_descriptor()
        try:
            block = np.frombuffer(mmap.mmap(descriptor, size_bytes), np.uint8)
        finally:
            os.close(descriptor)
        self._blocks[allocation.buffer] = block
        return block


def refused_because(
    binary: BinaryInfo, device: DeviceInfo, log: Sequence[str], *, emulated: bool = _EMULATED
) -> str | None:
    """Why a device refuses a sound binary, with advice, if that can be told."""
    if any("Shared weights" in line for line in log):
        return (
            "its graphs share weights, which only a real NPU can do; for the emulator, convert "
            "the model with --emulator"
        )
    if binary.version > qnn_version(device.build_id):
        return (
            f"QNN {binary.build_id} made it, and the libraries here are the older "
            f"{device.build_id}; update them, or convert the model with an older onnxruntime-qnn"
        )
    if not emulated and binary.soc_model not in (0, device.soc_model):
        return (
            f"it was made for {_soc_name(binary.soc_model)}, and this is "
            f"{_soc_name(device.soc_model)}; convert the model for this one with --soc"
        )
    return None


def _soc_name(model: int) -> str:
    soc = soc_by_model(model, load_socs())
    return soc.title if soc else f"the SoC {model}"
