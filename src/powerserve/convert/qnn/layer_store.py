"""Quantised layers on the disk, so that a conversion goes on where an earlier one stopped.

They do not depend on batch sizes, context, chunks or SoC: other choices of these use them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np
import numpy.typing as npt

from powerserve.convert.qnn.calibration import Calibration, QuantisedLayer
from powerserve.convert.qnn.qdq import QuantisedLinear
from powerserve.convert.qnn.quantise import QuantisedMatrix
from powerserve.convert.qnn.statistics import ValueRange
from powerserve.storage import atomic

FORMAT_VERSION = 3  # to be raised when the same request gives other layers
ERROR = "error"


@dataclass(frozen=True, slots=True)
class LayerStore:
    """The layers of one model, quantised in one way; `key` is a digest of both."""

    folder: Path
    key: str

    def load(self, layer: int) -> QuantisedLayer | None:
        """A layer that was saved; the LM head is the one after the last."""
        try:
            with self._path(layer).open("rb") as file, np.load(file) as arrays:
                return _layer(dict(arrays))
        except (OSError, BadZipFile, KeyError, ValueError):
            return None

    def save(self, layer: int, quantised: QuantisedLayer) -> None:
        """Keep a layer. Raises OSError."""
        self._path(layer).parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_file(self._path(layer)) as file:
            np.savez(file, allow_pickle=False, **dict(_arrays(quantised)))

    def _path(self, layer: int) -> Path:
        return self.folder / self.key[:16] / f"layer_{layer}.npz"


def layer_store(folder: Path, source: Path, calibration: Calibration) -> LayerStore:
    """The store for the model that was opened from `source`."""
    request = (FORMAT_VERSION, _identity(source), calibration)
    digest = hashlib.sha256(msgspec.json.encode(request, enc_hook=_plain))
    return LayerStore(folder, digest.hexdigest())


def _identity(source: Path) -> list[tuple[str, int, int]]:
    """What tells whether the files of a model have changed."""
    files = [source] if source.is_file() else sorted((*source.glob("*"), *source.glob("ggml/*")))
    return [
        (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
        if path.is_file()
    ]


def _plain(value: object) -> object:
    """What has no form in JSON, as something that has."""
    return sorted(value) if isinstance(value, frozenset) else str(value)


def _arrays(layer: QuantisedLayer) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    yield ERROR, np.array(layer.error)
    for name, linear in layer.linears.items():
        yield f"{name}:codes", linear.matrix.codes
        yield f"{name}:scales", linear.matrix.scales
        yield f"{name}:bits", np.array(linear.matrix.bits)
        ranges = (linear.input.low, linear.input.high, linear.output.low, linear.output.high)
        yield f"{name}:ranges", np.array(ranges, np.float64)


def _layer(arrays: dict[str, npt.NDArray[Any]]) -> QuantisedLayer:
    names = [name.removesuffix(":codes") for name in arrays if name.endswith(":codes")]
    return QuantisedLayer({name: _linear(name, arrays) for name in names}, float(arrays[ERROR]))


def _linear(name: str, arrays: dict[str, npt.NDArray[Any]]) -> QuantisedLinear:
    matrix = QuantisedMatrix(
        arrays[f"{name}:codes"], arrays[f"{name}:scales"], int(arrays[f"{name}:bits"])
    )
    ranges = arrays[f"{name}:ranges"].tolist()
    return QuantisedLinear(matrix, ValueRange(*ranges[:2]), ValueRange(*ranges[2:]))
