"""What is in a context binary: its graphs and tensors, and what made it for which SoC."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np

from powerserve.backend.qnn.libraries import QnnLibraries
from powerserve.backend.qnn.runtime.base import GraphRequest
from powerserve.backend.qnn.tensors import TensorSpec
from powerserve.core.errors import BackendError
from powerserve.core.exit_status import describe_exit

COMMAND = (sys.executable, "-m", "powerserve.backend.qnn.inspect_process")
TIME_LIMIT_S = 120

# QNN's numbers of element types, of the API documentation. Quantised tensors hold plain integers.
DATA_TYPES = {
    0x008: "int8",
    0x016: "int16",
    0x032: "int32",
    0x064: "int64",
    0x108: "uint8",
    0x116: "uint16",
    0x132: "uint32",
    0x164: "uint64",
    0x216: "float16",
    0x232: "float32",
    0x264: "float64",
    0x308: "quantised int8",
    0x316: "quantised int16",
    0x332: "quantised int32",
    0x408: "quantised uint8",
    0x416: "quantised uint16",
    0x432: "quantised uint32",
    0x508: "bool",
}


class TensorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input or output; `scale` and `offset` where it is quantised: scale * (value + offset)."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    scale: float | None = None
    offset: int | None = None

    @property
    def type_name(self) -> str:
        """The element type in words."""
        return DATA_TYPES.get(self.data_type, f"type {self.data_type:#x}")

    def fits(self, spec: TensorSpec) -> bool:
        """Whether it has the type and shape of `spec`."""
        name = self.type_name.removeprefix("quantised ")
        return self.shape == spec.shape and name == spec.dtype.name


class GraphInfo(msgspec.Struct, frozen=True):
    """A graph in a binary."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class BinaryInfo(msgspec.Struct, frozen=True):
    """What a binary says about itself.

    Attributes:
        build_id: the QNN version that made it, such as "v2.51.0.260929181845".
        core_api, backend_api: versions of the interfaces it was made through.
        soc_model: Qualcomm's number of the SoC it was made for; 0 if it does not say.
    """

    build_id: str
    core_api: str
    backend_api: str
    soc_model: int
    graphs: tuple[GraphInfo, ...]

    @property
    def version(self) -> tuple[int, ...]:
        """The QNN version that made it, such as (2, 51, 0); empty if it does not say."""
        return qnn_version(self.build_id)


def inspect_binary(path: Path, libraries: QnnLibraries) -> BinaryInfo:
    """Describe the context binary `path`, in a child process: a damaged file may crash QNN.

    Works for binaries of any SoC, weight-shared ones too: nothing is loaded into an NPU.

    Raises:
        BackendError: the file is missing, damaged or no context binary, or QNN crashed over it.
    """
    command = [*COMMAND, str(libraries.system), str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"{path} cannot be inspected: Qualcomm's library took more than {TIME_LIMIT_S} s"
        ) from None
    if done.returncode != 0:
        how = describe_exit(done.returncode)
        raise BackendError(f"{path} cannot be inspected: Qualcomm's library {how}")
    answer = msgspec.json.decode(done.stdout)
    if "error" in answer:
        raise BackendError(f"{path} cannot be inspected: {answer['error']}")
    return msgspec.convert(answer, BinaryInfo)


def check_graph(path: Path, binary: BinaryInfo, wanted: GraphRequest) -> GraphInfo:
    """The graph of `binary` (the file `path`) that `wanted` names.

    Raises:
        BackendError: it is not there, or has other tensors.
    """
    for graph in binary.graphs:
        if graph.name == wanted.name:
            _check_tensors(f"{path}: the graph {graph.name}", graph.inputs, wanted.spec.inputs)
            _check_tensors(f"{path}: the graph {graph.name}", graph.outputs, wanted.spec.outputs)
            return graph
    names = ", ".join(graph.name for graph in binary.graphs)
    raise BackendError(f"{path} has no graph {wanted.name}; it has {names or 'none'}")


def qnn_version(build_id: str) -> tuple[int, ...]:
    """The version in a build id: "v2.51.0.260929181845" is (2, 51, 0); empty if there is none."""
    found = re.match(r"\D*(\d+)\.(\d+)\.(\d+)", build_id)
    return tuple(map(int, found.groups())) if found else ()


def _check_tensors(
    where: str, found: tuple[TensorInfo, ...], wanted: tuple[TensorSpec, ...]
) -> None:
    by_name = {tensor.name: tensor for tensor in found}
    for spec in wanted:
        tensor = by_name.pop(spec.name, None)
        if tensor is None:
            raise BackendError(f"{where} has no tensor {spec.name}; is it of another model?")
        if not tensor.fits(spec):
            raise BackendError(
                f"{where} has {spec.name} as {tensor.type_name} {list(tensor.shape)}, not as "
                f"{np.dtype(spec.dtype).name} {list(spec.shape)}; is it of another model?"
            )
    if by_name:
        raise BackendError(f"{where} wants {', '.join(by_name)}, which the model does not have")
