"""Measures on a text what a model's matrices are multiplied with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import (
    Executable,
    Int32Array,
    LoadedModel,
    SliceShape,
    StepShape,
)
from powerserve.convert.imatrix_file import Sums
from powerserve.core.dtypes import F16
from powerserve.executor.chain import chain_batch
from powerserve.executor.executor import cache_cells

Squares = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Counted:
    """Sums of the squares of every weight's inputs, over windows of equal length."""

    window: int  # tokens
    num_windows: int = 0
    squares: Squares = field(default_factory=dict)  # [columns] by weight

    @classmethod
    def from_sums(cls, window: int, num_windows: int, sums: Mapping[str, Sums]) -> Counted:
        """What was saved from `sums`."""
        squares = {name: each.squares[0].astype(np.float64) for name, each in sums.items()}
        return cls(window, num_windows, squares)

    @property
    def sums(self) -> dict[str, Sums]:
        """As they are written to files."""
        counts = np.array([self.num_windows * self.window], np.float32)
        return {
            name: Sums(squares.astype(np.float32)[None], counts)
            for name, squares in self.squares.items()
        }

    def plus(self, executable: Executable) -> Counted:
        """With what the last run of `executable`, over one window, has observed."""
        squares = {
            name: self.squares.get(name, 0) + values.astype(np.float64)
            for name, values in executable.observed().items()
        }
        return Counted(self.window, self.num_windows + 1, squares)


def count_windows(model: LoadedModel, windows: Int32Array, start: Counted) -> Iterator[Counted]:
    """Count `windows` [n, window] after those that `start` has counted; yields after each.

    `model` must have been loaded with a graph from `observe_inputs`.
    """
    cache = model.new_cache(cache_cells(model, start.window), F16)
    # Exactly a window, not a rounded shape: tokens that pad a batch would count as well.
    shape = StepShape((SliceShape(start.window, 0, cache.num_cells),), 1)
    executable = model.compile(shape, cache)
    last_row = np.array([start.window - 1], np.int32)
    counted = start
    try:
        for token_ids in windows[start.num_windows :]:
            executable.run(chain_batch(token_ids, 0, last_row))
            counted = counted.plus(executable)
            yield counted
    finally:
        executable.close()
        cache.close()
