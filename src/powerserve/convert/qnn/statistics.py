"""What calibration sees of the inputs and outputs of linear layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.convert.qnn.cpu_execution import Tensors
from powerserve.convert.qnn.gptq import Compensation, compensation
from powerserve.convert.qnn.linear import FloatLinears, LinearPart
from powerserve.convert.qnn.onnx_graph import OnnxGraph

NUM_ACTIVATION_STEPS = (1 << 16) - 1  # activations are uint16


@dataclass(slots=True)
class ValueRange:
    """The smallest and the largest number seen."""

    low: float = 0.0  # a range always has zero in it, for zero to be represented exactly
    high: float = 0.0

    def add(self, values: FloatArray) -> None:
        """Extend the range to `values`."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    def widened(self, factor: float) -> ValueRange:
        """A range so many times as wide."""
        return ValueRange(self.low * factor, self.high * factor)


@dataclass(slots=True)
class ActivationStatistics:
    """Of a tensor: its range over all tokens, and how large it is in each of them."""

    range: ValueRange = field(default_factory=ValueRange)
    _token_rms: list[FloatArray] = field(default_factory=list)

    def add(self, values: FloatArray) -> None:
        """Count the tokens of values [T, features]."""
        self.range.add(values)
        self._token_rms.append(np.sqrt(np.square(values).mean(axis=1)))

    @property
    def rounding_noise(self) -> float:
        """What 16 bits over the whole range do to a typical token: the error's part of its RMS."""
        typical = float(np.median(np.concatenate(self._token_rms))) if self._token_rms else 0.0
        step = (self.range.high - self.range.low) / NUM_ACTIVATION_STEPS
        return step / sqrt(12) / typical if typical else 0.0


@dataclass(slots=True)
class InputStatistics:
    """Over all tokens, for the input of linear layers.

    Attributes:
        activation: range and rounding.
        absolute_sums: Σ|x| of each feature, float64 [features].
        hessian: Σ x·xᵀ, float32 [features, features]; None: only `squares` are kept.
        squares: Σ x² of each feature, float64 [features].
    """

    activation: ActivationStatistics
    absolute_sums: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    hessian: FloatArray | None
    num_tokens: int = 0
    _compensation: Compensation | None = None

    @classmethod
    def empty(cls, num_features: int, *, with_hessian: bool) -> InputStatistics:
        """Statistics of no token."""
        shape = (num_features, num_features)
        hessian = np.zeros(shape, np.float32) if with_hessian else None
        return cls(ActivationStatistics(), np.zeros(num_features), np.zeros(num_features), hessian)

    def add(self, x: FloatArray) -> None:
        """Count the tokens of x [T, features]."""
        self.num_tokens += len(x)
        self.activation.add(x)
        self.absolute_sums += np.abs(x).sum(axis=0, dtype=np.float64)
        self.squares += np.square(x, dtype=np.float64).sum(axis=0)
        if self.hessian is not None:
            self.hessian += x.T @ x
            self._compensation = None

    def compensation(self) -> Compensation:
        """What GPTQ needs, computed once for all layers with this input."""
        if self.hessian is None:
            raise ValueError("the Hessian was not asked for")
        if self._compensation is None:
            self._compensation = compensation(self.hessian, self.num_tokens)
        return self._compensation


@dataclass(frozen=True, slots=True)
class LinearStatistics:
    """Of one linear layer; layers with the same input share its statistics."""

    part: LinearPart
    input: InputStatistics
    output: ActivationStatistics

    @property
    def rounding_noise(self) -> float:
        """The larger one of input and output."""
        return max(self.input.activation.rounding_noise, self.output.rounding_noise)


@dataclass(slots=True)
class LinearObserver(FloatLinears):
    """Writes matrices in floating point, and gathers statistics of what they read and make."""

    with_hessian: bool
    statistics: dict[str, LinearStatistics] = field(default_factory=dict)  # by part
    _inputs: dict[str, InputStatistics] = field(default_factory=dict)  # by tensor
    _outputs: dict[str, ActivationStatistics] = field(default_factory=dict)

    def write(self, graph: OnnxGraph, part: LinearPart, x: str, output: str) -> None:
        """Append a Gemm; its input and output become outputs of the graph."""
        FloatLinears.write(self, graph, part, x, output)
        if x not in self._inputs:
            num_features = len(part.columns)
            graph.observe(x, num_features)
            self._inputs[x] = InputStatistics.empty(num_features, with_hessian=self.with_hessian)
        graph.observe(output, len(part.rows))
        self._outputs[output] = ActivationStatistics()
        self.statistics[part.name] = LinearStatistics(part, self._inputs[x], self._outputs[output])

    def observe(self, outputs: Tensors) -> None:
        """Count the tokens of one run of the graph."""
        for name, inputs in self._inputs.items():
            inputs.add(outputs[name])
        for name, seen in self._outputs.items():
            seen.add(outputs[name])

    @property
    def is_finite(self) -> bool:
        """Whether no input was too large to be squared, or no number at all."""
        largest = np.finfo(np.float32).max
        return all((inputs.squares < largest).all() for inputs in self._inputs.values())
