"""The native helper on Qualcomm's emulator, beside ONNX Runtime on the same binaries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from powerserve.backend.qnn.inspect import inspect_binary
from powerserve.backend.qnn.libraries import find_libraries
from powerserve.backend.qnn.runtime.base import CompiledGraph
from powerserve.backend.qnn.runtime.build import helper_executable
from powerserve.backend.qnn.runtime.helper import HelperRuntime
from powerserve.backend.qnn.runtime.process import ProcessRuntime
from powerserve.backend.qnn.tensors import F16, GraphSpec, TensorSpec
from powerserve.core.errors import BackendError
from stub_qnn_library import compiler_or_skip
from tiny_binaries import TinyBinary, compile_tiny, expected, tiny_inputs

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has no wheel for this platform")
BATCH_SIZES = (1, 8)


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> list[TinyBinary]:
    """One binary for each batch size."""
    folder = tmp_path_factory.mktemp("tiny")
    return [compile_tiny(folder, [size]) for size in BATCH_SIZES]


@pytest.fixture
def runtime() -> Iterator[HelperRuntime]:
    compiler_or_skip()
    runtime = HelperRuntime(helper_executable(), find_libraries())
    yield runtime
    runtime.close()


def test_graphs_compute_what_onnxruntime_computes(
    runtime: HelperRuntime, binaries: list[TinyBinary]
) -> None:
    other = ProcessRuntime("ONNX Runtime")
    try:
        for binary, size in zip(binaries, BATCH_SIZES, strict=True):
            (ours,) = runtime.load(binary.path, binary.graphs)
            (theirs,) = other.load(binary.path, binary.graphs)
            for seed in (1, 2):
                inputs = tiny_inputs(size, seed)
                run(ours, inputs)
                run(theirs, inputs)
                for name, values in expected(inputs).items():
                    np.testing.assert_array_equal(ours.outputs[name], theirs.outputs[name])
                    np.testing.assert_allclose(ours.outputs[name], values, atol=5e-3)
    finally:
        other.close()


def test_like_inputs_of_several_binaries_are_one(
    runtime: HelperRuntime, binaries: list[TinyBinary]
) -> None:
    first, second = (runtime.load(binary.path, binary.graphs)[0] for binary in binaries)
    assert first.inputs["cache"] is second.inputs["cache"]
    assert first.inputs["x"] is not second.inputs["x"]
    first.inputs["cache"][:] = 3
    second.run()
    assert (second.outputs["doubled"] == 6).all()


def test_the_helper_reads_binaries_as_the_inspection_does(
    runtime: HelperRuntime, binaries: list[TinyBinary]
) -> None:
    for binary in binaries:
        assert runtime.describe(binary.path) == inspect_binary(binary.path, find_libraries())


def test_other_tensors_than_wanted_are_refused(
    runtime: HelperRuntime, binaries: list[TinyBinary]
) -> None:
    binary = binaries[0]
    (wanted,) = binary.graphs
    x, *others = wanted.spec.inputs
    for inputs, sentence in (
        ((TensorSpec("x", F16, (1, 32)), *others), r"has x as float32 \[1, 32\], not as float16"),
        ((x, *others, TensorSpec("more", F16, (1,))), "has no tensor more"),
        ((x, others[0]), "wants codes, which the model does not have"),
    ):
        request = replace(wanted, spec=GraphSpec(tuple(inputs), wanted.spec.outputs))
        with pytest.raises(BackendError, match=sentence):
            runtime.load(binary.path, [request])
    with pytest.raises(BackendError, match=rf"has no graph other; it has {wanted.name}"):
        runtime.load(binary.path, [replace(wanted, name="other")])


def test_files_that_are_no_binaries_do_no_harm(
    runtime: HelperRuntime, binaries: list[TinyBinary], tmp_path: Path
) -> None:
    whole = binaries[0].path.read_bytes()
    path = tmp_path / "bad.bin"
    for content, sentence in (
        (b"", "the file is empty"),
        (bytes(range(256)) * 100, "it is no context binary, or a damaged one"),
        (whole[: len(whole) // 2], "it is no context binary, or a damaged one"),
    ):
        path.write_bytes(content)
        with pytest.raises(BackendError, match=sentence):
            runtime.load(path, binaries[0].graphs)
    with pytest.raises(BackendError, match="No such file"):
        runtime.load(tmp_path / "none.bin", binaries[0].graphs)
    (graph,) = runtime.load(binaries[0].path, binaries[0].graphs)
    graph.run()


def test_shared_weights_are_for_phones(runtime: HelperRuntime, tmp_path: Path) -> None:
    shared = compile_tiny(tmp_path, BATCH_SIZES)
    assert len(runtime.describe(shared.path).graphs) == len(BATCH_SIZES)
    with pytest.raises(BackendError, match="share weights, which only a real NPU can do"):
        runtime.load(shared.path, shared.graphs)


def run(graph: CompiledGraph, inputs: dict[str, np.ndarray]) -> None:
    for name, values in inputs.items():
        graph.inputs[name][:] = values
    graph.run()
