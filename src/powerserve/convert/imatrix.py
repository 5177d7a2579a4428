"""Importance matrices: how much each column of a weight matrix matters, measured on a text.

The error that rounding makes in a column counts as much as the inputs it is multiplied with are
large: the mean square of each input weighs the errors (llama.cpp's imatrix, by I. Kawrakow 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from powerserve.backend.base import FloatArray
from powerserve.core.errors import ModelFileError

_SHOWN = 3  # tensors named in a message


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """Mean squares of the inputs of each weight matrix.

    Attributes:
        means: float32 [matrices, columns] by tensor name; more than one matrix only where a tensor
            holds several (experts). The older file format lays them side by side: [1, all].
        num_chunks: windows of text that were looked at; 0 if the file does not tell.
        datasets: names of the texts.
        path: where it was read from.
    """

    means: Mapping[str, FloatArray]
    num_chunks: int
    datasets: tuple[str, ...]
    path: Path

    def __post_init__(self) -> None:
        if not self.means:
            raise ModelFileError(f"{self.path}: there is no importance data in this file")
        for name, values in self.means.items():
            if not np.isfinite(values).all() or (values < 0).any():
                raise ModelFileError(
                    f"{self.path}: the data of {name} are not mean squares: the file is damaged"
                )

    def weights(self, name: str, num_matrices: int, num_columns: int) -> FloatArray | None:
        """What weighs the columns of each matrix of a tensor: [num_matrices, num_columns].

        None if there is no data for it. If there is only one row, it serves for all matrices.
        """
        means = self.means.get(name)
        if means is None:
            return None
        return np.broadcast_to(means.reshape(-1, num_columns), (num_matrices, num_columns))

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make sure that this belongs to the model whose matrices have these shapes.

        Raises ModelFileError if it has data for other tensors, of another size, or for none.
        """
        strangers = sorted(self.means.keys() - shapes.keys())
        if strangers:
            raise self._foreign(f"it has data for {_some(strangers)}, which the model lacks")
        for name, means in self.means.items():
            num_columns, num_matrices = shapes[name][-1], prod(shapes[name][:-2])
            if means.size not in (num_columns, num_columns * num_matrices):
                raise self._foreign(
                    f"{name} has {means.size} columns there and {num_columns} in the model"
                )

    def missing(self, names: list[str]) -> list[str]:
        """Those of `names` for which there is no data."""
        return [name for name in names if name not in self.means]

    def _foreign(self, reason: str) -> ModelFileError:
        return ModelFileError(
            f"{self.path} was made for another model: {reason}; "
            "make one with `powerserve imatrix -m MODEL -f TEXT -o FILE`"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
