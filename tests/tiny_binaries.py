"""Small context binaries, compiled by Qualcomm's compiler in a child process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from powerserve.backend.qnn.runtime.base import GraphRequest
from powerserve.backend.qnn.soc import find_soc, load_socs
from powerserve.backend.qnn.tensors import F16, F32, GraphSpec, TensorSpec
from powerserve.convert.qnn.child import ChildProcesses
from powerserve.convert.qnn.compiler import CompileJob, CompileOptions, compile_binary

IN_SIZE, OUT_SIZE, CACHE_SIZE = 32, 64, 16
SCALE, ZERO_POINT = 0.01, 100  # of `codes`


@dataclass(frozen=True, slots=True)
class TinyBinary:
    """A compiled file, and its graphs in the order of their batch sizes."""

    path: Path
    graphs: tuple[GraphRequest, ...]


def compile_tiny(folder: Path, batch_sizes: Sequence[int], *, soc: str = "8650") -> TinyBinary:
    """One graph for each batch size (several share their weights): `expected` says what it does."""
    sources = tuple(folder / f"batch_{size}.onnx" for size in batch_sizes)
    for source, size in zip(sources, batch_sizes, strict=True):
        onnx.save(_model(size), source)
    binary = folder / f"tiny_{'_'.join(map(str, batch_sizes))}_{soc}.bin"
    options = CompileOptions(find_soc(soc, load_socs()), timeout_s=120)
    with ChildProcesses() as children:
        compiled = compile_binary(CompileJob(sources, binary), options, children)
    names = zip(compiled.graph_names, batch_sizes, strict=True)
    return TinyBinary(binary, tuple(GraphRequest(name, tiny_spec(size)) for name, size in names))


def tiny_spec(batch_size: int) -> GraphSpec:
    """The tensors of the graph for a batch size."""
    codes = np.dtype(np.uint16)
    return GraphSpec(
        inputs=(
            TensorSpec("x", F32, (batch_size, IN_SIZE)),
            TensorSpec("cache", F16, (IN_SIZE, CACHE_SIZE)),
            TensorSpec("codes", codes, (batch_size, IN_SIZE)),
        ),
        outputs=(
            TensorSpec("y", F32, (batch_size, OUT_SIZE)),
            TensorSpec("doubled", F16, (IN_SIZE, CACHE_SIZE)),
            TensorSpec("positive", codes, (batch_size, IN_SIZE)),
        ),
    )


def tiny_inputs(batch_size: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random inputs."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((batch_size, IN_SIZE)).astype(np.float32),
        "cache": rng.standard_normal((IN_SIZE, CACHE_SIZE)).astype(np.float16),
        "codes": rng.integers(0, 200, (batch_size, IN_SIZE), np.uint16),
    }


def expected(inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The outputs, as numpy computes them."""
    return {
        "y": inputs["x"] @ _weights().T,
        "doubled": inputs["cache"] + inputs["cache"],
        "positive": np.maximum(inputs["codes"], np.uint16(ZERO_POINT)),
    }


def _weights() -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(7)
    return (rng.standard_normal((OUT_SIZE, IN_SIZE)) / 8).astype(np.float32)


def _model(batch_size: int) -> onnx.ModelProto:
    constants = [
        numpy_helper.from_array(_weights(), "w"),
        numpy_helper.from_array(np.float32(SCALE), "scale"),
        numpy_helper.from_array(np.uint16(ZERO_POINT), "zero"),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
        helper.make_node("Add", ["cache", "cache"], ["doubled"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["decoded"]),
        helper.make_node("Relu", ["decoded"], ["rectified"]),
        helper.make_node("QuantizeLinear", ["rectified", "scale", "zero"], ["positive"]),
    ]
    spec = tiny_spec(batch_size)
    graph = helper.make_graph(
        nodes, f"tiny_{batch_size}", _infos(spec.inputs), _infos(spec.outputs), constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _infos(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    types = {F32: TensorProto.FLOAT, F16: TensorProto.FLOAT16}
    return [
        helper.make_tensor_value_info(
            spec.name, types.get(spec.dtype, TensorProto.UINT16), spec.shape
        )
        for spec in specs
    ]
