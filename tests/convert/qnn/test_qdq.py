"""Quantised linear layers in ONNX compute what quantised arithmetic means."""

from __future__ import annotations

import numpy as np
import pytest

from powerserve.backend.qnn.tensors import F32, GraphSpec, TensorSpec
from powerserve.convert.qnn.cpu_execution import CpuGraph
from powerserve.convert.qnn.linear import LinearPart
from powerserve.convert.qnn.onnx_graph import OnnxGraph
from powerserve.convert.qnn.qdq import QuantisedLinear, QuantisedLinears, activation_parameters
from powerserve.convert.qnn.quantise import QuantisedMatrix
from powerserve.convert.qnn.statistics import ValueRange

RNG = np.random.default_rng(3)


def graph_of(linear: QuantisedLinear, num_in: int, num_out: int) -> OnnxGraph:
    """One quantised layer from `x` to `y` for 4 tokens."""
    spec = GraphSpec((TensorSpec("x", F32, (4, num_in)),), (TensorSpec("y", F32, (4, num_out)),))
    graph = OnnxGraph("one layer", spec)
    part = LinearPart(
        "blk.0.attn_q", "", np.arange(num_out), np.arange(num_in), False, 1.0, lambda _: np.empty(0)
    )
    QuantisedLinears({"blk.0.attn_q": linear}).write(graph, part, "x", "y")
    return graph


def rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as 16-bit codes over a range, and back."""
    scale = np.float64(high - low) / 65535
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 65535) - zero) * scale


@pytest.mark.parametrize(("bits", "block"), [(4, 64), (4, 32), (8, 64), (8, 32)])
def test_a_layer_rounds_its_input_weights_and_output(bits: int, block: int) -> None:
    codes = RNG.integers(-(1 << bits - 1), 1 << bits - 1, (6, 64)).astype(np.int8)
    scales = RNG.uniform(0.01, 0.1, (6, 64 // block)).astype(np.float32)
    x = RNG.normal(size=(4, 64)).astype(np.float32)
    weights = codes * np.repeat(scales.astype(np.float64), block, axis=1)
    product = rounded(x, -2.0, 2.5) @ weights.T  # some inputs are clipped
    limit = float(np.abs(product).max()) / 2  # and some outputs
    linear = QuantisedLinear(
        QuantisedMatrix(codes, scales, bits), ValueRange(-2.0, 2.5), ValueRange(-limit, limit)
    )
    found = CpuGraph.of(graph_of(linear, 64, 6), 1).run({"x": x})["y"]
    step = 2 * limit / 65535
    np.testing.assert_allclose(found, rounded(product, -limit, limit), atol=1.01 * step)


def test_zero_is_exact() -> None:
    for low, high in ((-1.0, 3.0), (0.0, 5.0), (-7.0, 0.0), (0.0, 0.0), (-1e-9, 1e-9)):
        scale, zero_point = activation_parameters(ValueRange(low, high))
        assert scale > 0
        assert 0 <= zero_point <= 65535
        assert -zero_point * scale == pytest.approx(low, abs=scale)
        assert (65535 - zero_point) * scale >= high - scale


def test_layers_share_the_rounding_of_their_input() -> None:
    linear = QuantisedLinear(
        QuantisedMatrix(np.ones((6, 64), np.int8), np.ones((6, 1), np.float32), 4),
        ValueRange(-1, 1),
        ValueRange(-1, 1),
    )
    graph = graph_of(linear, 64, 6)
    part = LinearPart(
        "blk.0.attn_k", "", np.arange(6), np.arange(64), False, 1.0, lambda _: np.empty(0)
    )
    QuantisedLinears({"blk.0.attn_k": linear}).write(graph, part, "x", "z")
    operators = [node.op_type for node in graph.model().graph.node]
    assert operators.count("QuantizeLinear") == 3  # one input, two outputs
