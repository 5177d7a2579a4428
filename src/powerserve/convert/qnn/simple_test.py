"""Random two-layer perceptrons, compiled, run and timed: does the NPU's tool chain work at all?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from powerserve.backend.qnn.runtime.base import CompiledGraph, GraphRequest, Runtime
from powerserve.backend.qnn.runtime.cpu import CpuRuntime
from powerserve.backend.qnn.tensors import F16, F32, GraphSpec, TensorSpec
from powerserve.convert.qnn.child import ChildProcesses
from powerserve.convert.qnn.compiler import (
    CompileJob,
    CompileOptions,
    compile_binary,
    read_record,
)
from powerserve.convert.qnn.gate import OutputError, compare
from powerserve.convert.qnn.onnx_graph import OnnxGraph, WeightFile
from powerserve.core.errors import ConfigError
from powerserve.storage.progress import Progress

EMULATOR_FOLDER = "emulator"


@dataclass(frozen=True, slots=True)
class Perceptron:
    """Sizes of a graph: x [batch, embed] → relu(x · up) · down [batch, embed], in float16."""

    batch_size: int = 32
    embed_dim: int = 4096
    hidden_dim: int = 14336

    @property
    def spec(self) -> GraphSpec:
        """What goes in and comes out."""
        shape = (self.batch_size, self.embed_dim)
        return GraphSpec((TensorSpec("x", F32, shape),), (TensorSpec("y", F32, shape),))

    @property
    def num_operations(self) -> int:
        """Multiplications and additions of one run."""
        return 4 * self.batch_size * self.embed_dim * self.hidden_dim

    def graph(self, seed: int) -> OnnxGraph:
        """The graph with random weights; activations stay near one."""
        from onnx import TensorProto

        random = np.random.default_rng(seed)
        graph = OnnxGraph(f"perceptron_{seed}", self.spec)
        x = graph.node("Cast", ["x"], "x_half", to=TensorProto.FLOAT16)
        for name, num_rows, num_columns in (
            ("up", self.hidden_dim, self.embed_dim),
            ("down", self.embed_dim, self.hidden_dim),
        ):
            rows = random.standard_normal((num_rows, num_columns), np.float32)
            weights = graph.constant(name, (rows / np.sqrt(num_columns)).astype(F16))
            x = graph.node("Gemm", [x, weights], f"{name}_out", transB=1)
            if name == "up":
                x = graph.node("Relu", [x], "relu")
        graph.node("Cast", [x], "y", to=TensorProto.FLOAT)
        return graph


@dataclass(frozen=True, slots=True)
class SimpleTest:
    """A test in `folder`: `num_graphs` perceptrons called `name`."""

    folder: Path
    name: str
    num_graphs: int
    sizes: Perceptron

    @property
    def binary(self) -> Path:
        """The context binary of all graphs, for a device."""
        return self.folder / f"{self.name}.bin"

    def onnx_file(self, index: int) -> Path:
        """What graph `index` is compiled from."""
        return self.folder / f"{self.name}_{index}.onnx"

    def emulator_binary(self, index: int) -> Path:
        """Graph `index` alone, for the emulator."""
        return self.folder / EMULATOR_FOLDER / f"{self.name}_{index}.bin"


@dataclass(frozen=True, slots=True)
class Timing:
    """How graph `index` ran."""

    index: int
    seconds: tuple[float, ...]
    error: OutputError  # against the CPU

    @property
    def best_s(self) -> float:
        """Seconds of the fastest run."""
        return min(self.seconds)


def compile_test(test: SimpleTest, options: CompileOptions, progress: Progress) -> None:
    """Write the graphs and compile them, together and one by one.

    Raises:
        BackendError: the compiler is missing or refuses them.
    """
    (test.folder / EMULATOR_FOLDER).mkdir(parents=True, exist_ok=True)
    indices = range(test.num_graphs)
    for index in indices:
        _write_graph(test, index)
    everything = CompileJob(tuple(map(test.onnx_file, indices)), test.binary)
    single = [CompileJob((test.onnx_file(i),), test.emulator_binary(i)) for i in indices]
    with ChildProcesses() as children, progress.count("compiling", 1 + len(single)) as advance:
        for job in (everything, *single):
            compile_binary(job, options, children)
            advance(1)


def run_test(test: SimpleTest, runtime: Runtime, repeat: int) -> Iterator[Timing]:
    """Run every graph `repeat` times on `runtime`, and once on the CPU to compare with.

    Raises:
        ConfigError: the test has not been compiled.
        BackendError: a graph cannot be loaded or run.
    """
    for index in range(test.num_graphs):
        binary = test.emulator_binary(index)
        if (record := read_record(binary)) is None:
            raise ConfigError(f"there is no {binary}; run this once without --no-convert")
        request = GraphRequest(record.graph_names[0], test.sizes.spec)
        graph = runtime.load(binary, [request])[0]
        reference = CpuRuntime().load(test.onnx_file(index), [request])[0]
        for each in (graph, reference):
            random = np.random.default_rng(index)
            each.inputs["x"][:] = random.standard_normal(each.inputs["x"].shape)
        reference.run()
        seconds = tuple(_timed(graph) for _ in range(repeat))
        yield Timing(index, seconds, compare(reference.outputs, graph.outputs)[0])


def _write_graph(test: SimpleTest, index: int) -> None:
    path = test.onnx_file(index)
    weights = path.with_suffix(".weights")
    with weights.open("wb") as file:
        test.sizes.graph(index).save(path, WeightFile(file, weights.name))


def _timed(graph: CompiledGraph) -> float:
    start = time.perf_counter()
    graph.run()
    return time.perf_counter() - start
