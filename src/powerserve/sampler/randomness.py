"""Reproducible random numbers, and drawing an index by weight with one of them."""

from __future__ import annotations

import copy
import secrets
from typing import Self

import numpy as np
from numpy.typing import NDArray

from powerserve.sampler.candidates import Weights

_BLOCK = 64  # numbers generated at a time; changing it changes every seeded text
_SEGMENT = 256  # weights summed together before searching


class UniformStream:
    """Endless numbers in [0, 1), fixed by the seed (PCG64).

    The numbers of a block depend only on the seed and the block's index, so that a copy is a
    few words, where a copy of a generator's state costs as much as sampling a token.
    """

    def __init__(self, seed: int | None) -> None:
        """`seed` in [0, 2^64); None draws one from the operating system."""
        self._seed = secrets.randbits(64) if seed is None else seed
        self._num_drawn = 0
        self._block: NDArray[np.float64] = np.empty(0)

    def next(self) -> float:
        """Return the next number."""
        block, offset = divmod(self._num_drawn, _BLOCK)
        if offset == 0:
            self._block = np.random.Generator(np.random.PCG64([self._seed, block])).random(_BLOCK)
        self._num_drawn += 1
        return float(self._block[offset])

    def copy(self) -> Self:
        """Return a stream that continues with the same numbers, independently."""
        return copy.copy(self)  # blocks are replaced, never written to


def draw(weights: Weights, uniform: float) -> int:
    """Return an index of `weights` [n] with a probability proportional to its weight.

    `uniform` in [0, 1) decides: this inverts the cumulative distribution.
    """
    if len(weights) <= 4 * _SEGMENT:
        return _invert(np.cumsum(weights, dtype=np.float64), uniform)[0]
    # A running sum of a whole vocabulary is slow: find the segment, then the place in it.
    starts = np.arange(0, len(weights), _SEGMENT)
    segments = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    segment, remainder = _invert(segments, uniform)
    start = int(starts[segment])
    inside = np.cumsum(weights[start : start + _SEGMENT], dtype=np.float64)
    return start + _invert(inside, remainder)[0]


def _invert(cumulative: NDArray[np.float64], uniform: float) -> tuple[int, float]:
    """Find the step of `cumulative` that contains `uniform` of its total, and where in the step."""
    target = uniform * cumulative[-1]
    # Rounding may lift the target to the total: the last step of positive height then holds it.
    last = np.searchsorted(cumulative, cumulative[-1])
    index = int(min(np.searchsorted(cumulative, target, side="right"), last))
    low = cumulative[index - 1] if index else 0.0
    return index, float((target - low) / (cumulative[index] - low))
