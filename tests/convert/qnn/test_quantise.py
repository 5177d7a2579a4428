"""Codes and scales of quantised matrices, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from powerserve.backend.base import FloatArray
from powerserve.convert.qnn.onnx_graph import int4_constant
from powerserve.convert.qnn.quantise import (
    QuantisationOptions,
    QuantisedMatrix,
    ScaleSearch,
    quantise_matrix,
)
from powerserve.convert.qnn.scales import codes_of, minmax_scales, mse_scales
from powerserve.convert.qnn.statistics import InputStatistics
from powerserve.core.errors import UsageError

RNG = np.random.default_rng(7)
SEARCHES = list(ScaleSearch)


def correlated_inputs(num_tokens: int, num_features: int) -> FloatArray:
    """Inputs as layers have them: a few directions carry most, and features differ in size."""
    rng = np.random.default_rng(5)
    mixed = rng.normal(size=(num_tokens, 12)) @ rng.normal(size=(12, num_features))
    noise = rng.normal(size=(num_tokens, num_features))
    sizes = np.exp(rng.normal(size=num_features))
    return ((mixed + 0.3 * noise) * sizes).astype(np.float32)


def seen(x: FloatArray) -> InputStatistics:
    statistics = InputStatistics.empty(x.shape[1], with_hessian=True)
    for batch in np.array_split(x, 3):
        statistics.add(batch)
    return statistics


def quantised(
    weights: FloatArray, x: FloatArray, search: ScaleSearch, block: int | None = None, bits: int = 4
) -> QuantisedMatrix:
    return quantise_matrix(weights, seen(x), bits, QuantisationOptions(bits, search, block))


@pytest.mark.parametrize(("bits", "smallest", "largest"), [(4, -8, 7), (8, -128, 127)])
def test_minmax_is_the_textbook_s_formula(bits: int, smallest: int, largest: int) -> None:
    weights = RNG.normal(size=(5, 64)).astype(np.float32)
    matrix = quantised(weights, correlated_inputs(40, 64), ScaleSearch.MINMAX, bits=bits)
    for row, codes, scale in zip(weights, matrix.codes, matrix.scales[:, 0], strict=True):
        assert scale == pytest.approx(max(abs(float(value)) for value in row) / largest)
        for value, code in zip(row, codes, strict=True):
            assert smallest <= code <= largest
            assert abs(float(value) - int(code) * scale) <= scale / 2 * 1.0001


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("distribution", ["normal", "laplace", "uniform", "standard_cauchy"])
def test_the_search_never_has_a_larger_error_than_minmax(bits: int, distribution: str) -> None:
    weights = getattr(RNG, distribution)(size=(50, 96)).astype(np.float32)

    def errors(scales: FloatArray) -> FloatArray:
        restored = codes_of(weights, scales, bits) * scales[:, None]
        return np.square(restored - weights).sum(axis=1)

    plain, searched = errors(minmax_scales(weights, bits)), errors(mse_scales(weights, bits))
    assert (searched <= plain).all()
    if bits == 4 and distribution in ("normal", "laplace"):
        assert searched.sum() < 0.9 * plain.sum()


def test_errors_count_by_importance() -> None:
    weights = np.array([[2.0, 0.93, -0.88, 0.41]], np.float32)
    importance = np.array([0.0, 1.0, 1.0, 1.0], np.float32)  # the first input is always zero

    def error(scales: FloatArray) -> float:
        restored = codes_of(weights, scales, 4) * scales[:, None]
        return float(np.square(restored - weights)[0, 1:].sum())

    assert error(mse_scales(weights, 4, importance)) < 0.2 * error(mse_scales(weights, 4))


@pytest.mark.parametrize("block", [None, 32, 64])
def test_gptq_changes_a_layer_s_output_less_than_rounding_does(block: int | None) -> None:
    x = correlated_inputs(400, 128)
    weights = RNG.normal(size=(48, 128)).astype(np.float32)

    def error(search: ScaleSearch) -> float:
        restored = quantised(weights, x, search, block).weights()
        return float(np.square(x @ (restored - weights).T).mean())

    assert error(ScaleSearch.MSE) < error(ScaleSearch.MINMAX)
    assert error(ScaleSearch.GPTQ) < 0.7 * error(ScaleSearch.MSE)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(("block", "num_scales"), [(None, 1), (32, 4), (64, 2)])
def test_codes_times_scales_are_the_weights(
    search: ScaleSearch, block: int | None, num_scales: int
) -> None:
    weights = RNG.normal(size=(6, 128)).astype(np.float32)
    matrix = quantised(weights, correlated_inputs(200, 128), search, block)
    assert matrix.scales.shape == (6, num_scales)
    assert matrix.codes.dtype == np.int8
    assert matrix.codes.min() >= -8 and matrix.codes.max() <= 7
    size = 128 // num_scales
    for row in range(6):
        for column in (0, 31, 32, 77, 127):
            expected = int(matrix.codes[row, column]) * float(matrix.scales[row, column // size])
            assert matrix.weights()[row, column] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("search", SEARCHES)
def test_large_matrices_go_in_pieces(search: ScaleSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x = RNG.normal(size=(7, 64)).astype(np.float32), correlated_inputs(100, 64)
    whole = quantised(weights, x, search, 32)
    monkeypatch.setattr("powerserve.convert.qnn.quantise._PIECE_WEIGHTS", 3 * 64)
    pieces = quantised(weights, x, search, 32)
    np.testing.assert_array_equal(pieces.scales, whole.scales)
    assert (pieces.codes == whole.codes).mean() > 0.98  # sums of other lengths may round otherwise


@pytest.mark.parametrize("search", SEARCHES)
def test_zeros_and_unused_inputs_do_no_harm(search: ScaleSearch) -> None:
    weights = RNG.normal(size=(8, 32)).astype(np.float32)
    weights[3] = 0
    x = correlated_inputs(100, 32)
    x[:, 5:9] = 0
    matrix = quantised(weights, x, search)
    assert np.isfinite(matrix.weights()).all()
    assert not matrix.weights()[3].any()
    silent = quantised(weights, np.zeros((10, 32), np.float32), search)
    assert np.isfinite(silent.weights()).all()


def test_rows_that_no_block_fits_have_one_scale() -> None:
    weights = RNG.normal(size=(4, 40)).astype(np.float32)
    matrix = quantised(weights, correlated_inputs(60, 40), ScaleSearch.MSE, 32)
    assert matrix.scales.shape == (4, 1)


@pytest.mark.parametrize("shape", [(3, 5), (4, 8), (1, 1)])
def test_packed_codes_are_read_back_by_onnx(shape: tuple[int, int]) -> None:
    codes = RNG.integers(-8, 8, shape).astype(np.int8)
    constant = int4_constant(codes)
    tensor = onnx.TensorProto(data_type=constant.element_type, dims=constant.shape)
    tensor.raw_data = constant.data.tobytes()
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 5}, "weights can have 4, 8 or 16 bits, not 5"),
        ({"lm_head_bits": 2}, "not 2"),
        ({"block_size": 128}, "blocks of 128 weights are not possible"),
        (
            {"wide_matrices": frozenset({"attn_qkv"})},
            "no matrix 'attn_qkv'; they have attn_q, attn",
        ),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QuantisationOptions(**options)
