"""The acceptance gate: what was compiled must compute what its ONNX graph computes on the CPU.

Qualcomm's compiler is sometimes silently wrong, so every graph is run on the emulator with a text's
real activations, and every row of every output is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What is still accepted of an output that has gone through one layer.

    Roundings differ between the NPU and the CPU, and every layer adds its own: the squares of the
    errors grow with the number of layers.

    Attributes:
        max_cosine_loss: what the cosine between a row and its expected values may lack of one.
        max_error: of a single value, as a part of the largest one expected in that output.
    """

    max_cosine_loss: float = 0.001
    max_error: float = 0.05

    def cosine_loss(self, num_layers: int) -> float:
        """The same for an output that has gone through so many layers."""
        return self.max_cosine_loss * num_layers

    def error(self, num_layers: int) -> float:
        """The same for an output that has gone through so many layers."""
        return self.max_error * sqrt(num_layers)


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far one output is from what was expected."""

    name: str
    cosine: float  # of the worst row
    max_error: float  # of any value
    scale: float  # the largest expected value
    worst_row: int
    num_layers: int = 1  # that it has gone through in its graph
    num_invalid: int = 0  # values that are no numbers; they count as zeros above

    @property
    def relative_error(self) -> float:
        """The largest error as a part of the largest value."""
        return self.max_error / self.scale if self.scale else self.max_error

    def passes(self, limits: GateLimits) -> bool:
        """Whether the output is accepted."""
        return (
            not self.num_invalid
            and 1 - self.cosine <= limits.cosine_loss(self.num_layers)
            and self.relative_error <= limits.error(self.num_layers)
        )


@dataclass(frozen=True, slots=True)
class GraphErrors:
    """The comparison of one compiled graph."""

    part: str  # "chunk 0" or "LM head"
    batch_size: int
    seconds: float  # of the run on the emulator
    outputs: tuple[OutputError, ...]

    def failures(self, limits: GateLimits) -> list[OutputError]:
        """The outputs that are not accepted, the worst one first."""
        failed = [each for each in self.outputs if not each.passes(limits)]
        return sorted(failed, key=lambda each: each.cosine)


def compare(
    expected: Tensors, actual: Tensors, num_layers: Mapping[str, int] | None = None
) -> tuple[OutputError, ...]:
    """Compare like-named outputs [rows, features], in the order of `expected`.

    `num_layers` says how many layers each output has gone through; one if it is not there.
    """
    return tuple(
        _output_error(name, rows, actual[name], (num_layers or {}).get(name, 1))
        for name, rows in expected.items()
    )


def failures(graphs: Iterable[GraphErrors], limits: GateLimits) -> list[str]:
    """One line for every graph that is not accepted."""
    lines = []
    for graph in graphs:
        if failed := graph.failures(limits):
            worst = failed[0]
            lines.append(
                f"{graph.part} at batch size {graph.batch_size}: {len(failed)} of "
                f"{len(graph.outputs)} outputs are wrong; row {worst.worst_row} of {worst.name} "
                f"has cosine {worst.cosine:.5f} and the largest error is {worst.max_error:.4g} of "
                f"{worst.scale:.4g}"
            )
    return lines


def _output_error(name: str, expected: Array, actual: Array, num_layers: int) -> OutputError:
    valid = np.isfinite(actual)
    # In float64: squares of float16 values would overflow.
    a, b = expected.astype(np.float64), np.where(valid, actual, 0).astype(np.float64)
    cosines = _row_cosines(a, b)
    worst = int(np.argmin(cosines))
    return OutputError(
        name,
        cosine=float(cosines[worst]),
        max_error=float(np.abs(a - b).max()),
        scale=float(np.abs(a).max()),
        worst_row=worst,
        num_layers=num_layers,
        num_invalid=int(np.count_nonzero(~valid)),
    )


def _row_cosines(a: Array, b: Array) -> Array:
    """Cosines of corresponding rows: 1 where both are zero, 0 where one is."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = np.einsum("ij,ij->i", a, b)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, products / np.where(norms == 0, 1.0, norms))
