"""Numbers together with how far a float32 computation of them may be off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROUNDING = 2.0**-24  # of one operation, relative to its result
SMALLEST_NORMAL = 2.0**-126  # smaller numbers may count as zero

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bounded:
    """`value`, computed exactly, and the largest `error` of a computation in float32."""

    value: DoubleArray
    error: DoubleArray

    def __add__(self, other: Bounded) -> Bounded:
        value = self.value + other.value
        return _rounded(value, self.error + other.error)

    def __mul__(self, other: Bounded) -> Bounded:
        error = self.error * (np.abs(other.value) + other.error) + np.abs(self.value) * other.error
        return _rounded(self.value * other.value, error)

    def silu(self) -> Bounded:
        """x / (1 + e⁻ˣ), with an exponential that is within 2 units in the last place."""
        value = _silu(self.value)
        moved = [np.abs(_silu(self.value + move) - value) for move in (-self.error, self.error)]
        # From 2^127.5 on, which is e^88.38, an exponential may count as infinite.
        lost = 88.3 * np.exp(-88.3)
        return Bounded(value, np.maximum(*moved) + 8 * ROUNDING * np.abs(value) + lost)

    def select(self, columns: slice) -> Bounded:
        """Some of the first axis."""
        return Bounded(self.value[columns], self.error[columns])


def exactly(values: npt.NDArray[np.floating]) -> Bounded:
    """Numbers that are not computed."""
    return Bounded(values.astype(np.float64), np.zeros(values.shape))


def product(x: Bounded, weight: DoubleArray, summands: DoubleArray, roundings: int) -> Bounded:
    """x [columns, K] times weight [rows, K], a sum whose terms are rounded `roundings` times.

    Summands are at least as large as |weight|. Source of the bound: Higham, Accuracy and Stability
    of Numerical Algorithms, section 3.1.
    """
    gamma = roundings * ROUNDING / (1 - roundings * ROUNDING)
    inherited = x.error @ np.abs(weight).T
    rounding = gamma * ((np.abs(x.value) + x.error) @ summands.T)
    lost = roundings * SMALLEST_NORMAL
    return Bounded(x.value @ weight.T, inherited + rounding + lost)


def assert_within(actual: npt.NDArray[np.float32], expected: Bounded, context: object) -> None:
    """Every number is where its bound says; `context` tells which computation failed."""
    assert actual.shape == expected.value.shape
    distance = np.abs(actual - expected.value)
    wrong = ~(distance <= expected.error)  # true for what is not a number, too
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{context}: {wrong.sum()} of {wrong.size} numbers are off, the first at {first}: "
            f"{actual[first]} is not {expected.value[first]} ± {expected.error[first]:.2e}"
        )


def _rounded(value: DoubleArray, error: DoubleArray) -> Bounded:
    return Bounded(value, error + ROUNDING * (np.abs(value) + error) + SMALLEST_NORMAL)


def _silu(x: DoubleArray) -> DoubleArray:
    with np.errstate(over="ignore"):  # e^1000 is infinite, and the quotient zero
        return x / (1 + np.exp(-x))
