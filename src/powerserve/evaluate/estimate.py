"""Figures measured on a sample of tokens, with what chance may have done to them."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
import numpy.typing as npt

FloatVector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float

    def exponential(self) -> Estimate:
        """exp of the figure, as a perplexity is of a mean NLL; errors to first order."""
        return Estimate(exp(self.value), exp(self.value) * self.error)

    def square_root(self) -> Estimate:
        """The root of the figure, as an RMS is of a mean square; errors to first order."""
        root = sqrt(self.value)
        return Estimate(root, self.error / (2 * root) if root else 0.0)


def mean_of(values: FloatVector) -> Estimate:
    """The mean of a sample [n]; the error is 0 if there are too few values to tell."""
    error = float(values.std(ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), error)


def mean_covariance(first: FloatVector, second: FloatVector) -> float:
    """The covariance of the means of two samples [n] of the same tokens."""
    return float(np.cov(first, second)[0, 1]) / len(first) if len(first) > 1 else 0.0
