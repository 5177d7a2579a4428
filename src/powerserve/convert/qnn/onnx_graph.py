"""An ONNX graph while it is written: nodes in order, named constants, typed inputs and outputs.

Source: the ONNX IR specification (external data included) and its operators, opset 23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from powerserve.backend.qnn.tensors import F32, GraphSpec, TensorSpec
from powerserve.storage import atomic

OPSET = 23  # the first with RMSNormalization
IR_VERSION = 11
WEIGHTS_FILE = "weights.bin"
EXTERNAL_MIN_BYTES = 1024  # smaller constants stay in the ONNX file
_ALIGNMENT = 64  # bytes

ELEMENT_TYPES: Mapping[np.dtype[Any], int] = {
    np.dtype(dtype): int(element_type)
    for dtype, element_type in (
        (np.float32, TensorProto.FLOAT),
        (np.float16, TensorProto.FLOAT16),
        (np.uint16, TensorProto.UINT16),
        (np.int8, TensorProto.INT8),
        (np.int64, TensorProto.INT64),
    )
}


@dataclass(frozen=True, slots=True)
class Constant:
    """A named tensor of fixed value: ONNX element type, shape and bytes as ONNX lays them out."""

    element_type: int
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]


def constant_of(values: npt.NDArray[Any]) -> Constant:
    """A numpy array as a constant."""
    data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    return Constant(ELEMENT_TYPES[values.dtype], values.shape, data)


def int4_constant(values: npt.NDArray[np.int8]) -> Constant:
    """Numbers from -8 to 7, two in a byte, the first in the lower half."""
    nibbles = values.reshape(-1).view(np.uint8) & np.uint8(0xF)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    pairs = nibbles[0::2] | nibbles[1::2] << np.uint8(4)
    return Constant(TensorProto.INT4, values.shape, pairs)


class OnnxGraph:
    """A graph that grows by method calls; every method returns the name of the new tensor."""

    def __init__(self, name: str, spec: GraphSpec) -> None:
        self.name = name
        self.spec = spec
        self.constants: dict[str, Constant] = {}
        self.observed: list[TensorSpec] = []  # outputs beyond those of `spec`
        self._nodes: list[onnx.NodeProto] = []
        self._made: set[str] = set()

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append an operation with one output, which the node is named after as well."""
        return self.nodes(operator, inputs, [output], **attributes)[0]

    def nodes(
        self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any
    ) -> list[str]:
        """Append an operation with several outputs."""
        node = helper.make_node(operator, inputs, outputs, f"{operator}_{outputs[0]}", **attributes)
        self._nodes.append(node)
        self._made.update(outputs)
        return outputs

    def has(self, name: str) -> bool:
        """Whether an operation has made the tensor `name`."""
        return name in self._made

    def constant(self, name: str, values: npt.NDArray[Any] | Constant) -> str:
        """Add a constant, unless there is one of that name already."""
        if name not in self.constants:
            constant = values if isinstance(values, Constant) else constant_of(values)
            self.constants[name] = constant
        return name

    def observe(self, name: str, num_features: int) -> None:
        """Make a float32 tensor [B, num_features] an output, unless it is one already."""
        spec = TensorSpec(name, F32, (self.spec.inputs[0].shape[0], num_features))
        known = (*self.spec.outputs, *self.observed)
        if all(each.name != name for each in known):
            self.observed.append(spec)

    def model(self) -> onnx.ModelProto:
        """The graph with its constants inside; ONNX allows 2 GiB of them."""
        return self._model([_inline(name, each) for name, each in self.constants.items()])

    def detached(self) -> tuple[bytes, dict[str, npt.NDArray[Any]]]:
        """The model without its constants of float32, and those: for sessions in memory."""
        floats = {
            name: each.data.view(np.float32).reshape(each.shape)
            for name, each in self.constants.items()
            if each.element_type == TensorProto.FLOAT
        }
        tensors = [
            _elsewhere(name, each) if name in floats else _inline(name, each)
            for name, each in self.constants.items()
        ]
        return self._model(tensors).SerializeToString(), floats

    def save(self, path: Path, weights: WeightFile) -> None:
        """Write the graph to `path`, with its larger constants in `weights`. Raises OSError."""
        tensors = [
            weights.tensor(name, each)
            if len(each.data) >= EXTERNAL_MIN_BYTES
            else _inline(name, each)
            for name, each in self.constants.items()
        ]
        atomic.write_bytes(path, self._model(tensors).SerializeToString())

    def _model(self, constants: list[TensorProto]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [_value_info(each) for each in self.spec.inputs],
            [_value_info(each) for each in (*self.spec.outputs, *self.observed)],
            constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


class WeightFile:
    """One file for the constants of several graphs; those of one name and shape are kept once."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._places: dict[tuple[str, tuple[int, ...]], int] = {}

    def tensor(self, name: str, constant: Constant) -> TensorProto:
        """A tensor that refers to its data in this file, where it is written at first mention."""
        key = name, constant.shape
        if key not in self._places:
            self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
            self._places[key] = self._file.tell()
            self._file.write(constant.data.data)
        return _elsewhere(
            name,
            constant,
            location=self._name,
            offset=str(self._places[key]),
            length=str(len(constant.data)),
        )


def _inline(name: str, constant: Constant) -> TensorProto:
    tensor = _header(name, constant)
    tensor.raw_data = constant.data.tobytes()
    return tensor


def _elsewhere(name: str, constant: Constant, location: str = "", **place: str) -> TensorProto:
    """A tensor whose data lie in a file, or are given to the session by name."""
    tensor = _header(name, constant)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location or name, **place}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _header(name: str, constant: Constant) -> TensorProto:
    return TensorProto(name=name, data_type=constant.element_type, dims=constant.shape)


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ELEMENT_TYPES[spec.dtype], spec.shape)
