"""The comparison that decides whether a compiled graph is accepted."""

from __future__ import annotations

import numpy as np
import pytest

from powerserve.convert.qnn.gate import GateLimits, GraphErrors, compare, failures

ROWS = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)


def compare_one(actual: np.ndarray) -> GraphErrors:
    return GraphErrors("chunk 3", 6, 0.1, compare({"out": ROWS}, {"out": actual}))


def test_equal_outputs_have_no_error() -> None:
    (error,) = compare_one(ROWS.copy()).outputs
    assert error.cosine == pytest.approx(1.0)
    assert error.max_error == 0
    assert error.passes(GateLimits())


def test_one_wrong_row_among_right_ones_is_found() -> None:
    actual = ROWS.copy()
    actual[4] = actual[4][::-1]
    graph = compare_one(actual)
    assert graph.outputs[0].worst_row == 4
    (line,) = failures([graph], GateLimits())
    assert line.startswith("chunk 3 at batch size 6: 1 of 1 outputs are wrong; row 4 of out")


def test_one_wrong_value_is_found_although_the_cosine_is_good() -> None:
    wide = np.ones((1, 10_000), np.float32)
    actual = wide.copy()
    actual[0, 7] = 1.5
    (error,) = compare({"out": wide}, {"out": actual})
    assert error.cosine > 0.999
    assert error.relative_error == pytest.approx(0.5)
    assert not error.passes(GateLimits())


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_fails_whatever_the_limits(wrong: float) -> None:
    actual = ROWS.copy()
    actual[2, 5] = wrong
    graph = compare_one(actual)
    assert graph.outputs[0].num_invalid == 1
    assert failures([graph], GateLimits(max_cosine_loss=9, max_error=1e9))


def test_rows_of_zeros() -> None:
    zeros = np.zeros((2, 4), np.float16)
    (same,) = compare({"out": zeros}, {"out": zeros})
    assert same.passes(GateLimits())
    (other,) = compare({"out": zeros}, {"out": np.ones((2, 4), np.float16)})
    assert other.cosine == 0
    assert not other.passes(GateLimits())


def test_large_halves_do_not_overflow() -> None:
    values = np.full((1, 8), 60_000, np.float16)
    (error,) = compare({"out": values}, {"out": values})
    assert error.cosine == pytest.approx(1.0)


def test_errors_may_add_up_over_the_layers_of_a_chunk() -> None:
    noise = np.random.default_rng(1).standard_normal(ROWS.shape).astype(np.float32)
    actual = ROWS + np.float32(0.06) * noise  # a cosine of about 0.998
    outputs = {"layer_0_key_0": ROWS, "layer_8_key_0": ROWS}
    first, ninth = compare(outputs, dict.fromkeys(outputs, actual), {"layer_8_key_0": 9})
    assert not first.passes(GateLimits())
    assert ninth.passes(GateLimits())
    assert (first.num_layers, ninth.num_layers) == (1, 9)
