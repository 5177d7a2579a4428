"""ONNX files whose constants lie in a file of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from powerserve.backend.qnn.tensors import F32, GraphSpec, TensorSpec
from powerserve.convert.qnn.onnx_graph import OnnxGraph, WeightFile

SPEC = GraphSpec((TensorSpec("x", F32, (2, 3)),), (TensorSpec("y", F32, (2, 3)),))


def graph_with(**constants: np.ndarray) -> OnnxGraph:
    graph = OnnxGraph("test", SPEC)
    for name, values in constants.items():
        graph.constant(name, values)
    graph.node("Identity", ["x"], "y")
    return graph


def test_constants_are_kept_once_for_each_name_and_shape(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(40, 30)).astype(np.float32)
    padding = {size: rng.normal(size=(size, 64)).astype(np.float16) for size in (10, 20)}
    small = np.arange(5)
    with (tmp_path / "weights.bin").open("wb") as file:
        weights = WeightFile(file, "weights.bin")
        for size, values in padding.items():
            graph = graph_with(shared=shared, padding=values, small=small)
            graph.save(tmp_path / f"{size}.onnx", weights)
    for size, values in padding.items():
        model = onnx.load(tmp_path / f"{size}.onnx")
        found = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        np.testing.assert_array_equal(found["shared"], shared)
        np.testing.assert_array_equal(found["padding"], values)
        np.testing.assert_array_equal(found["small"], small)
    num_bytes = (tmp_path / "weights.bin").stat().st_size
    assert num_bytes < shared.nbytes + sum(each.nbytes for each in padding.values()) + 200


def test_the_first_constant_of_a_name_counts() -> None:
    graph = graph_with(a=np.zeros(3, np.float32))
    assert graph.constant("a", np.ones(3, np.float32)) == "a"
    (stored,) = graph.model().graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(stored), np.zeros(3))
