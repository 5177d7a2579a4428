"""How GPTQ spreads the errors of rounding."""

from __future__ import annotations

import numpy as np
import pytest

from powerserve.convert.qnn.gptq import compensated_codes, compensation

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("size", [5, 128, 300])
def test_the_factor_is_that_of_the_inverse(size: int) -> None:
    x = RNG.normal(size=(700, size)) * np.exp(3 * RNG.normal(size=size))
    hessian = x.T @ x
    spread = compensation(hessian.astype(np.float32), 700)
    energies = np.diagonal(hessian)
    assert (np.diff(energies[spread.order]) <= 1e-4 * energies.max()).all()
    shrunk = hessian * 700 / (700 + size)
    np.fill_diagonal(shrunk, energies)
    shrunk = shrunk[np.ix_(spread.order, spread.order)]
    factor = spread.factor.astype(np.float64)
    assert not np.tril(factor, -1).any()
    np.testing.assert_allclose(factor @ shrunk @ factor.T, np.eye(size), atol=2e-3)


def test_errors_are_spread_as_least_squares_would() -> None:
    """After the first column is rounded, the others minimise the error that is left."""
    x = RNG.normal(size=(10**6, 3)) @ RNG.normal(size=(3, 3))
    x[:, 0] *= 10  # so that it is rounded first
    hessian = (x.T @ x).astype(np.float32)
    weights = np.array([[0.4, 100.3, -200.2]], np.float32)
    scales = np.array([[1.0]], np.float32)
    (codes,) = compensated_codes(weights, scales, 16, compensation(hessian, 10**12))
    error = 0.4 - codes[0]
    correction = np.linalg.solve(hessian[1:, 1:].astype(np.float64), hessian[1:, 0] * error)
    assert codes[0] == 0
    assert codes[1:] - weights[0, 1:] == pytest.approx(correction, abs=1.2)
    assert np.abs(codes[1:] - np.rint(weights[0, 1:])).max() >= 1


def test_without_correlations_codes_are_the_nearest() -> None:
    weights = RNG.normal(size=(20, 70)).astype(np.float32)
    scales = np.full((20, 1), 0.3, np.float32)
    spread = compensation(np.diag(RNG.uniform(1, 9, 70)).astype(np.float32), 50)
    codes = compensated_codes(weights, scales, 4, spread)
    np.testing.assert_array_equal(codes, np.clip(np.rint(weights / np.float32(0.3)), -8, 7))
